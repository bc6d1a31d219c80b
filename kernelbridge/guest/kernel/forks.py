"""Forked children of a kernel: part of the hooks, see `hooks.py`.

Without this, `os.fork()` in a cell makes a second kernel with copies of the first one's sockets. With it, a child runs
the rest of the cell, as a forked child of a script runs the rest of that: its output is the cell's, and it ends where
the cell ends.
"""

import sys
import threading
from os import _exit as exit_at_once
from os import register_at_fork
from selectors import DefaultSelector as new_selector
from socket import socketpair
from threading import current_thread, get_ident, main_thread
from threading import enumerate as enumerate_threads


class Forks:
    """Turns a forked child into a program that runs only the rest of its cell."""

    def __init__(self, kernel, outbox):
        self.kernel = kernel
        self.outbox = outbox
        self.main = main_thread().ident
        self.run_nodes = None  # the code object that runs a cell
        self.running = threading.local()  # how many cells run in this thread, nested

    def enter_child(self):
        """Called in each forked child, right after the fork."""
        outbox, kernel = self.outbox, self.kernel
        if outbox.forked:  # a child of a child
            return
        outbox.forget_all()
        kernel.session.pid = -1  # a session with another pid sends nothing
        endings.send = lambda kernel, final, value, shown: print_child_error(value, shown.lines)
        threading.excepthook = print_thread_error
        loop = kernel.io_loop and getattr(kernel.io_loop, "asyncio_loop", None)
        if loop is not None and loop.is_running():
            detach_loop(loop)
        if on_stack(self.run_nodes):  # the fork is in the cell itself, not in a task or callback
            return
        if get_ident() == self.main and loop is not None:  # by now every thread is the main one to `threading`
            loop.call_soon(self.end)  # the fork is in a callback of an earlier cell
        else:
            self.end_with_work()

    def end_with_work(self):
        """End the child when the current work item of a pool's thread ends: the thread itself never ends."""
        from concurrent.futures import thread as pool

        frame = on_stack(pool._WorkItem.run.__code__)
        if frame is not None:
            frame.f_locals["self"].future.add_done_callback(lambda done: self.end(done.exception()))

    def end(self, error=None, shown=False):
        """End the child as an interpreter ends; `shown` says whether the error has been printed."""
        status = 0
        try:
            if isinstance(error, SystemExit):
                status = exit_status_of(error)
            elif error is not None:
                status = 1
                if not shown:
                    print_child_error(error, described(error, error.__traceback__).lines)
            for thread in enumerate_threads():
                if thread is not current_thread() and not thread.daemon:
                    thread.join()
        finally:
            try:
                flush_in_child(self.outbox)
                for name in ("stdout", "stderr"):
                    getattr(sys, name).flush()
            finally:
                exit_at_once(status)


def on_stack(code):
    """Return the innermost frame of a code object on this thread's stack, or None."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def exit_status_of(error):
    """Return the exit status for a `SystemExit`, and print its message."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print_in_child("%s\n" % (code,))
    return 1


def print_child_error(value, lines):
    """Print the traceback of a child, because the result's traceback is that of the cell itself."""
    if not isinstance(value, SystemExit):
        print_in_child("\n".join(line.rstrip("\n") for line in lines) + "\n")


def print_in_child(text):
    try:
        sys.stderr.write(text)
    except Exception:  # user code may have put any object in its place
        pass


def detach_loop(loop):
    """Let a child's event loop wait for nothing of the kernel: the parent waits with the same selector."""
    for handle in loop._ready:
        handle.cancel()  # it is the kernel's, and would take a message away from the parent
    loop._selector = new_selector()
    loop._ssock, loop._csock = socketpair()
    loop._ssock.setblocking(False)
    loop._csock.setblocking(False)
    loop._add_reader(loop._ssock.fileno(), loop._read_from_self)


def install_forks(kernel):
    outbox = kernel.kernelbridge_outbox
    forks = Forks(kernel, outbox)
    running = forks.running
    run_nodes = kernel.shell.run_ast_nodes

    async def run_nodes_and_end_children(*args, **kwargs):
        running.cells = getattr(running, "cells", 0) + 1
        error = None
        try:
            return await run_nodes(*args, **kwargs)
        except BaseException as exc:
            error = exc
            raise
        finally:
            running.cells -= 1
            if outbox.forked and not running.cells:
                shown = getattr(kwargs.get("result"), "error_in_exec", None)
                forks.end(error or shown, shown=error is None)

    forks.run_nodes = run_nodes_and_end_children.__code__
    kernel.shell.run_ast_nodes = run_nodes_and_end_children
    register_at_fork(before=lambda: outbox.flush_c(), after_in_child=forks.enter_child)
    kernel.kernelbridge_forks = forks
