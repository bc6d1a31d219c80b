"""Errors as text, whatever methods the exception has: part of the hooks, see `hooks.py`.

An exception is an object of user code. Its `__str__` may raise, never return, or return 100 MB, its class may report
another name, and its attributes may be properties. So no more of its methods are called than the interpreter calls. A
stand-in is printed with the same name, text, notes, causes and stack, all of them bounded.
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
LINES = 1000  # lines of a traceback that are sent separately; the last element has the rest
FRAMES = 300  # frames of one exception, at each end of its stack
EXCEPTIONS = 100  # exceptions of one traceback: causes, contexts, members of groups
GROUP = 16  # members of a group, and levels of groups: one more than Python shows
COUNTED = 10_000  # members of a group that Python counts
NOTES = 100  # notes of one exception
LINE = 10_000  # characters of a line of source
TEXT_SECONDS = 1.5  # time limit of user code that is called for a text
COMMON = 1000  # Python's default recursion limit; with a low one of user code no error can be shown
INTERNAL = ("IPython", "ipykernel")  # frames of theirs are not shown above the user's


def own_attribute(attribute, owner=BaseException):
    """Return a function that reads an attribute of the base class, even if a subclass has a property of that name."""
    return owner.__dict__[attribute].__get__


cause_of, context_of = own_attribute("__cause__"), own_attribute("__context__")
suppressed_by, traceback_of, args_of = (
    own_attribute("__suppress_context__"),
    own_attribute("__traceback__"),
    own_attribute("args"),
)
names_of = [own_attribute(name, type) for name in ("__name__", "__qualname__", "__module__")]


# Frames of the event loop in the traceback of an interrupted task.
LOOPS = (asyncio.events.Handle._run.__code__, asyncio.base_events.BaseEventLoop._run_once.__code__)


class Described:
    """The name, the text and the traceback of an exception, as text."""

    def __init__(self, name, text, lines):
        self.name = name
        self.text = text
        self.lines = lines


def described(value, tb, stack=True):
    """Return the `Described` of an exception; `stack` says whether it shows its stack. Never raises an `Exception`."""
    cls = type(value)
    text = text_of(value)
    tb = tb if stack else None
    try:
        keep_cached()
        copies = Copies()
        copy = copies.of(value, tb, text)
        shown = formatted(copy) or plainest(cls, text, tb)
        for mark, count in copies.marks.items():
            shown = shown.replace(mark, "  [%d more frames]\n" % count)
    except Exception:  # the user's memory, recursion or objects may make anything fail
        shown = plainest(cls, text, tb)
    return Described(class_name(cls), sendable(text), parts_of(sendable(cut(shown, WHOLE)).rstrip("\n")))


def parts_of(shown):
    """Split into at most `LINES` lines and a rest: a message of very many values is slow to read."""
    return shown.split("\n", LINES)


def formatted(copy):
    """Format a stand-in as Python does. Return None if that fails or takes too long.

    For suggestions Python calls `__dir__` and the like of user code, and for lines of source a loader's `get_source`.
    """
    try:
        with time_limit(always=True):
            return "".join(TracebackException(type(copy), copy, traceback_of(copy)).format())
    except BaseException:  # methods of user code that this calls may raise anything
        return None


def class_name(cls):
    return printable(names_of[0](cls))


def text_of(value):
    """Return the bounded `str` of an exception; if that fails, the interpreter's text for it."""
    return cut(str(value), MESSAGE) if is_plain(value) else safe_text(str, value)


def is_plain(value):
    """Whether the name and the text of an exception need no code of the user."""
    cls = type(value)
    if getattr(builtins, names_of[0](cls), None) is not cls:
        return False
    return all(
        argument is None or type(argument) in (int, float, bool) or (type(argument) is str and len(argument) < MESSAGE)
        for argument in args_of(value)
    )


def safe_text(function, value, kind="exception"):
    """Return the bounded `str` or `repr` of an object of user code."""
    if type(value) is str:
        return cut(function(value), MESSAGE)
    try:
        with time_limit():
            # The result may be an instance of the user's subclass of str.
            return cut(str.__str__(function(value)), MESSAGE)
    except BaseException:  # user code may raise anything
        return "<%s %s() failed>" % (kind, function.__name__)


