"""Whether code that is being typed is a whole cell; pure. As in IPython, Enter runs what is one."""

from __future__ import annotations

import ast
import codeop
import re
import warnings

_INDENT = "    "
_MAGIC = re.compile(r"[%!?]|.*\?$")
_DEDENTS = re.compile(r"\s*(?:return|pass|break|continue|raise)\b")


def next_indent(code: str) -> str | None:
    """Return None if `code` is a whole cell, else what its next line begins with.

    A statement with a block ends with an empty line. Code that is wrong in any case is whole: the kernel says why.
    """
    lines = code.split("\n")
    first, last = lines[0].lstrip(), lines[-1]
    if first.startswith("%%"):  # the magic of a whole cell, which takes any text
        return None if len(lines) > 1 and not last.strip() else ""
    if any(_MAGIC.match(line.strip()) for line in lines):  # no Python, but it may be below `if …:`
        return None if not last.startswith((" ", "\t")) and not _opens(last) else _indent(last)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of code such as `x is 1`: the kernel says it
            whole = _compiler(code, "cell", "exec") is not None
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return None
    if not whole or (last.strip() and _ends_in_block(code)):
        return _indent(last)
    return None


def _compiler(code: str, filename: str, symbol: str) -> object:
    # `await` outside of functions is allowed in cells.
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    return compiler(code, filename, symbol)


def _ends_in_block(code: str) -> bool:
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    return bool(body) and hasattr(body[-1], "body")


def _opens(line: str) -> bool:
    return line.rstrip().endswith((":", "(", "[", "{", ",", "\\"))


def _indent(line: str) -> str:
    """Return the indent of the line that follows."""
    indent = line[: len(line) - len(line.lstrip())]
    if line.rstrip().endswith((":", "(", "[", "{")):
        return indent + _INDENT
    return indent[: -len(_INDENT)] if _DEDENTS.match(line) else indent
