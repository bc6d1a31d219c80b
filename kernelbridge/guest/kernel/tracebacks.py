"""Errors as text, whatever the exception does: part of the program of `hooks.py`, which see.

An exception is the user's object: its `__str__` may raise, never return or give 100 MB, its class may lie about its
name, its attributes may be properties. So it is asked as little as the interpreter asks it, and what is printed is a
stand-in with the same name, text, notes, causes and stack, all of them bounded.
"""

import asyncio
import builtins
import contextlib
import linecache
import sys
import types
from traceback import TracebackException

MESSAGE = 1 << 18  # characters of one exception's text
WHOLE = 1 << 20  # characters of a traceback
LINES = 1000  # of a traceback that are sent one by one; the last one has the rest
FRAMES = 300  # of one exception, at each end
EXCEPTIONS = 100  # of one traceback: causes, contexts, members of groups
GROUP = 16  # members of a group, and groups in each other: one more than Python shows
COUNTED = 10_000  # members of a group that Python counts
NOTES = 100
LINE = 10_000  # characters of a line of source
PATIENCE = 1.5  # seconds that all texts of one exception may take
COMMON = 1000  # Python's own recursion limit: the user may have set one at which no error can be shown
INTERNAL = ("IPython", "ipykernel")  # frames of theirs are not shown above the user's


def real(attribute, owner=BaseException):
    """Give a function that reads an exception's own attribute, and no property of that name."""
    return owner.__dict__[attribute].__get__


cause_of, context_of = real("__cause__"), real("__context__")
suppressed_by, traceback_of, args_of = real("__suppress_context__"), real("__traceback__"), real("args")
names_of = [real(name, type) for name in ("__name__", "__qualname__", "__module__")]


# An interrupt of a task goes by these before it comes to whoever awaits that.
LOOPS = (asyncio.events.Handle._run.__code__, asyncio.base_events.BaseEventLoop._run_once.__code__)


class Described:
    """The name, the text and the traceback of an exception, as text."""

    def __init__(self, name, text, lines):
        self.name = name
        self.text = text
        self.lines = lines


def described(value, tb, stack=True):
    """Describe an exception; never raises an `Exception`."""
    cls = type(value)
    text = text_of(value)
    tb = tb if stack else None
    try:
        keep_cached()
        copies = Copies()
        copy = copies.of(value, tb, text)
        shown = formatted(copy)
        if shown is None:
            shown = formatted_unasked(copies, copy)
        for mark, count in copies.marks.items():
            shown = shown.replace(mark, "  [%d more frames]\n" % count)
    except Exception:
        shown = plainest(cls, text, tb)
    return Described(class_name(cls), sendable(text), parts_of(sendable(cut(shown, WHOLE)).rstrip("\n")))


def parts_of(shown):
    """Split into lines, but not into more than anybody reads: a message of many values costs all who take it."""
    return shown.split("\n", LINES)


def formatted(copy):
    """Format a stand-in as Python does; None if that fails or takes too long.

    For its suggestions Python calls `__dir__` and the like, and for lines of source `get_source` of a loader.
    """
    try:
        with patience():
            return "".join(TracebackException(type(copy), copy, traceback_of(copy)).format())
    except BaseException:
        return None


def formatted_unasked(copies, copy):
    """Format a stand-in without suggestions, and without lines of source that a loader would have to give."""
    for one in copies.made.values():
        for base, attributes in ATTRIBUTES.items():
            if isinstance(one, base):
                for attribute in attributes:
                    setattr(one, attribute, None)
    # Before the lines are read, but after `linecache` has been told of the loaders.
    shown = TracebackException(type(copy), copy, traceback_of(copy), lookup_lines=False)
    lazy = {name: entry for name, entry in linecache.cache.items() if len(entry) == 1}
    linecache.cache.update((name, (0, None, [], name)) for name in lazy)
    try:
        return "".join(shown.format())
    finally:
        linecache.cache.update(lazy)


def class_name(cls):
    return printable(names_of[0](cls))


def text_of(value):
    """`str` of an exception, bounded, with the interpreter's words for one that fails."""
    return cut(str(value), MESSAGE) if is_plain(value) else safely(str, value)


def is_plain(value):
    """Whether an exception has nothing of its own that could fail when somebody asks for its name and text."""
    cls = type(value)
    if getattr(builtins, names_of[0](cls), None) is not cls:
        return False
    return all(
        argument is None or type(argument) in (int, float, bool) or (type(argument) is str and len(argument) < MESSAGE)
        for argument in args_of(value)
    )


