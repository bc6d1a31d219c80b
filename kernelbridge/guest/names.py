"""Names of cells and tracebacks: part of the program of `hooks.py`, which see.

Code is compiled under the request's file name, and errors are shown as Python shows them.
"""

import builtins
import codeop
import contextlib
import linecache
import sys
import traceback
from collections import deque

SOURCES = 32 << 20  # characters of old cells kept for tracebacks and inspect; the oldest go first


class CellName(str):
    """A file name that equals its text, yet is another key than any other cell's.

    So several cells of one name keep their own source in `linecache`. Pickles as plain text;
    `marshal` refuses it.
    """

    __slots__ = ("skipped",)  # empty lines at the start, which IPython removes

    def __eq__(self, other):
        return self is other if type(other) is CellName else str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return id(self) >> 4

    def __reduce__(self):
        return (str, (str.__str__(self),))


def install_names(kernel):
    compiler = kernel.shell.compile
    cached = deque()
    kept = [0]
    format_code_name = getattr(compiler, "format_code_name", None)

    def cache(transformed_code, number=0, raw_code=None):
        metadata = parent_of(kernel).get("metadata") or {}
        filename = (metadata.get("kernelbridge") or {}).get("filename")
        if not filename:
            return type(compiler).cache(compiler, transformed_code, number, raw_code)
        name = CellName(filename)
        name.skipped = empty_lines(raw_code or "") - empty_lines(transformed_code)
        linecache.cache[name] = (
            len(transformed_code),
            None,  # no file, so `checkcache` leaves it alone
            ["\n"] * name.skipped + [line + "\n" for line in transformed_code.splitlines()],
            name,
        )
        cached.append(name)
        kept[0] += len(transformed_code)
        while kept[0] > SOURCES and len(cached) > 1:
            kept[0] -= (linecache.cache.pop(cached.popleft(), None) or (0,))[0]
        return name

    def ast_parse(source, filename="<unknown>", symbol="exec"):
        if type(filename) is CellName:
            source = "\n" * filename.skipped + source
        return type(compiler).ast_parse(compiler, source, filename, symbol)

    def format_name(name):
        if type(name) is CellName:
            return "File", str.__str__(name)
        return format_code_name(name) if format_code_name is not None else None

    # The wording for a prompt that waits for more ("incomplete input") is no use for a whole cell.
    compiler.flags &= ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
    compiler.cache = cache
    compiler.ast_parse = ast_parse
    compiler.format_code_name = format_name


def empty_lines(code):
    """Count the empty lines that code starts with."""
    code = code[: len(code) - len(code.lstrip())]
    return code.count("\n")


def parent_of(kernel):
    """Give the request that is being handled."""
    try:
        return kernel.get_parent("shell")
    except TypeError:
        return kernel.get_parent()


def install_plain(kernel):
    shell = kernel.shell
    # The wait lets output overtake the reply. It need not: a cell is over when idle comes, behind all its output.
    kernel._execute_sleep = 0.0
    if hasattr(shell, "_tee"):
        # IPython 9 keeps a copy of all that is ever printed, for the `%notebook` export.
        shell._tee = lambda channel: contextlib.nullcontext()
    try:
        shell.colors = "nocolor"  # IPython 9
    except Exception:
        shell.colors = "NoColor"
    shell.InteractiveTB.set_mode(mode="Plain")
    for formatter in (shell.InteractiveTB, shell.SyntaxTB):
        formatter.structured_traceback = python_traceback(formatter)
    show_groups(shell)


def python_traceback(formatter):
    """Give a replacement for IPython's formatting that prints as Python does, until `%xmode` asks for another."""
    original = formatter.structured_traceback

    def structured_traceback(etype=None, evalue=None, etb=None, tb_offset=None, *args, **kwargs):
        if getattr(formatter, "mode", "Plain") != "Plain" or not isinstance(evalue, BaseException):
            return original(etype, evalue, etb, tb_offset, *args, **kwargs)
        skip = getattr(formatter, "tb_offset", 0) if tb_offset is None else tb_offset
        for _ in range(skip):
            etb = getattr(etb, "tb_next", None)
        if isinstance(etb, list):  # of a SyntaxError in the cell itself: there is no stack
            etb = None
        if isinstance(evalue, SyntaxError) and evalue.lineno and not evalue.text:
            evalue.text = linecache.getline(evalue.filename or "", evalue.lineno) or None
        return "".join(traceback.format_exception(etype, evalue, etb)).rstrip("\n").split("\n")

    return structured_traceback


def show_groups(shell):
    """Show exception groups as any other exception: IPython prints them to stderr, its own frames included."""
    group = getattr(builtins, "BaseExceptionGroup", None)
    showtraceback = shell.showtraceback

    def show(exc_tuple=None, filename=None, tb_offset=None, exception_only=False, **kwargs):
        value = (exc_tuple or sys.exc_info())[1]
        if isinstance(value, group) and not exception_only and shell.InteractiveTB.mode == "Plain":
            etype, value, tb = shell._get_exc_info(exc_tuple)
            stb = shell.InteractiveTB.structured_traceback(etype, value, tb, tb_offset=tb_offset)
            shell._showtraceback(etype, value, stb)
        else:
            showtraceback(exc_tuple, filename, tb_offset, exception_only, **kwargs)

    if group is not None:
        shell.showtraceback = show
