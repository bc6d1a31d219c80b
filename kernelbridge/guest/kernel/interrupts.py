"""Interrupts: part of the program of `hooks.py`, which see.

An interrupt ends the cell's own code wherever that runs on the main thread, and nothing before and behind it. One
function, `Interrupts.interrupt`, is the handler of SIGINT throughout a cell; what it does depends on the phase of the
cell and on what the main thread does.
"""

import asyncio
import contextlib
import dis
import functools
import inspect
import os
import signal
import sys
import threading

# Not by way of their modules, where user code may replace them.
from os import getpgid, getpgrp, getpid
from signal import getsignal
from signal import signal as set_signal
from threading import get_ident
from time import monotonic

# What the handler does in each phase of a cell.
IDLE = "idle"  # no cell runs: as Python itself
EARLY = "early"  # IPython prepares the cell: kept until the first line
RUNNING = "running"  # the cell's own code runs: ended
LATE = "late"  # IPython ends the cell: nothing, as the reply must not be cut in two

AGAIN = getattr(signal, "SIGRTMAX", signal.SIGUSR2) - 1  # a signal of our own, for when SIGINT is not seen
UNSEEN = (0.05, 0.2, 0.5, 1.0)  # seconds after which SIGINT is taken not to have been seen, each time
REPEATED = 2.0  # seconds within which a SIGINT that nobody asked for is the same interrupt once more
KERNELS = ("tornado", "zmq", "ipykernel", "jupyter_client", "IPython", "traitlets", "<kernelbridge>")
PASSED_ON = ("asyncio", "contextlib", "contextvars", "functools", "nest_asyncio")  # these run whatever they are given


class TooSlow(BaseException):
    """Ends a `__str__` that does not return."""