def cut(text, limit):
    if len(text) <= limit:
        return text
    tail = limit // 4
    return "%s\n[%d characters left out]\n%s" % (text[: limit - tail], len(text) - limit, text[-tail:])


@contextlib.contextmanager
def time_limit(always=False):
    """Limit the time of user code that is called for a text. It needs a signal, so it works only on the main thread."""
    state = interrupts.state
    if state is None or not state.on_main_thread():
        yield
        return
    state.start_time_limit(TEXT_SECONDS, always)
    try:
        yield
    finally:
        state.limited_call = None


@contextlib.contextmanager
def recursion_room():
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
    """Makes stand-ins for an exception and all exceptions that it refers to."""

    def __init__(self):
        self.made = {}  # id of an exception: its stand-in
        self.order = []  # the exceptions; their ids stay unique because this keeps them alive
        self.marks = {}  # a line in the place of frames that are left out: their number

    def of(self, value, tb, text):
        self.make(value, tb, text)
        for one in self.order:  # `linked` appends to it
            copy = self.made[id(one)]
            copy.__cause__, copy.__context__ = self.linked(cause_of(one)), self.linked(context_of(one))
            copy.__suppress_context__ = bool(suppressed_by(one))
        return self.made[id(value)]

    def linked(self, value):
        if value is None or id(value) in self.made or len(self.order) < EXCEPTIONS:
            return None if value is None else self.make(value, traceback_of(value), None)
        return type("...", (Exception,), {"__module__": "builtins"})("earlier exceptions are left out")

    def make(self, value, tb, text, depth=0):
        """Return the stand-in of one exception; for a group it makes those of its members first."""
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
        """Return a traceback with only the frames of user code, and only part of a deep recursion."""
        entries = []
        while tb is not None:
            entries.append(tb)
            tb = tb.tb_next
        shown = [place for place, tb in enumerate(entries) if not is_internal(tb)]
        if entries and not is_ours(entries[-1]):  # the error was raised in IPython
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
    members = own_attribute("exceptions", group)(value)
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
    """Return a new exception that is printed like another one."""
    cls = type(value)
    name, qualname, module = (get(cls) for get in names_of)
    body = {"__str__": lambda self: text, "__qualname__": printable(qualname)}
    body["__module__"] = printable(module) if type(module) is str else "<unknown>"
    if members:
        copy = type(printable(name), (group_class(),), body)("", members)
    else:
        base = next((base for base in ATTRIBUTES if issubclass(cls, base)), Exception)
        copy = type(printable(name), (base,), body)()
        for attribute in ATTRIBUTES.get(base, ()):  # Python uses them for suggestions
            with contextlib.suppress(Exception):  # older versions have fewer attributes
                found = own_attribute(attribute, base)(value)
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
    """Replace halves of surrogate pairs, which JSON cannot encode."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def notes_of(value):
    try:
        notes = getattr(value, "__notes__", None)
        if notes is None or type(notes) in (list, tuple):
            return [safe_text(str, note) for note in (notes or ())[:NOTES]]
        return [safe_text(repr, notes)]
    except BaseException:  # `__notes__` may be a property that raises anything
        return []


def copy_place(value, copy):
    """Copy the location of a SyntaxError."""
    found = {}
    for name in ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset", "print_file_and_line"):
        with contextlib.suppress(Exception):  # older versions have fewer attributes
            found[name] = own_attribute(name, SyntaxError)(value)
    message = found.get("msg")
    copy.msg = safe_text(str, message) if message is not None else None
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
    """Return a simple traceback, if everything else has failed."""
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
    """Show errors as Python shows them, each once; the reply has the error that ended the cell."""
    shell = kernel.shell
    try:
        shell.colors = "nocolor"  # IPython 9
    except Exception:  # IPython 8 has another name for it
        shell.colors = "NoColor"
    shell.InteractiveTB.set_mode(mode="Plain")
    for formatter in (shell.InteractiveTB, shell.SyntaxTB):
        formatter.structured_traceback = python_traceback(formatter)
    show_plainly(kernel)
    answer_plainly(kernel)


def python_traceback(formatter):
    """Return a substitute of IPython's formatting that formats as Python does, unless `%xmode` selects another mode."""
    original = formatter.structured_traceback

    def structured_traceback(etype=None, evalue=None, etb=None, tb_offset=None, *args, **kwargs):
        plain = getattr(formatter, "mode", "Plain") == "Plain"
        if not issubclass(type(evalue), BaseException):
            return original(etype, evalue, etb, tb_offset, *args, **kwargs)
        if not plain:
            try:
                return original(etype, evalue, etb, tb_offset, *args, **kwargs)
            except Exception:  # it calls methods of the exception, which may fail
                pass
        # A SyntaxError of the cell itself has no stack.
        return described(evalue, None if isinstance(etb, list) else etb).lines

    return structured_traceback


