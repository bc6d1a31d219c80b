"""Names of cells and tracebacks: part of the program of `hooks.py`, which see.

Code is compiled under the request's file name, and errors are shown as Python shows them.
"""

import ast
import builtins
import codeop
import contextlib
import inspect
import linecache
import sys
import traceback
import warnings
from collections import deque

SOURCES = 32 << 20  # characters of old cells kept for tracebacks and inspect; the oldest go first
MAGIC_NAMES = ("<timed exec>", "<timed eval>", "<magic-timeit>", "<magic-timeit-setup>", "<magic-timeit-stmt>")
NO_FILE = "/dev/null/cell"  # nothing can have this path, as /dev/null is no directory


class CellName(str):
    """A file name that equals its text, yet is another key than any other cell's.

    So several cells of one name keep their own source in `linecache`. Pickles as plain text;
    `marshal` refuses it.
    """

    __slots__ = ("skipped",)  # lines before its source: empty ones, which IPython removes, and those before a piece

    def __eq__(self, other):
        return self is other if type(other) is CellName else str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other

    # Of the pointer, and in C: tracemalloc hashes names where no Python code may run.
    __hash__ = object.__hash__

    def __reduce__(self):
        return (str, (str.__str__(self),))


def install_names(kernel):
    compiler = kernel.shell.compile
    cached = deque()
    kept = [0]
    format_code_name = getattr(compiler, "format_code_name", None)

    def cell_name():
        metadata = parent_of(kernel).get("metadata") or {}
        return (metadata.get("kernelbridge") or {}).get("filename")

    def keep(source, filename, skipped):
        name = CellName(filename)
        name.skipped = skipped
        linecache.cache[name] = (
            len(source),
            None,  # no file, so `checkcache` leaves it alone
            ["\n"] * name.skipped + [line + "\n" for line in source.splitlines()],
            name,
        )
        cached.append(name)
        kept[0] += len(source)
        while kept[0] > SOURCES and len(cached) > 1:
            kept[0] -= (linecache.cache.pop(cached.popleft(), None) or (0,))[0]
        return name

    def cache(transformed_code, number=0, raw_code=None):
        filename = cell_name()
        if not filename:
            return type(compiler).cache(compiler, transformed_code, number, raw_code)
        # A magic such as `%%capture` runs the rest of its cell as another cell.
        before = lines_before(raw_code or "", requested())
        if before is None:
            before = empty_lines(raw_code or "")
        return keep(transformed_code, filename, before - empty_lines(transformed_code))

    def requested():
        return (parent_of(kernel).get("content") or {}).get("code") or ""

    def piece_name(source):
        filename = cell_name()
        before = lines_before(source, requested()) if filename else None
        return None if before is None else keep(source, filename, before)

    def ast_parse(source, filename="<unknown>", symbol="exec"):
        if filename != "<unknown>":
            return parse(source, filename, symbol)
        name = piece_name(source)
        tree = parse(source, name or filename, symbol)
        for node in ast.walk(tree):
            if hasattr(node, "lineno"):  # others, such as `ast.Load()`, are one object in all trees
                node.piece = name
        return tree

    def parse(source, filename, symbol):
        if type(filename) is CellName:
            source = "\n" * filename.skipped + source
        try:
            return type(compiler).ast_parse(compiler, source, filename, symbol)
        except SyntaxError as error:
            if type(filename) is CellName:
                quote_cell(error, source, symbol)
            raise

    def quote_cell(error, source, symbol):
        # Python has quoted the file of that name, if there is one, and has counted the columns in its line.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                type(compiler).ast_parse(compiler, source, NO_FILE, symbol)
        except SyntaxError as again:
            if len(again.args) > 1:
                error.__init__(again.msg, (error.filename,) + tuple(again.args[1][1:]))

    def format_name(name):
        if type(name) is CellName:
            return "File", str.__str__(name)
        return format_code_name(name) if format_code_name is not None else None

    # The wording for a prompt that waits for more ("incomplete input") is no use for a whole cell.
    compiler.flags &= ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
    compiler.cache = cache
    compiler.ast_parse = ast_parse
    compiler.format_code_name = format_name
    compiler.__class__ = compiler_class(type(compiler))


def install_lines(kernel):
    """Keep the lines of a cell where they are, also behind a `!command` or magic that goes on over several."""
    manager = kernel.shell.input_transformer_manager

    def in_place(base):
        class Transformer(base):
            def transform(self, lines):
                changed = base.transform(self, lines)
                behind = self.start_line + 1
                if behind < len(changed):
                    changed[behind:behind] = ["\n"] * (len(lines) - len(changed))
                return changed

        Transformer.__module__ = base.__module__
        Transformer.__qualname__ = Transformer.__name__ = base.__name__
        return Transformer

    manager.token_transformers = [in_place(base) for base in manager.token_transformers]


def compiler_class(base):
    """Give a compiler that compiles what a magic parsed under the name of its cell, not under one like "<timed exec>"."""

    class Compiler(base):
        def __call__(self, source, filename, *args, **kwargs):
            if filename in MAGIC_NAMES and isinstance(source, ast.AST):
                pieces = {getattr(node, "piece", None) for node in ast.walk(source)} - {None}
                # `%%timeit` has two, and the one in its first line matters less.
                filename = max(pieces, key=lambda name: name.skipped, default=filename)
            return base.__call__(self, source, filename, *args, **kwargs)

    Compiler.__module__ = base.__module__
    Compiler.__qualname__ = Compiler.__name__ = base.__name__
    return Compiler