class Interrupts:
    """The state of the cell that runs on the main thread, as far as interrupts are concerned."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.main = threading.main_thread().ident
        self.pid = getpid()
        self.phase = IDLE
        self.cell = 0  # counts cells
        self.seen = 0  # counts calls of the handler
        self.held = False  # one came early
        self.raised = None  # the exception of the newest one, until its cell has ended with it
        self.unraisable = False  # whether that hit a finaliser
        self.future = self.loop = None  # of a cell that awaits
        self.cancelled = False  # whether that was cancelled
        self.depth = 0  # a cell may run another
        self.asked = None  # the cell that an interrupt was asked for which has not been seen yet
        self.answered = 0.0  # when one that was asked for has been seen last
        self.taken = False  # whether one has been seen without the handler
        self.asked_again = None  # the cell that AGAIN is meant for
        self.blocked_only = False  # whether AGAIN leaves alone what only waits
        self.hurried = None  # while code of the user's is asked for a text: which of such calls it is
        self.hurries = 0  # counts them
        self.spent = False  # whether one of them has taken too long
        self.limit = None  # of recursion, which the user has set, while IPython works
        self.result = None  # IPython's, of the newest cell
        self.silent = False
        self.user_code = kernel.shell.run_code.__func__.__code__
        self.callbacks = kernel.shell.events.trigger.__func__.__code__

    def here(self):
        """Whether this is where a signal can come: the kernel's main thread, not one of a subshell or the user's."""
        return get_ident() == self.main and getpid() == self.pid

    def begin(self):
        self.cell += 1
        self.phase, self.held, self.raised, self.depth = EARLY, False, None, 0
        self.asked, self.taken, self.spent, self.cancelled = None, False, False, False
        self.answered = 0.0

    def interrupt(self, signum, frame):
        """Handle SIGINT."""
        if getpid() != self.pid or self.phase is IDLE:
            raise KeyboardInterrupt
        self.seen += 1
        if self.taken:  # the end of a statement has seen it before this did
            self.taken = False
            return
        if self.asked is None and monotonic() - self.answered < REPEATED:
            return  # sent once more by who has not learned yet that it has been seen
        if self.asked is not None:
            self.asked, self.answered = None, monotonic()
        if self.phase is not RUNNING:
            self.held = True
            # In callbacks: the user's, and they may take long. IPython goes on after them, but not after its own loop.
            if frame is not None and frame.f_code is not self.callbacks and inside(frame, self.callbacks):
                self.strike()
        elif self.future is None or inside(frame, self.user_code):
            self.strike()
        elif in_users_callback(frame):
            self.strike()
        else:  # the loop runs, but waits: only this wakes it
            self.loop.call_soon_threadsafe(self.cancel)

    def lower_limit(self):
        """Give the user's code the limit of recursion that it has set."""
        if self.limit is not None:
            with contextlib.suppress(RecursionError):
                sys.setrecursionlimit(self.limit)
            self.limit = None

    def raise_limit(self):
        """Give IPython one that is not too low for it."""
        if sys.getrecursionlimit() < COMMON:
            self.limit = sys.getrecursionlimit()
            sys.setrecursionlimit(COMMON)

    def cancel(self):
        if self.future is not None:
            self.cancelled = True
            self.future.cancel()

    def strike(self):
        self.raised, self.unraisable = KeyboardInterrupt(), False
        raise self.raised

    def again(self, signum, frame):
        """Handle AGAIN."""
        if getpid() != self.pid:
            return
        if self.hurried is not None and self.asked_again is None:
            if any(inside(frame, asking.__code__) for asking in (safely, rendered, formatted)):
                self.spent = True
                raise TooSlow
        elif self.cell == self.asked_again:
            if inside(frame, not_raised.__code__):
                self.ask_again()
                return
            self.answered = 0.0
            if not self.blocked_only or (
                self.phase is RUNNING and self.future is not None and in_users_callback(frame)
            ):
                self.interrupt(signum, frame)

    def ask_again(self, blocked_only=False):
        """Interrupt the cell again, a moment later; from any thread."""
        self.kernel.control_thread.io_loop.add_callback(self.send_unless_seen, self.cell, self.seen, blocked_only)

    async def send_unless_seen(self, cell, seen, blocked_only=False):
        """Send AGAIN if SIGINT has not reached the handler: `os.system`, say, ignores it while it waits."""
        for seconds in UNSEEN:
            await asyncio.sleep(seconds)
            handler = getsignal(signal.SIGINT)
            if self.seen != seen or self.cell != cell or handler not in (self.handler, signal.SIG_DFL):
                return
            self.send_again(cell, blocked_only)
            if not blocked_only:
                interrupt_others()  # what it waits for now may not have been there before

    def send_again(self, cell, blocked_only=False):
        if self.cell == cell and self.phase is not IDLE:
            self.asked_again, self.blocked_only = cell, blocked_only
            signal.pthread_kill(self.main, AGAIN)

    def hurry(self, seconds):
        """Raise `TooSlow` in what the main thread does, again and again, from so many seconds on until `hurried` is None."""
        if self.spent:
            raise TooSlow
        self.hurries += 1
        self.hurried = self.hurries
        self.kernel.control_thread.io_loop.add_callback(self.hurry_later, seconds, self.hurried)

    async def hurry_later(self, seconds, call):
        await asyncio.sleep(seconds)
        while self.hurried == call:
            self.asked_again = None
            signal.pthread_kill(self.main, AGAIN)
            await asyncio.sleep(UNSEEN[0])

    def unwound(self):
        """Go on after an interrupt that has left the event loop by way of a task or callback: its cell only waits."""
        if self.future is not None and self.phase is RUNNING:
            self.cancel()
            self.ask_again(blocked_only=True)  # others of its tasks may block, too

    def was_swallowed(self):
        """Whether an interrupt has been raised, and the cell's code does not know of it: IPython caught it, or nobody."""
        if self.raised is None or self.unraisable:
            return self.raised is not None
        caught = self.raised.__traceback__
        name = "" if caught is None else caught.tb_frame.f_globals.get("__name__") or ""
        return str(name).partition(".")[0] == "IPython"

    def passed_by(self):
        """Whether the statement that has ended should not have: an interrupt of it was swallowed, or is on its way."""
        if self.asked == self.cell:
            self.asked, self.taken = None, True
            return True
        return self.was_swallowed()

    def raise_swallowed(self):
        if self.here() and self.phase is RUNNING and self.was_swallowed():
            self.strike()


def inside(frame, code):
    """Whether a frame is one of `code`, or was called from one, however indirectly."""
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def in_users_callback(frame):
    """Whether the event loop runs a callback or task that is not the kernel's own."""
    ours, run = [], asyncio.events.Handle._run.__code__
    while frame is not None and frame.f_code is not run:
        ours.append(frame)
        frame = frame.f_back
    if frame is None:  # it waits
        return False
    if any(type(called.f_code.co_filename) is CellName for called in ours):
        return True
    for called in reversed(ours):
        package = str(called.f_globals.get("__name__") or "").partition(".")[0]
        if package not in PASSED_ON:
            return package not in KERNELS
    handle = frame.f_locals.get("self")
    callback = getattr(handle, "_callback", None)
    while isinstance(callback, functools.partial):
        callback = callback.func
    if ours or isinstance(getattr(callback, "__self__", None), asyncio.Future):
        return False
    package = str(getattr(callback, "__module__", None) or "").partition(".")[0]
    return package != "" and package.strip("_") not in PASSED_ON and package not in KERNELS