def safely(function, value):
    """Call `str` or `repr` for an object of the user's."""
    if type(value) is str:
        return cut(function(value), MESSAGE)
    try:
        with patience():
            # An instance of a subclass of str would still be the user's.
            return cut(str.__str__(function(value)), MESSAGE)
    except BaseException:
        return "<exception %s() failed>" % function.__name__


def cut(text, limit):
    if len(text) <= limit:
        return text
    tail = limit // 4
    return "%s\n[%d characters left out]\n%s" % (text[: limit - tail], len(text) - limit, text[-tail:])


@contextlib.contextmanager
def patience():
    """Let code of the user's that is called here end in time; this needs a signal, so only on the main thread."""
    state = interrupts.state
    if state is None or not state.here():
        yield
        return
    state.hurry(PATIENCE)
    try:
        yield
    finally:
        state.hurried = None


@contextlib.contextmanager
def room():
    """Raise a recursion limit that is too low to show an error."""
    limit = sys.getrecursionlimit()
    if limit >= COMMON:
        yield
        return
    sys.setrecursionlimit(COMMON)
    try:
        yield
    finally:
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(limit)


class Copies:
    """Makes stand-ins for an exception and all that it refers to."""

    def __init__(self):
        self.made = {}  # id: stand-in
        self.order = []  # the exceptions, which keeps their ids theirs
        self.marks = {}  # a line in the place of left out frames: their number

    def of(self, value, tb, text):
        self.make(value, tb, text)
        for one in self.order:  # which grows meanwhile
            copy = self.made[id(one)]
            copy.__cause__, copy.__context__ = self.linked(cause_of(one)), self.linked(context_of(one))
            copy.__suppress_context__ = bool(suppressed_by(one))
        return self.made[id(value)]

    def linked(self, value):
        if value is None or id(value) in self.made or len(self.order) < EXCEPTIONS:
            return None if value is None else self.make(value, traceback_of(value), None)
        return type("...", (Exception,), {"__module__": "builtins"})("earlier exceptions are left out")

    def make(self, value, tb, text, depth=0):
        """Make the stand-in of one exception and, as a group cannot be changed, of its members."""
        if id(value) in self.made:
            return self.made[id(value)]
        self.order.append(value)
        members = [
            self.make(member, traceback_of(member), None, depth + 1)
            if place < GROUP and depth < GROUP and len(self.order) < EXCEPTIONS
            else Exception("left out")
            for place, member in enumerate(members_of(value)[:COUNTED])
        ]
        copy = stand_in(value, text_of(value) if text is None else text, members)
        copy.__traceback__ = self.frames(tb)
        self.made[id(value)] = copy
        return copy

    def frames(self, tb):
        """Give a traceback without frames that are not the user's, and not with all of those of a deep recursion."""
        entries = []
        while tb is not None:
            entries.append(tb)
            tb = tb.tb_next
        shown = [place for place, tb in enumerate(entries) if not is_internal(tb)]
        if entries and not is_ours(entries[-1]):  # IPython itself has failed
            shown += range(max(shown, default=-1) + 1, len(entries))
        entries = [entries[place] for place in shown if not is_ours(entries[place])]
        following = None
        for tb in reversed(entries[-FRAMES:]):
            following = types.TracebackType(following, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)
        before = entries[:-FRAMES]
        if len(before) > FRAMES:
            following = self.marked(len(before) - FRAMES, following)
        for tb in reversed(before[:FRAMES]):
            following = types.TracebackType(following, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)
        return following

    def marked(self, count, following):
        name = "<%d frames>" % count
        self.marks['  File "%s", line 1, in <module>\n' % name] = count
        try:
            exec(compile("raise ValueError", name, "exec"), {})
        except ValueError as exc:
            tb = exc.__traceback__.tb_next
            return types.TracebackType(following, tb.tb_frame, tb.tb_lasti, 1)


def members_of(value):
    group = group_class()
    if group is None or not issubclass(type(value), group):
        return ()
    members = real("exceptions", group)(value)
    return members if type(members) is tuple else tuple(members)


def group_class():
    return getattr(builtins, "BaseExceptionGroup", None)


def is_ours(tb):
    code = tb.tb_frame.f_code
    return code.co_filename == is_ours.__code__.co_filename or code in LOOPS


