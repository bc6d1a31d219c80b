"""Interrupts: part of the hooks, see `hooks.py`.

An interrupt ends the cell's own code wherever that runs on the main thread, and nothing before or after it. One
function, `Interrupts.interrupt`, handles SIGINT throughout a cell. What it does depends on the phase of the cell and on
the stack of the main thread.
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
import types

# Imported by name, because user code may replace them in their modules.
from os import getpgid, getpgrp, getpid
from signal import getsignal
from signal import signal as set_signal
from threading import get_ident
from time import monotonic

# What the handler does in each phase of a cell.
IDLE = "idle"  # no cell runs: it raises KeyboardInterrupt
EARLY = "early"  # IPython prepares the cell: it waits for the cell's first line
RUNNING = "running"  # the cell's own code runs: it ends that
LATE = "late"  # IPython ends the cell: it does nothing, because the reply must not be cut in two

RETRY_SIGNAL = getattr(signal, "SIGRTMAX", signal.SIGUSR2) - 1  # sent when SIGINT has not reached the handler
RETRY_AFTER = (0.05, 0.2, 0.5, 1.0)  # seconds before each check whether SIGINT has reached the handler
REPEATED = 2.0  # seconds in which a SIGINT without a request counts as a repetition of the last interrupt
KERNELS = ("tornado", "zmq", "ipykernel", "jupyter_client", "IPython", "traitlets", "<kernelbridge>")
# Modules that call functions they are given.
FORWARDERS = ("asyncio", "contextlib", "contextvars", "functools", "nest_asyncio")


class TooSlow(BaseException):
    """Raised in a `__str__` or the like of user code that takes too long."""


class Interrupts:
    """The state of interrupts, and of the cell that runs on the main thread."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.main = threading.main_thread().ident
        self.pid = getpid()
        self.phase = IDLE
        self.cell = 0  # number of the cell
        self.seen = 0  # number of calls of the handler
        self.pending = False  # whether an interrupt waits for the cell's first line
        self.raised = None  # the exception of the last interrupt, until its cell has ended with it
        self.unraisable = False  # whether that was raised in a finalizer
        self.future = self.loop = None  # the task of a cell that awaits, and its loop
        self.cancelled = False  # whether that task was cancelled
        self.depth = 0  # number of nested cells: a cell may run another
        self.requested = None  # the cell of a requested interrupt that the handler has not seen yet
        self.handled_at = 0.0  # when the handler last saw a requested interrupt
        self.handled_early = False  # whether an interrupt took effect before the handler saw it
        self.retry_cell = None  # the cell that RETRY_SIGNAL is meant for
        self.retry_seen = None  # it is for nothing when `seen` is another number by then; None if that does not matter
        self.only_if_blocked = False  # whether RETRY_SIGNAL ignores a cell whose event loop only waits
        self.limited_call = None  # number of the call of user code that has a time limit now
        self.limited_calls = 0  # number of such calls so far
        self.too_slow = False  # whether one of them exceeded the limit
        self.users_recursion_limit = None  # the low recursion limit of user code, while IPython has a higher one
        self.result = None  # IPython's result of the newest cell
        self.silent = False
        self.user_code = kernel.shell.run_code.__func__.__code__
        self.callbacks = kernel.shell.events.trigger.__func__.__code__

    def on_main_thread(self):
        """Whether this is the kernel's main thread, the only one that signals interrupt."""
        return get_ident() == self.main and getpid() == self.pid

    def begin(self):
        self.cell += 1
        self.phase, self.pending, self.raised, self.depth = EARLY, False, None, 0
        self.requested, self.handled_early, self.too_slow, self.cancelled = None, False, False, False
        self.handled_at = 0.0

    def interrupt(self, signum, frame):
        """Handle SIGINT."""
        if getpid() != self.pid or self.phase is IDLE:
            raise KeyboardInterrupt
        self.seen += 1
        if self.handled_early:  # `missed_interrupt` has acted on it already
            self.handled_early = False
            return
        if self.requested is None and monotonic() - self.handled_at < REPEATED:
            return  # its sender did not know yet that the first one was seen
        if self.requested is not None:
            self.requested, self.handled_at = None, monotonic()
        if self.phase is not RUNNING:
            self.pending = True
            # In IPython's event callbacks, which are the user's and may take long. IPython survives an interrupt there.
            if frame is not None and frame.f_code is not self.callbacks and inside(frame, self.callbacks):
                self.raise_interrupt()
        elif self.future is None or inside(frame, self.user_code) or in_users_callback(frame):
            self.raise_interrupt()
        else:  # the cell awaits, and the loop waits for events: this wakes it
            self.loop.call_soon_threadsafe(self.cancel)

    def restore_recursion_limit(self):
        """Set the low recursion limit that user code has chosen, before it runs again."""
        if self.users_recursion_limit is not None:
            with contextlib.suppress(RecursionError):
                sys.setrecursionlimit(self.users_recursion_limit)
            self.users_recursion_limit = None

    def raise_recursion_limit(self):
        """Set a recursion limit that is high enough for IPython, if user code has chosen a lower one."""
        if sys.getrecursionlimit() < COMMON:
            self.users_recursion_limit = sys.getrecursionlimit()
            sys.setrecursionlimit(COMMON)

    def cancel(self):
        if self.future is not None:
            self.cancelled = True
            self.future.cancel()

    def raise_interrupt(self):
        self.raised, self.unraisable = KeyboardInterrupt(), False
        raise self.raised

    def handle_retry(self, signum, frame):
        """Handle RETRY_SIGNAL."""
        if getpid() != self.pid:
            return
        if self.limited_call is not None and self.retry_cell is None:
            if any(inside(frame, asking.__code__) for asking in (safe_text, self_rendered, formatted)):
                self.too_slow = True
                raise TooSlow
        elif self.cell == self.retry_cell and self.retry_seen in (None, self.seen):
            if inside(frame, print_unraisable.__code__):
                self.retry_later()
                return
            self.handled_at = 0.0
            if not self.only_if_blocked or (
                self.phase is RUNNING and self.future is not None and in_users_callback(frame)
            ):
                self.interrupt(signum, frame)

    def retry_later(self, only_if_blocked=False):
        """Interrupt the cell again a moment later, if SIGINT is not seen. It can be called from any thread."""
        self.kernel.control_thread.io_loop.add_callback(self.retry_unless_seen, self.cell, self.seen, only_if_blocked)

    async def retry_unless_seen(self, cell, seen, only_if_blocked=False):
        """Send RETRY_SIGNAL if SIGINT has not reached the handler: `os.system`, for example, ignores it meanwhile."""
        for seconds in RETRY_AFTER:
            await asyncio.sleep(seconds)
            handler = getsignal(signal.SIGINT)
            if self.seen != seen or self.cell != cell or handler not in (self.handler, signal.SIG_DFL):
                return
            self.send_retry(cell, only_if_blocked, seen)
            if not only_if_blocked:
                interrupt_others()  # the cell may have started processes meanwhile

    async def interrupt_terminals_repeatedly(self):
        """Interrupt what runs on terminals of its own, and again what has lost the signal.

        A shell catches SIGINT. If it comes just before the shell, or its child, executes another program, it is lost.
        """
        signalled = interrupt_terminals()
        for seconds in RETRY_AFTER if signalled else ():
            await asyncio.sleep(seconds)
            for pid in filter(dies_of_sigint, signalled):
                with contextlib.suppress(OSError):  # it has ended
                    os.kill(pid, signal.SIGINT)

    def send_retry(self, cell, only_if_blocked=False, seen=None):
        if self.cell == cell and self.phase is not IDLE:
            # C code without the interpreter's lock may keep both signals waiting: SIGINT is then handled first.
            self.retry_cell, self.only_if_blocked, self.retry_seen = cell, only_if_blocked, seen
            signal.pthread_kill(self.main, RETRY_SIGNAL)

    def start_time_limit(self, seconds, always):
        """Raise `TooSlow` on the main thread after `seconds`, repeatedly, until `limited_call` is None.

        If a call of this cell was too slow before, it is raised at once, unless `always`.
        """
        if self.too_slow and not always:
            raise TooSlow
        self.limited_calls += 1
        self.limited_call = self.limited_calls
        self.kernel.control_thread.io_loop.add_callback(self.enforce_time_limit, seconds, self.limited_call)

    async def enforce_time_limit(self, seconds, call):
        await asyncio.sleep(seconds)
        while self.limited_call == call:
            self.retry_cell = None
            signal.pthread_kill(self.main, RETRY_SIGNAL)
            await asyncio.sleep(RETRY_AFTER[0])

    def left_loop(self):
        """Cancel the cell, which awaits, after an interrupt in a task or callback has left the event loop."""
        if self.future is not None and self.phase is RUNNING:
            self.cancel()
            self.retry_later(only_if_blocked=True)  # other tasks may block, too

    def was_swallowed(self):
        """Whether an interrupt was raised that IPython caught, or that was raised in a finalizer."""
        if self.raised is None or self.unraisable:
            return self.raised is not None
        caught = self.raised.__traceback__
        name = "" if caught is None else caught.tb_frame.f_globals.get("__name__") or ""
        return str(name).partition(".")[0] == "IPython"

    def missed_interrupt(self):
        """Whether the statement that has ended was interrupted: the interrupt was swallowed, or is still on its way."""
        if self.requested == self.cell:
            self.requested, self.handled_early = None, True
            return True
        return self.was_swallowed()

    def raise_swallowed(self):
        if self.on_main_thread() and self.phase is RUNNING and self.was_swallowed():
            self.raise_interrupt()