def install_interrupts(kernel):
    """Let an interrupt end the cell's own code, also where it awaits, and nothing before and behind that.

    IPython's preparations would be broken off by one, or swallow it: the cell would never run, or never stop. Behind
    the cell its reply would be: not sent at all, or cut off between two of its frames, which spoils the next one too.
    So one that comes early waits for the first line, and one that comes late finds nothing to end.
    """
    shell, before_handler, run_code = kernel.shell, kernel.pre_handler_hook, kernel.shell.run_code
    run_nodes, interrupt_request = shell.run_ast_nodes, kernel.interrupt_request
    do_execute = kernel.do_execute
    state = interrupts.state = Interrupts(kernel)
    raise_here = compile("raise KeyboardInterrupt", is_ours.__code__.co_filename, "exec")

    def default_int_handler(signum, frame):
        """The default handler for SIGINT installed by Python.

        It raises KeyboardInterrupt.
        """
        state.interrupt(signum, frame)

    # Those who look whether SIGINT is handled as usual (asyncio.Runner, trio) look there.
    default_int_handler.__qualname__, default_int_handler.__module__ = "default_int_handler", "signal"
    state.handler = signal.default_int_handler = default_int_handler

    def pre_handler_hook():
        if parent_of(kernel).get("header", {}).get("msg_type") != "execute_request":
            before_handler()
        elif state.here():  # no signal comes to a subshell
            state.begin()
            # In place of the original, which lets interrupts through: one between the two would lose the request.
            kernel.saved_sigint_handler = set_signal(signal.SIGINT, default_int_handler)

    async def run_code_at_last(code_obj, *args, **kwargs):
        if not state.here() or state.phase is LATE:
            return await run_code(code_obj, *args, **kwargs)
        early = state.phase is EARLY
        state.phase = RUNNING
        if not (early and state.held):
            state.lower_limit()
            try:
                if await run_code(code_obj, *args, **kwargs):
                    return True
            finally:
                state.raise_limit()
            if not state.passed_by():
                return False
        line = next((line for _, line in dis.findlinestarts(code_obj) if line), code_obj.co_firstlineno)
        names = {"co_filename": code_obj.co_filename, "co_name": "<module>", "co_firstlineno": line}
        kwargs["async_"] = False
        return await run_code(raise_here.replace(**names), *args, **kwargs)

    async def run_nodes_and_no_more(*args, **kwargs):
        if not state.here() or state.phase in (IDLE, LATE):
            return await run_nodes(*args, **kwargs)
        if not state.depth:
            state.result = kwargs.get("result")
        state.depth += 1
        try:
            try:
                return await run_nodes(*args, **kwargs)
            finally:
                state.depth -= 1
                if not state.depth:
                    state.phase = LATE
        except KeyboardInterrupt as exc:  # just behind the code's end
            if not state.depth:
                state.phase = LATE
            if kwargs.get("result") is not None:
                kwargs["result"].error_in_exec = exc
            shell.showtraceback()
            return True
        finally:
            if not state.depth and getsignal(signal.SIGINT) is not default_int_handler:  # the user's
                set_signal(signal.SIGINT, default_int_handler)

    @contextlib.contextmanager
    def cancel_on_sigint(future):
        state.loop, state.future = asyncio.get_running_loop(), future
        try:
            yield
        finally:
            state.future = None

    async def interrupt_request_until_seen(stream, ident, parent):
        force = (parent.get("content") or {}).get("kernelbridge") == "force"
        cell, seen = state.cell, state.seen
        try:
            if getsignal(signal.SIGINT) is default_int_handler and state.phase is not IDLE:
                state.asked = cell
            interrupt_terminals()
            if getsignal(signal.SIGINT) is signal.SIG_DFL and getpgrp() == getpid():
                interrupt_others()  # SIGINT would be the kernel's end
                kernel.session.send(stream, "interrupt_reply", {"status": "ok"}, parent, ident=ident)
            else:
                await interrupt_request(stream, ident, parent)
        finally:
            if force:
                state.send_again(cell)
            elif state.phase is not IDLE:
                asyncio.get_running_loop().create_task(state.send_unless_seen(cell, seen))

    never_stopped(kernel.iopub_thread.thread)
    never_left(asyncio.get_running_loop())
    set_signal(AGAIN, state.again)
    kernel.pre_handler_hook, shell.run_code = pre_handler_hook, run_code_at_last
    shell.run_ast_nodes = run_nodes_and_no_more
    kernel.control_handlers["interrupt_request"] = interrupt_request_until_seen
    if hasattr(kernel, "_cancel_on_sigint"):
        kernel._cancel_on_sigint = cancel_on_sigint
    checked_magics(shell, state)


