"""Forked children of a kernel: part of the program of `hooks.py`, which see.

`os.fork()` in a cell makes a second kernel, with copies of the sockets of the first. A child runs its own part of the
cell, as a forked child of a script does: its output goes where the cell's goes, and where the cell ends it ends.
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
    """What a forked child does in the place of what a kernel does."""

    def __init__(self, kernel, outbox):
        self.kernel = kernel
        self.outbox = outbox
        self.main = main_thread().ident
        self.run_nodes = None  # the code that runs a cell
        self.running = threading.local()  # how many cells run in this thread, one in the other

    def enter_child(self):
        outbox, kernel = self.outbox, self.kernel
        if outbox.forked:  # a child of a child
            return
        outbox.leave_to_parent()
        kernel.session.check_pid, kernel.session.pid = True, -1  # it says nothing on the kernel's channels
        endings.send = lambda kernel, final, value, told: tell_error(type(value), value, told.lines)
        threading.excepthook = thread_failed
        loop = kernel.io_loop and getattr(kernel.io_loop, "asyncio_loop", None)
        if loop is not None and loop.is_running():
            watch_nothing(loop)
        if on_stack(self.run_nodes):  # the cell itself, and not a task or callback of one
            return
        if get_ident() == self.main and loop is not None:  # by now every thread is the main one to `threading`
            loop.call_soon(self.end)  # of a callback that a cell has left behind
        else:
            self.end_with_work()

    def end_with_work(self):
        """End the child where the work ends that a pool's thread has taken on: the thread itself never ends."""
        from concurrent.futures import thread as pool

        frame = on_stack(pool._WorkItem.run.__code__)
        if frame is not None:
            frame.f_locals["self"].future.add_done_callback(lambda done: self.end(done.exception()))

    def end(self, error=None, told=False):
        """End the child, as the interpreter ends; `told` if the error has been shown."""
        status = 0
        try:
            if isinstance(error, SystemExit):
                status = status_of(error)
            elif error is not None:
                status = 1
                if not told:
                    tell_error(type(error), error, described(error, error.__traceback__).lines)
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
    """Give the frame of some code if this thread is running it."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def status_of(error):
    """Give the status of a process that ends with `SystemExit`, and say what it says."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    say_in_child("%s\n" % (code,))
    return 1


def tell_error(etype, evalue, stb):
    """Print the traceback of a child: a result has room for one of the cell itself."""
    if not isinstance(evalue, SystemExit):
        say_in_child("\n".join(line.rstrip("\n") for line in stb) + "\n")


def say_in_child(text):
    try:
        sys.stderr.write(text)
    except Exception:  # whatever is there in its place
        pass


def watch_nothing(loop):
    """Let a child's event loop wait for nothing of the kernel's: it shares what that waits with."""
    for handle in loop._ready:
        handle.cancel()  # the kernel's: it would take a message away from the parent
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
                forks.end(error or shown, told=error is None)

    forks.run_nodes = run_nodes_and_end_children.__code__
    kernel.shell.run_ast_nodes = run_nodes_and_end_children
    kernel.session.check_pid = False  # what `os.getpid` is to user code is no matter here
    register_at_fork(before=lambda: outbox.flush_c(), after_in_child=forks.enter_child)
    kernel.kernelbridge_forks = forks