def is_internal(tb):
    code = tb.tb_frame.f_code
    if is_ours(tb) or str.startswith(code.co_filename, "<decorator-gen"):
        return True
    package = tb.tb_frame.f_globals.get("__name__")
    return type(package) is str and package.partition(".")[0] in INTERNAL


def stand_in(value, text, members):
    """Give an exception that prints as another one does."""
    cls = type(value)
    name, qualname, module = (get(cls) for get in names_of)
    body = {"__str__": lambda self: text, "__qualname__": printable(qualname)}
    body["__module__"] = printable(module) if type(module) is str else "<unknown>"
    if members:
        copy = type(printable(name), (group_class(),), body)("", members)
    else:
        base = next((base for base in ATTRIBUTES if issubclass(cls, base)), Exception)
        copy = type(printable(name), (base,), body)()
        for attribute in ATTRIBUTES.get(base, ()):  # Python makes suggestions of them
            with contextlib.suppress(Exception):  # an older one does not
                found = real(attribute, base)(value)
                if attribute == "obj" or type(found) is str:
                    setattr(copy, attribute, found)
        if base is SyntaxError:
            copy_place(value, copy)
    notes = notes_of(value)
    if notes:
        copy.__notes__ = notes
    return copy


ATTRIBUTES = {
    SyntaxError: (),
    ImportError: ("name", "name_from"),
    AttributeError: ("name", "obj"),
    NameError: ("name",),
}


def printable(name):
    return cut(name, 500).replace("\0", "").encode("utf-8", "replace").decode()


def sendable(text):
    """Replace halves of surrogate pairs, which JSON cannot carry."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def notes_of(value):
    try:
        notes = getattr(value, "__notes__", None)
        if notes is None or type(notes) in (list, tuple):
            return [safely(str, note) for note in (notes or ())[:NOTES]]
        return [safely(repr, notes)]
    except BaseException:
        return []


def copy_place(value, copy):
    """Copy what a SyntaxError says of its place."""
    found = {}
    for name in ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset", "print_file_and_line"):
        with contextlib.suppress(Exception):  # an older Python has not all of them
            found[name] = real(name, SyntaxError)(value)
    message = found.get("msg")
    copy.msg = safely(str, message) if message is not None else None
    filename = found.get("filename")
    copy.filename = filename if type(filename) in (str, CellName) else None
    for name in ("lineno", "end_lineno", "offset", "end_offset"):
        number = found.get(name)
        if type(number) is int and 0 <= number < 1 << 31:
            setattr(copy, name, number)
    text = found.get("text")
    if copy.lineno and (type(copy.filename) is CellName or not text):
        text = source_line(copy.filename or "", copy.lineno) or text
    copy.text = text if type(text) is str and len(text) <= LINE else None
    for name in ("offset", "end_offset"):
        if copy.text is not None and type(getattr(copy, name, None)) is int:
            setattr(copy, name, min(getattr(copy, name), len(copy.text) + 1))


def plainest(cls, text, tb):
    """Give a traceback where nothing else works."""
    lines = []
    while tb is not None:
        if not is_internal(tb):
            code = tb.tb_frame.f_code
            line = source_line(code.co_filename, tb.tb_lineno).strip()
            lines.append('  File "%s", line %d, in %s\n' % (code.co_filename, tb.tb_lineno, code.co_name))
            lines.append("    %s\n" % line if line else "")
        tb = tb.tb_next
    lines = lines[:FRAMES] + lines[-FRAMES:] if len(lines) > 2 * FRAMES else lines
    head = "Traceback (most recent call last):\n" if lines else ""
    return "%s%s%s%s" % (head, "".join(lines), class_name(cls), ": " + text if text else "")


def install_tracebacks(kernel):
    """Show errors as Python shows them, each once; in the reply, the one that has ended the cell."""
    shell = kernel.shell
    try:
        shell.colors = "nocolor"  # IPython 9
    except Exception:
        shell.colors = "NoColor"
    shell.InteractiveTB.set_mode(mode="Plain")
    for formatter in (shell.InteractiveTB, shell.SyntaxTB):
        formatter.structured_traceback = python_traceback(formatter)
    show_plainly(kernel)
    answer_plainly(kernel)


def python_traceback(formatter):
    """Give a replacement for IPython's formatting that prints as Python does, until `%xmode` asks for another."""
    original = formatter.structured_traceback

    def structured_traceback(etype=None, evalue=None, etb=None, tb_offset=None, *args, **kwargs):
        plain = getattr(formatter, "mode", "Plain") == "Plain"
        if not issubclass(type(evalue), BaseException):
            return original(etype, evalue, etb, tb_offset, *args, **kwargs)
        if not plain:
            try:
                return original(etype, evalue, etb, tb_offset, *args, **kwargs)
            except Exception:  # it asks the exception for its text
                pass
        # Of a SyntaxError in the cell itself there is no stack.
        return described(evalue, None if isinstance(etb, list) else etb).lines

    return structured_traceback


