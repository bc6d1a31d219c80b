"""File names and sources of cells: part of the hooks, see `hooks.py`.

Code is compiled under the file name of its request, with the line numbers of the request.
"""

import ast
import bdb
import codeop
import functools
import inspect
import linecache
import warnings

SOURCES = 32 << 20  # characters of cells kept for tracebacks and `inspect`; the oldest are removed first
MAGIC_NAMES = ("<timed exec>", "<timed eval>", "<magic-timeit>", "<magic-timeit-setup>", "<magic-timeit-stmt>")
NO_FILE = "/dev/null/cell"  # no file can have this path, because /dev/null is no directory


class CellName(str):
    """A file name that equals its text, but not the name of another cell, and is a dictionary key of its own.

    So cells of the same name keep their own sources in `linecache`. It is pickled as plain text; `marshal` refuses it.
    """

    # Number of lines before its source: empty ones, which IPython removes, and those before a piece.
    __slots__ = ("skipped",)

    def __eq__(self, other):
        return self is other if type(other) is CellName else str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other

    # A hash of the pointer, in C: tracemalloc hashes names where no Python code may run.
    __hash__ = object.__hash__

    def __reduce__(self):
        return (str, (str.__str__(self),))


sources = {}  # name of a cell: its entry in `linecache.cache`; the oldest first


def keep_cached():
    """Put the sources of cells back into `linecache`, if user code has cleared that."""
    if sources and next(iter(sources)) not in linecache.cache:
        linecache.cache.update(sources)


def source_line(filename, number):
    """Return a line of source, or an empty text; lines of cells do not depend on `linecache`."""
    try:
        if type(filename) is CellName:
            return sources[filename][2][number - 1]
        lazy = len(linecache.cache.get(filename, ())) == 1  # to be read by a loader, which may be user code
        return "" if lazy else linecache.getline(filename, number)
    except Exception:  # there may be no such line, and user code may have changed `linecache`
        return ""


def install_names(kernel):
    compiler = kernel.shell.compile
    kept = [0]
    format_code_name = getattr(compiler, "format_code_name", None)

    def cell_name():
        metadata = parent_of(kernel).get("metadata") or {}
        return (metadata.get("kernelbridge") or {}).get("filename")

    def keep(source, filename, skipped):
        name = CellName(filename)
        name.skipped = skipped
        # Without a modification time, `checkcache` keeps it.
        linecache.cache[name] = sources[name] = (len(source), None, ["\n"] * name.skipped + lines_of(source), name)
        kept[0] += len(source)
        while kept[0] > SOURCES and len(sources) > 1:
            oldest = next(iter(sources))
            linecache.cache.pop(oldest, None)
            kept[0] -= sources.pop(oldest)[0]
        keep_cached()
        return name

    def cache(transformed_code, number=0, raw_code=None):
        filename = cell_name()
        if not filename:
            return type(compiler).cache(compiler, transformed_code, number, raw_code)
        # The code may be a piece of the request: a magic such as `%%capture` runs the rest of its cell as another cell.
        raw_code = with_newlines(raw_code or "")
        before = lines_before(raw_code, requested())
        if before is None:
            before = empty_lines(raw_code)
        return keep(transformed_code, filename, before - empty_lines(transformed_code))

    def requested():
        return with_newlines((parent_of(kernel).get("content") or {}).get("code") or "")

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
            if hasattr(node, "lineno"):  # other nodes, such as `ast.Load()`, are shared by all trees
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
        # Python has quoted the file of that name, if there is one, and has counted columns in its line.
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

    # Without this flag Python does not say "incomplete input", which is for a prompt that waits for more lines.
    compiler.flags &= ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
    compiler.cache = cache
    compiler.ast_parse = ast_parse
    compiler.format_code_name = format_name
    compiler.__class__ = compiler_class(type(compiler))