def inside(frame, code):
    """Whether a frame, or one of its callers, runs `code`."""
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def in_users_callback(frame):
    """Whether the event loop runs a callback or task that is not the kernel's own."""
    frames, run = [], asyncio.events.Handle._run.__code__
    while frame is not None and frame.f_code is not run:
        frames.append(frame)
        frame = frame.f_back
    if frame is None:  # the loop waits
        return False
    if any(type(called.f_code.co_filename) is CellName for called in frames):
        return True
    for called in reversed(frames):
        package = str(called.f_globals.get("__name__") or "").partition(".")[0]
        if package not in FORWARDERS:
            return package not in KERNELS
    handle = frame.f_locals.get("self")
    callback = getattr(handle, "_callback", None)
    while isinstance(callback, functools.partial):
        callback = callback.func
    if frames or isinstance(getattr(callback, "__self__", None), asyncio.Future):
        return False
    package = str(getattr(callback, "__module__", None) or "").partition(".")[0]
    return package != "" and package.strip("_") not in FORWARDERS and package not in KERNELS


def install_interrupts(kernel):
    """Let an interrupt end the cell's own code, also while it awaits, and nothing before or after that.

    Before the cell, IPython's preparations would be cut short or swallow the interrupt: the cell would never run, or
    never stop. After the cell, the reply would not be sent, or be cut between two frames, which damages the next one,
    too. So an early interrupt waits for the first line, and a late one does nothing.
    """
    shell, before_handler, run_code = kernel.shell, kernel.pre_handler_hook, kernel.shell.run_code
    run_nodes, interrupt_request = shell.run_ast_nodes, kernel.interrupt_request
    state = interrupts.state = Interrupts(kernel)
    raise_here = compile("raise KeyboardInterrupt", is_ours.__code__.co_filename, "exec")

    def default_int_handler(signum, frame):
        """The default handler for SIGINT installed by Python.

        It raises KeyboardInterrupt.
        """
        state.interrupt(signum, frame)

    # Libraries such as asyncio.Runner and trio compare with `signal.default_int_handler`.
    default_int_handler.__qualname__, default_int_handler.__module__ = "default_int_handler", "signal"
    state.handler = signal.default_int_handler = default_int_handler

    def pre_handler_hook():
        if parent_of(kernel).get("header", {}).get("msg_type") != "execute_request":
            before_handler()
        elif state.on_main_thread():  # signals do not interrupt a subshell
            state.begin()
            # The original would let interrupts through, and one here would lose the request.
            kernel.saved_sigint_handler = set_signal(signal.SIGINT, default_int_handler)

    async def run_code_or_interrupt(code_obj, *args, **kwargs):
        if not state.on_main_thread() or state.phase is LATE:
            return await run_code(code_obj, *args, **kwargs)
        early = state.phase is EARLY
        state.phase = RUNNING
        if not (early and state.pending):
            state.restore_recursion_limit()
            try:
                if await run_code(code_obj, *args, **kwargs):
                    return True
            finally:
                state.raise_recursion_limit()
            if not state.missed_interrupt():
                return False
        line = next((line for _, line in dis.findlinestarts(code_obj) if line), code_obj.co_firstlineno)
        names = {"co_filename": code_obj.co_filename, "co_name": "<module>", "co_firstlineno": line}
        kwargs["async_"] = False
        return await run_code(raise_here.replace(**names), *args, **kwargs)

    async def run_nodes_and_end(*args, **kwargs):
        if not state.on_main_thread() or state.phase in (IDLE, LATE):
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
        except KeyboardInterrupt as exc:  # just after the end of the code
            if not state.depth:
                state.phase = LATE
            if kwargs.get("result") is not None:
                kwargs["result"].error_in_exec = exc
            shell.showtraceback()
            return True
        finally:
            if not state.depth and getsignal(signal.SIGINT) is not default_int_handler:  # user code has set its own
                set_signal(signal.SIGINT, default_int_handler)

    @contextlib.contextmanager
    def cancel_on_sigint(future):
        state.loop, state.future = asyncio.get_running_loop(), future
        try:
            yield
        finally:
            state.future = None

    async def handle_interrupt_request(stream, ident, parent):
        force = (parent.get("content") or {}).get("kernelbridge") == "force"
        cell, seen = state.cell, state.seen
        try:
            if getsignal(signal.SIGINT) is default_int_handler and state.phase is not IDLE:
                state.requested = cell
            asyncio.get_running_loop().create_task(state.interrupt_terminals_repeatedly())
            if getsignal(signal.SIGINT) is signal.SIG_DFL and getpgrp() == getpid():
                interrupt_others()  # without a handler, SIGINT would end the kernel
                kernel.session.send(stream, "interrupt_reply", {"status": "ok"}, parent, ident=ident)
            else:
                await interrupt_request(stream, ident, parent)
        finally:
            if force:
                state.send_retry(cell)
            elif state.phase is not IDLE:
                asyncio.get_running_loop().create_task(state.retry_unless_seen(cell, seen))

    keep_alive(kernel.iopub_thread.thread)
    guard_loop(asyncio.get_running_loop())
    set_signal(RETRY_SIGNAL, state.handle_retry)
    kernel.pre_handler_hook, shell.run_code = pre_handler_hook, run_code_or_interrupt
    shell.run_ast_nodes = run_nodes_and_end
    kernel.control_handlers["interrupt_request"] = handle_interrupt_request
    if hasattr(kernel, "_cancel_on_sigint"):
        kernel._cancel_on_sigint = cancel_on_sigint
    checked_magics(shell, state)