def show_plainly(kernel):
    """Replace the way in which IPython shows errors.

    IPython prints groups to stderr with its own frames, tells a user who calls `exit()` what to type at its prompt, and
    calls methods of exceptions where it does not expect them to fail.
    """
    from IPython.core import interactiveshell
    from IPython.core.error import UsageError

    shell, warn, showtraceback = kernel.shell, interactiveshell.warn, kernel.shell.showtraceback
    enders = {getattr(type(shell), name).__code__: depth for name, depth in ENDERS}

    def ends_cell(frame):
        """Whether the caller shows the error that ends the cell itself; other errors are only output."""
        state = interrupts.state
        if state is None or not state.on_main_thread() or state.phase is IDLE:
            return False
        while frame.f_code.co_filename == ends_cell.__code__.co_filename:
            frame = frame.f_back
        return enders.get(frame.f_code) == state.depth

    def show(*args, **kwargs):
        limit = sys.getrecursionlimit()
        if limit < COMMON:  # before any other call
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
                return  # only IPython has caught it, so it will end the cell
            state.raised = None
        if final and state.cancelled and issubclass(etype, asyncio.CancelledError):
            # As in `asyncio.run`, the cancellation was only the way in which the interrupt ended the task.
            etype, value, state.raised = KeyboardInterrupt, state.raised or KeyboardInterrupt(), None
            tb = traceback_of(value) or tb
        if etype is UsageError:
            shell.show_usage_error(value)
            description = described(value, None, stack=False)
            description.lines = []
            endings.note(final, value, description)
        elif shell.InteractiveTB.mode != "Plain":
            endings.final = final
            showtraceback(exc_tuple, filename, tb_offset, exception_only)
            endings.final = False
        else:
            # Code that a magic runs belongs to the cell: its SyntaxError has no stack either.
            in_cell = issubclass(etype, SyntaxError) and type(own_attribute("filename", SyntaxError)(value)) is CellName
            stack = not in_cell and (running_compiled_code or not issubclass(etype, SyntaxError))
            endings.send(kernel, final, value, self_rendered(value) or described(value, tb, stack))
            if shell.call_pdb and not issubclass(etype, SyntaxError):
                shell.debugger(force=True)

    def show_syntax_error(filename=None, running_compiled_code=False):
        _, value, tb = shell._get_exc_info()
        with recursion_room():
            description = described(value, tb, running_compiled_code)
            endings.send(kernel, ends_cell(sys._getframe(1)), value, description)

    def show_lines(etype, value, stb):
        description = described(value, None, stack=False)
        description.lines = stb
        endings.send(kernel, endings.final, value, description)

    def for_storage(value, filename=None, running_compiled_code=False):
        description = endings.description_of(value) or described(value, traceback_of(value))
        return {"ename": description.name, "evalue": description.text, "traceback": description.lines}

    def warn_selectively(message, category=None, stacklevel=1, **kwargs):
        interrupted = interrupts.state is not None and interrupts.state.raised is not None
        if not str(message).startswith(("To exit: use ",) + (("Unknown failure ",) if interrupted else ())):
            warn(message, category, stacklevel + 1, **kwargs)

    shell.showtraceback, shell.showsyntaxerror, shell._showtraceback = show, show_syntax_error, show_lines
    if hasattr(shell, "_format_exception_for_storage"):
        shell._format_exception_for_storage = for_storage
    interactiveshell.warn = warn_selectively


ENDERS = (("run_cell_async", 0), ("run_ast_nodes", 1), ("run_code", 1))
"""Methods of IPython that show the error that ends a cell, with the number of nested cells at that time."""