def lines_before(piece, code):
    """Count the lines of a request before a piece of it that has been taken out; None if it is not found."""
    piece = piece.strip()
    if piece and code.count(piece) == 1:
        return code.count("\n", 0, code.index(piece))
    if piece and code.lstrip().startswith("%%"):
        # The rest of a cell, perhaps with magics in it that have been translated since, each in its line.
        return max(0, code.rstrip().count("\n") - piece.count("\n"))
    return None


def empty_lines(code):
    """Count the empty lines that code starts with."""
    code = code[: len(code) - len(code.lstrip())]
    return code.count("\n")


def install_sources(kernel):
    """Let `inspect` find classes: it asks the module's file for them, and `__main__` has none."""
    getfile = inspect.getfile

    def getfile_or_cell(object):
        if isinstance(object, type) and object.__module__ == "__main__":
            name = cell_of(object)
            if name is not None:
                return name
        return getfile(object)

    getfile_or_cell.__name__ = getfile_or_cell.__qualname__ = "getfile"
    getfile_or_cell.__doc__, getfile_or_cell.__module__ = getfile.__doc__, getfile.__module__
    inspect.getfile = getfile_or_cell


def cell_of(cls):
    """Give the name of the cell that defines a class, or None.

    Its methods know their cell. Without any it is the newest cell that defines a class of that name, at
    that line (Python 3.13 and later), with the fewest differences.
    """
    methods = [getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(cls).values()]
    for method in methods:
        if str(getattr(method, "__qualname__", "")).startswith(cls.__qualname__ + "."):
            name = getattr(getattr(inspect.unwrap(method), "__code__", None), "co_filename", None)
            if type(name) is CellName:
                return name if name in linecache.cache else None
    line = vars(cls).get("__firstlineno__")
    best, least = None, None
    for name in reversed(list(linecache.cache)):
        text = "".join(linecache.getlines(name)) if type(name) is CellName else ""
        if "class" not in text or cls.__name__ not in text:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except SyntaxError:
            continue
        for qualname, node in classes(tree):
            first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
            if qualname == cls.__qualname__ and line in (None, first):
                count = differences(cls, node)
                if least is None or count < least:
                    best, least = name, count
    return best


def classes(node, prefix=""):
    """Yield the classes that code defines, as (qualified name, syntax tree)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, child
            yield from classes(child, prefix + child.name + ".")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from classes(child, prefix + child.name + ".<locals>.")
        elif not isinstance(child, ast.expr):
            yield from classes(child, prefix)


def differences(cls, node):
    """Count what in a class is not as that definition says."""
    try:
        annotations = dict(cls.__annotations__)
    except Exception:  # names that annotations use may be undefined
        annotations = {}
    values = dict(vars(cls))
    names, count = set(), 0
    for statement in node.body:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", statement)]
        found = {getattr(target, "id", getattr(target, "name", None)) for target in targets} - {None}
        names |= found
        value = getattr(statement, "value", None)
        annotation = getattr(statement, "annotation", None)
        for name in found:
            if isinstance(value, ast.Constant) and type(values.get(name)) is type(value.value):
                count += values[name] != value.value
            if isinstance(annotation, ast.Name) and name in annotations:
                count += getattr(annotations[name], "__name__", annotations[name]) != annotation.id
    doc = str(vars(cls).get("__doc__") or "")
    if not doc.startswith(cls.__name__ + "("):  # what a dataclass says of itself
        count += inspect.cleandoc(doc) != (ast.get_docstring(node) or "")
    has = set(values) | set(annotations)
    return count + len(names - has) + len({name for name in has - names if not name.startswith("_")})


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
    show_all(shell)


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
        if isinstance(evalue, SyntaxError) and evalue.lineno and (type(evalue.filename) is CellName or not evalue.text):
            evalue.text = linecache.getline(evalue.filename or "", evalue.lineno) or evalue.text
        shown = traceback.TracebackException(etype, evalue, etb)
        hide_hooks(shown)
        return "".join(shown.format()).rstrip("\n").split("\n")

    return structured_traceback


def hide_hooks(shown):
    """Remove the frames of this program from a `TracebackException`."""
    hooks = hide_hooks.__code__.co_filename
    while shown is not None:
        shown.stack[:] = [frame for frame in shown.stack if frame.filename != hooks]
        shown = shown.__cause__ or shown.__context__


def show_all(shell):
    """Show groups and exits as any other exception.

    IPython prints groups to stderr, its own frames included, and tells those who exit what to type at its prompt.
    """
    from IPython.core import interactiveshell

    group = getattr(builtins, "BaseExceptionGroup", ())
    showtraceback = shell.showtraceback
    warn = interactiveshell.warn

    def has_group(value):
        while value is not None and not isinstance(value, group):
            value = value.__context__
        return value is not None

    def show(exc_tuple=None, filename=None, tb_offset=None, exception_only=False, **kwargs):
        value = (exc_tuple or sys.exc_info())[1]
        if isinstance(value, SystemExit):
            exception_only = False
        if has_group(value) and not isinstance(value, SyntaxError) and shell.InteractiveTB.mode == "Plain":
            etype, value, tb = shell._get_exc_info(exc_tuple)
            stb = shell.InteractiveTB.structured_traceback(etype, value, tb, tb_offset=tb_offset)
            shell._showtraceback(etype, value, stb)
        else:
            showtraceback(exc_tuple, filename, tb_offset, exception_only, **kwargs)

    def warn_but_of_exits(message, category=None, stacklevel=1, **kwargs):
        if not str(message).startswith("To exit: use "):
            warn(message, category, stacklevel + 1, **kwargs)

    shell.showtraceback = show
    interactiveshell.warn = warn_but_of_exits