class Interrupted:
    """Where the other parts find the state; None where this part could not be installed."""

    state = None


interrupts = Interrupted()


def checked_magics(shell, state):
    """Let an interrupt end the cell where a magic has swallowed it, as `%%bash`, `%run` and `%prun` do."""

    def checked(magic):
        if magic is None:
            return None

        @functools.wraps(magic)
        def call(*args, **kwargs):
            runs_scripts = getattr(magic, "__module__", "") == "IPython.core.magics.script" and state.here()
            before = children() if runs_scripts else ()
            try:
                result = magic(*args, **kwargs)
            except Exception:  # `%%bash` fails with the status of what the interrupt has ended
                if not state.was_swallowed():
                    raise
                result = None
            if runs_scripts and state.was_swallowed():
                kill_trees(set(children()) - set(before))
            state.raise_swallowed()
            return result

        return call

    for name in ("_find_with_lazy_load", "find_line_magic", "find_cell_magic"):
        find = getattr(shell, name, None)
        if find is not None:
            setattr(shell, name, lambda *args, _find=find, **kwargs: checked(_find(*args, **kwargs)))
            if name == "_find_with_lazy_load":
                break


def children(pid="self"):
    """Give the processes that a process has started and that live."""
    found = []
    for task in names_in("/proc/%s/task" % pid):
        try:
            with open("/proc/%s/task/%s/children" % (pid, task)) as file:
                found += [int(word) for word in file.read().split()]
        except (OSError, ValueError):  # it has ended, or this system does not tell
            pass
    return found


def kill_trees(pids):
    """Kill processes and what they have started."""
    for pid in pids:
        below = children(pid)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        kill_trees(below)


def names_in(path):
    try:
        return os.listdir(path)
    except OSError:
        return []


def interrupt_others():
    """Send SIGINT to the kernel's process group, but not to the kernel."""
    if getpgrp() != getpid():
        return
    for name in names_in("/proc"):
        try:
            if name.isdigit() and int(name) != getpid() and getpgid(int(name)) == getpid():
                os.kill(int(name), signal.SIGINT)
        except OSError:  # it has ended
            pass


def interrupt_terminals():
    """Send SIGINT to what the kernel has started on a terminal of its own (`pty.spawn`), as a Ctrl-C there does."""
    for pid in children():
        try:
            with open("/proc/%d/stat" % pid) as file:
                _, group, session, terminal = [int(word) for word in file.read().rpartition(")")[2].split()[1:5]]
            if terminal and session == pid and session != os.getsid(0):
                os.killpg(group, signal.SIGINT)
        except (OSError, ValueError):  # it has ended
            pass


def never_stopped(thread):
    """Let an interrupt that hits `is_alive` of a thread leave that alive.

    Up to Python 3.12 it is taken for dead for ever then: what it should publish is sent by whoever writes, in the
    middle of its own messages.
    """
    if hasattr(thread, "_is_stopped") and hasattr(thread, "_tstate_lock"):
        thread.is_alive = lambda: thread._started.is_set() and not thread._is_stopped


def in_task(tb):
    """Whether what was raised in the event loop was so in a task: then the first frame behind the loop's is a coroutine's."""
    while tb is not None and tb.tb_frame.f_code is not asyncio.events.Handle._run.__code__:
        tb = tb.tb_next
    first = None if tb is None else tb.tb_next
    return first is not None and bool(first.tb_frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_GENERATOR))


def never_left(loop):
    """Let no interrupt, and no exit, of a task or callback end the kernel's event loop, and with it the kernel."""
    depth = [0]

    def run_once():
        depth[0] += 1
        try:
            type(loop)._run_once(loop)
        except (KeyboardInterrupt, SystemExit) as exc:
            if depth[0] > 1:  # the user's code runs it inside of a callback
                raise
            if interrupts.state is not None and exc is interrupts.state.raised:
                interrupts.state.unwound()
            elif not in_task(exc.__traceback__):  # a task keeps it for whoever awaits that
                tell_uncaught("Exception in callback", exc, exc.__traceback__)
        finally:
            depth[0] -= 1

    if hasattr(type(loop), "_run_once"):
        loop._run_once = run_once