def self_rendered(value):
    """Return the `Described` of an exception that formats itself, as those of ipyparallel do; else None."""
    try:
        if not hasattr(type(value), "_render_traceback_"):
            return None
        with time_limit():
            lines = value._render_traceback_()
        if type(lines) is not list or not lines or any(type(line) is not str for line in lines):
            return None
        description = described(value, None, stack=False)
        description.lines = parts_of(cut("\n".join(lines), WHOLE))
        return description
    except (Exception, TooSlow):  # its method may raise anything, or take too long
        return None


class Endings:
    """The errors of the newest cell."""

    def __init__(self):
        self.final = False  # whether the error that is shown next ends the cell
        self.begin()

    def begin(self):
        self.shown = None, None  # the exception that has ended it, and its description
        self.last = None, None  # the same of the error that was shown last
        self.value = None  # the exception that has ended it according to IPython

    def description_of(self, value):
        return next((description for seen, description in (self.shown, self.last) if seen is value), None)

    def note(self, final, value, description):
        self.last = value, description
        if final:
            self.shown = value, description

    def send(self, kernel, final, value, description):
        """Publish an error; `final` says whether it ends the cell."""
        shell, state = kernel.shell, interrupts.state
        hook = shell.displayhook
        if getattr(hook, "msg", None) is not None and hasattr(shell, "_last_traceback_during_displayhook"):
            # It makes the cell fail, but the cell continues.
            shell._last_traceback_during_displayhook = True
            final = final or (state is not None and state.on_main_thread() and state.depth == 1)
        self.note(final, value, description)
        content = {"traceback": description.lines, "ename": description.name, "evalue": description.text}
        if final:
            content["kernelbridge_final"] = True
        if final or state is None:
            shell._last_traceback = description.lines
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except Exception:  # it may be an object of the user, or None
                pass
        topic = hook.topic.replace(b"execute_result", b"error") if hook.topic else None
        hook.session.send(hook.pub_socket, "error", content, hook.parent_header, ident=topic)


endings = Endings()


def answer_plainly(kernel):
    """Put the error that ended the cell into the reply, and reply whatever fails."""
    do_execute, shell = kernel.do_execute, kernel.shell
    trigger = shell.events.trigger

    def trigger_and_replace(event, *args, **kwargs):
        trigger(event, *args, **kwargs)
        state = interrupts.state
        if (
            event == ("post_execute" if state.silent else "post_run_cell")
            and state.on_main_thread()
            and not state.depth
        ):
            # After all event callbacks; next, the kernel takes name and text of the error from the result.
            for name in ("error_in_exec", "error_before_exec"):
                value = getattr(state.result, name, None)
                if value is not None:
                    endings.value = value
                    if not is_plain(value):
                        setattr(state.result, name, Exception())

    async def answer(*args, **kwargs):
        state = interrupts.state
        if not state.on_main_thread():
            return await do_execute(*args, **kwargs)
        endings.begin()
        state.silent, state.result = bool(kwargs.get("silent")), None
        shell._last_traceback = None
        if hasattr(shell, "_last_traceback_during_displayhook"):  # it may still be that of an earlier cell
            shell._last_traceback_during_displayhook = False
        try:
            reply = await do_execute(*args, **kwargs)
        except Exception as exc:  # a bug of IPython, or of code that the user has registered there
            endings.value = exc
            reply = {"status": "error", "user_expressions": {}, "payload": shell.payload_manager.read_payload()}
            reply["execution_count"] = shell.execution_count - 1
            shell.payload_manager.clear_payload()
        if state.was_swallowed():  # by a callback that IPython calls at the end of a cell
            endings.value, state.raised = state.raised, None
            reply["status"] = "error"
        if reply["status"] == "error":
            description = endings.shown[1]
            if description is None:  # the error has not been shown, or it is that of a display
                value = endings.value
                description = endings.last[1] if value is None else described(value, traceback_of(value))
            if description is not None:
                reply.update({"ename": description.name, "evalue": description.text, "traceback": description.lines})
        state.result = None
        return reply

    if interrupts.state is not None:
        shell.events.trigger, kernel.do_execute = trigger_and_replace, answer