# Gives the other parts access to the state, which is None if this part is not installed.
interrupts = types.SimpleNamespace(state=None)


def checked_magics(shell, state):
    """Let an interrupt end the cell also if a magic swallows it, as `%%bash`, `%run` and `%prun` do."""

    def checked(magic):
        if magic is None:
            return None

        @functools.wraps(magic)
        def call(*args, **kwargs):
            runs_scripts = getattr(magic, "__module__", "") == "IPython.core.magics.script" and state.on_main_thread()
            before = child_pids() if runs_scripts else ()
            try:
                result = magic(*args, **kwargs)
            except Exception:  # `%%bash` raises the exit status of the process that the interrupt has ended
                if not state.was_swallowed():
                    raise
                result = None
            if runs_scripts and state.was_swallowed():
                kill_trees(set(child_pids()) - set(before))
            state.raise_swallowed()
            return result

        return call

    for name in ("_find_with_lazy_load", "find_line_magic", "find_cell_magic"):
        find = getattr(shell, name, None)
        if find is not None:
            setattr(shell, name, lambda *args, _find=find, **kwargs: checked(_find(*args, **kwargs)))
            if name == "_find_with_lazy_load":
                break


def child_pids(pid="self"):
    """Return the ids of a process's children."""
    found = []
    for task in names_in("/proc/%s/task" % pid):
        try:
            with open("/proc/%s/task/%s/children" % (pid, task)) as file:
                found += [int(word) for word in file.read().split()]
        except (OSError, ValueError):  # it has ended, or the system has no such file
            pass
    return found