def show_plainly(kernel):
    """Replace how IPython shows errors.

    It prints groups to stderr, its own frames included, tells those who exit what to type at its prompt, and asks
    exceptions for their text where nobody expects that to fail.
    """
    from IPython.core import interactiveshell
    from IPython.core.error import UsageError

    shell, warn, showtraceback = kernel.shell, interactiveshell.warn, kernel.shell.showtraceback
    enders = {getattr(type(shell), name).__code__: depth for name, depth in ENDERS}

    def ends_cell(frame):
        """Whether the caller shows what ends the cell itself: what fails in it besides is only output."""
        state = interrupts.state
        if state is None or not state.here() or state.phase is IDLE:
            return False
        while frame.f_code.co_filename == ends_cell.__code__.co_filename:
            frame = frame.f_back
        return enders.get(frame.f_code) == state.depth

    def show(*args, **kwargs):
        limit = sys.getrecursionlimit()
        if limit < COMMON:  # before anything else is called
            sys.setrecursionlimit(COMMON)
        try:
            show_with_room(ends_cell(sys._getframe(1)), *args, **kwargs)
        finally:
            if limit < COMMON:
                with contextlib.suppress(RecursionError):
                    sys.setrecursionlimit(limit)

    def show_with_room(
        final, exc_tuple=None, filename=None, tb_offset=None, exception_only=False, running_compiled_code=False
    ):
        try:
            etype, value, tb = shell._get_exc_info(exc_tuple)
        except ValueError:
            print("No traceback available to show.", file=sys.stderr)
            return
        state = interrupts.state
        if state is not None and value is state.raised:
            if not final:
                return  # it ends the cell yet: nobody but IPython has caught it
            state.raised = None
        if final and state.cancelled and issubclass(etype, asyncio.CancelledError):
            # As `asyncio.run` has it: what was cancelled is only how the interrupt has ended it.
            etype, value, state.raised = KeyboardInterrupt, state.raised or KeyboardInterrupt(), None
            tb = traceback_of(value) or tb
        if etype is UsageError:
            shell.show_usage_error(value)
            told = described(value, None, stack=False)
            told.lines = []
            endings.note(final, value, told)
        elif shell.InteractiveTB.mode != "Plain":
            endings.final = final
            showtraceback(exc_tuple, filename, tb_offset, exception_only)
            endings.final = False
        else:
            # Code that a magic runs is the cell's: a SyntaxError of that has no stack either.
            in_cell = issubclass(etype, SyntaxError) and type(real("filename", SyntaxError)(value)) is CellName
            stack = not in_cell and (running_compiled_code or not issubclass(etype, SyntaxError))
            endings.send(kernel, final, value, rendered(value) or described(value, tb, stack))
            if shell.call_pdb and not issubclass(etype, SyntaxError):
                shell.debugger(force=True)

    def show_syntax_error(filename=None, running_compiled_code=False):
        _, value, tb = shell._get_exc_info()
        with room():
            told = described(value, tb, running_compiled_code)
            endings.send(kernel, ends_cell(sys._getframe(1)), value, told)

    def show_lines(etype, value, stb):
        told = described(value, None, stack=False)
        told.lines = stb
        endings.send(kernel, endings.final, value, told)

    def for_storage(value, filename=None, running_compiled_code=False):
        told = endings.told_of(value) or described(value, traceback_of(value))
        return {"ename": told.name, "evalue": told.text, "traceback": told.lines}

    def warn_but_of_ends(message, category=None, stacklevel=1, **kwargs):
        interrupted = interrupts.state is not None and interrupts.state.raised is not None
        if not str(message).startswith(("To exit: use ",) + (("Unknown failure ",) if interrupted else ())):
            warn(message, category, stacklevel + 1, **kwargs)

    shell.showtraceback, shell.showsyntaxerror, shell._showtraceback = show, show_syntax_error, show_lines
    if hasattr(shell, "_format_exception_for_storage"):
        shell._format_exception_for_storage = for_storage
    interactiveshell.warn = warn_but_of_ends