def install_lines(kernel):
    """Keep the line numbers of a cell right, also after a `!command` or magic of several lines."""
    manager = kernel.shell.input_transformer_manager

    def in_place(base):
        class Transformer(base):
            def transform(self, lines):
                changed = base.transform(self, lines)
                after = self.start_line + 1
                if after < len(changed):
                    changed[after:after] = ["\n"] * (len(lines) - len(changed))
                return changed

        Transformer.__module__ = base.__module__
        Transformer.__qualname__ = Transformer.__name__ = base.__name__
        return Transformer

    def python_lines(lines):
        return lines_of("".join(lines))

    manager.token_transformers = [in_place(base) for base in manager.token_transformers]
    # Before and after IPython's own transformations, which split lines as `str.splitlines` does.
    manager.cleanup_transforms[:] = [python_lines] + manager.cleanup_transforms + [python_lines]


def with_newlines(code):
    """Return code with all of Python's line ends as newlines."""
    return code.replace("\r\n", "\n").replace("\r", "\n") if "\r" in code else code


def lines_of(code):
    """Return the lines of code as Python splits it: only at newlines. Each line ends with one."""
    lines = with_newlines(code).split("\n")
    last = lines.pop()
    return [line + "\n" for line in lines] + ([last + "\n"] if last else [])


def compiler_class(base):
    """Return a class of compilers that compile the code of a magic under its cell's name, not as "<timed exec>"."""

    class Compiler(base):
        def __call__(self, source, filename, *args, **kwargs):
            if filename in MAGIC_NAMES and isinstance(source, ast.AST):
                pieces = {getattr(node, "piece", None) for node in ast.walk(source)} - {None}
                # `%%timeit` has two pieces, and the one in its first line matters less.
                filename = max(pieces, key=lambda name: name.skipped, default=filename)
            return base.__call__(self, source, filename, *args, **kwargs)

    Compiler.__module__ = base.__module__
    Compiler.__qualname__ = Compiler.__name__ = base.__name__
    return Compiler


def lines_before(piece, code):
    """Return the number of lines of a request before a piece of it, or None if the piece is not found."""
    piece = piece.strip()
    if piece and code.count(piece) == 1:
        return code.count("\n", 0, code.index(piece))
    if piece and code.lstrip().startswith("%%"):
        # The rest of a cell. Magics in it may have been translated, each in its line.
        return max(0, code.rstrip().count("\n") - piece.count("\n"))
    return None


def empty_lines(code):
    """Return the number of empty lines at the start of code."""
    code = code[: len(code) - len(code.lstrip())]
    return code.count("\n")


def install_sources(kernel):
    """Let `inspect` find classes, which it seeks in the file of their module, but `__main__` has no file.

    And let debuggers find cells: they look for sources under absolute paths, and no cell has one.
    """
    canonic, getfile = bdb.Bdb.canonic, inspect.getfile

    @functools.wraps(canonic)
    def canonic_or_cell(self, filename):
        return filename if type(filename) is CellName else canonic(self, filename)

    @functools.wraps(getfile)
    def getfile_or_cell(object):
        if isinstance(object, type) and object.__module__ == "__main__":
            name = cell_of(object)
            if name is not None:
                return name
        return getfile(object)

    bdb.Bdb.canonic, inspect.getfile = canonic_or_cell, getfile_or_cell


def cell_of(cls):
    """Return the name of the cell that defines a class, or None.

    Its methods know their cell. For a class without methods it is the newest cell that defines a class of that name,
    from Python 3.13 on at the same line.
    """
    methods = [getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(cls).values()]
    for method in methods:
        if str(getattr(method, "__qualname__", "")).startswith(cls.__qualname__ + "."):
            name = getattr(getattr(inspect.unwrap(method), "__code__", None), "co_filename", None)
            if type(name) is CellName:
                return name if name in linecache.cache else None
    line = vars(cls).get("__firstlineno__")
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
                return name
    return None


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


def parent_of(kernel):
    """Return the request that is being handled."""
    try:
        return kernel.get_parent("shell")
    except TypeError:
        return kernel.get_parent()