def kill_trees(pids):
    """Kill processes and their descendants."""
    for pid in pids:
        below = child_pids(pid)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        kill_trees(below)


def names_in(path):
    try:
        return os.listdir(path)
    except OSError:
        return []


def interrupt_others():
    """Send SIGINT to all other processes of the kernel's process group."""
    if getpgrp() != getpid():
        return
    for pid in processes_in({getpid()}):
        with contextlib.suppress(OSError):  # it has ended
            if pid != getpid():
                os.kill(pid, signal.SIGINT)


def dies_of_sigint(pid):
    """Whether a process neither catches, blocks nor ignores SIGINT: if it lives, it has not received one."""
    try:
        with open("/proc/%d/status" % pid) as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
    except OSError:  # it has ended
        return False
    return not any(mask & 1 << signal.SIGINT - 1 for mask in masks)


def interrupt_terminals():
    """Send SIGINT to programs that the kernel runs on their own terminals (`pty.spawn`), as Ctrl-C there does.

    Return the pids of all processes that got it.
    """
    groups = set()
    for pid in child_pids():
        try:
            with open("/proc/%d/stat" % pid) as file:
                _, group, session, terminal = [int(word) for word in file.read().rpartition(")")[2].split()[1:5]]
            if terminal and session == pid and session != os.getsid(0):
                os.killpg(group, signal.SIGINT)
                groups.add(group)
        except (OSError, ValueError):  # it has ended
            pass
    return processes_in(groups) if groups else []