ENDERS = (("run_cell_async", 0), ("run_ast_nodes", 1), ("run_code", 1))
"""Which methods of IPython show what ends a cell, and how many cells then run."""


def rendered(value):
    """What an exception says itself of how it is shown, as those of ipyparallel do; None if it says nothing of use."""
    try:
        if not hasattr(type(value), "_render_traceback_"):
            return None
        with patience():
            lines = value._render_traceback_()
        if type(lines) is not list or not lines or any(type(line) is not str for line in lines):
            return None
        told = described(value, None, stack=False)
        told.lines = parts_of(cut("\n".join(lines), WHOLE))
        return told
    except (Exception, TooSlow):
        return None


class Endings:
    """What the newest cell has ended with, as far as errors are concerned."""

    def __init__(self):
        self.final = False  # whether what is shown next ends the cell
        self.begin()

    def begin(self):
        self.told = None, None  # the exception that has ended it, and its description
        self.last = None, None  # of what was shown last
        self.value = None  # what IPython says that has ended it

    def told_of(self, value):
        return next((told for seen, told in (self.told, self.last) if seen is value), None)

    def note(self, final, value, told):
        self.last = value, told
        if final:
            self.told = value, told

    def send(self, kernel, final, value, told):
        shell, state = kernel.shell, interrupts.state
        hook = shell.displayhook
        if getattr(hook, "msg", None) is not None and hasattr(shell, "_last_traceback_during_displayhook"):
            # It fails the cell, though that goes on.
            shell._last_traceback_during_displayhook = True
            final = final or (state is not None and state.here() and state.depth == 1)
        self.note(final, value, told)
        content = {"traceback": told.lines, "ename": told.name, "evalue": told.text}
        if final:
            content["kernelbridge_final"] = True
        if final or state is None:
            shell._last_traceback = told.lines
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except Exception:  # it is the user's, or none
                pass
        topic = hook.topic.replace(b"execute_result", b"error") if hook.topic else None
        hook.session.send(hook.pub_socket, "error", content, hook.parent_header, ident=topic)


endings = Endings()


def answer_plainly(kernel):
    """Let the reply tell what has ended the cell, and let there be one whatever fails."""
    do_execute, shell = kernel.do_execute, kernel.shell
    trigger = shell.events.trigger

    def trigger_and_replace(event, *args, **kwargs):
        trigger(event, *args, **kwargs)
        state = interrupts.state
        if event == ("post_execute" if state.silent else "post_run_cell") and state.here() and not state.depth:
            # Behind all who look at the result; the kernel asks it for names and texts next.
            for name in ("error_in_exec", "error_before_exec"):
                value = getattr(state.result, name, None)
                if value is not None:
                    endings.value = value
                    if not is_plain(value):
                        setattr(state.result, name, Exception())

    async def answer(*args, **kwargs):
        state = interrupts.state
        if not state.here():
            return await do_execute(*args, **kwargs)
        endings.begin()
        state.silent, state.result = bool(kwargs.get("silent")), None
        shell._last_traceback = None
        if hasattr(shell, "_last_traceback_during_displayhook"):  # of an earlier cell, if this one awaits
            shell._last_traceback_during_displayhook = False
        try:
            reply = await do_execute(*args, **kwargs)
        except Exception as exc:
            endings.value = exc
            reply = {"status": "error", "user_expressions": {}, "payload": shell.payload_manager.read_payload()}
            reply["execution_count"] = shell.execution_count - 1
            shell.payload_manager.clear_payload()
        if state.was_swallowed():  # by what IPython calls at the end of a cell
            endings.value, state.raised = state.raised, None
            reply["status"] = "error"
        if reply["status"] == "error":
            told = endings.told[1]
            if told is None:  # it has not been shown, or it is one of a display
                value = endings.value
                told = endings.last[1] if value is None else described(value, traceback_of(value))
            if told is not None:
                reply.update({"ename": told.name, "evalue": told.text, "traceback": told.lines})
        state.result = None
        return reply

    if interrupts.state is not None:
        shell.events.trigger, kernel.do_execute = trigger_and_replace, answer