def processes_in(groups):
    """Return the pids of the processes in some process groups."""
    found = []
    for name in filter(str.isdigit, names_in("/proc")):
        try:
            if getpgid(int(name)) in groups:
                found.append(int(name))
        except OSError:  # it has ended
            pass
    return found


def keep_alive(thread):
    """Prevent that an interrupt inside `is_alive` of a thread makes it seem dead.

    Up to Python 3.12 it would seem so for ever. Then other threads would publish in its place, in the middle of its
    messages.
    """
    if hasattr(thread, "_is_stopped") and hasattr(thread, "_tstate_lock"):
        thread.is_alive = lambda: thread._started.is_set() and not thread._is_stopped


def in_task(tb):
    """Whether an exception of the event loop was raised in a task: then the loop has called a coroutine."""
    while tb is not None and tb.tb_frame.f_code is not asyncio.events.Handle._run.__code__:
        tb = tb.tb_next
    first = None if tb is None else tb.tb_next
    return first is not None and bool(first.tb_frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_GENERATOR))


def guard_loop(loop):
    """Prevent that an interrupt or exit in a task or callback ends the kernel's event loop, and so the kernel."""
    depth = [0]

    def run_once():
        depth[0] += 1
        try:
            type(loop)._run_once(loop)
        except (KeyboardInterrupt, SystemExit) as exc:
            if depth[0] > 1:  # user code runs the loop inside a callback
                raise
            if interrupts.state is not None and exc is interrupts.state.raised:
                interrupts.state.left_loop()
            elif not in_task(exc.__traceback__):  # a task raises it where it is awaited
                print_uncaught("Exception in callback", exc, exc.__traceback__)
        finally:
            depth[0] -= 1

    if hasattr(type(loop), "_run_once"):
        loop._run_once = run_once
