"""Errors that end no cell, of threads and finalisers: part of the program of `hooks.py`, which see.

Before 3.13 the interpreter reads their source lines from whatever file has the cell's name.
"""

import contextlib
import sys
import threading


def install_uncaught(kernel):
    own_threads = getattr(threading, "__excepthook__", threading.excepthook)
    if threading.excepthook is own_threads:
        threading.excepthook = thread_failed
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = not_raised


def thread_failed(failure):
    """Tell how a thread ended, as `threading` does it."""
    if failure.exc_type is not SystemExit:
        name = failure.thread.name if failure.thread is not None else threading.get_ident()
        tell_uncaught("Exception in thread %s" % (name,), made(failure), failure.exc_traceback)


def tell_uncaught(what, value, tb):
    """Write an error to stderr that ends no cell, if there is one."""
    stderr = sys.stderr
    if stderr is not None:
        with contextlib.suppress(Exception):  # it may be somebody's class, which lacks one of them
            stderr.write("%s:\n%s\n" % (what, "\n".join(described(value, tb).lines)))
            stderr.flush()


def made(failure):
    """Give the exception; there may only be its class."""
    return failure.exc_type() if failure.exc_value is None else failure.exc_value


def not_raised(failure):
    """Tell of an error that nobody can catch, as the interpreter does it."""
    state = interrupts.state
    if state is not None and failure.exc_value is not None and failure.exc_value is state.raised:
        state.unraisable = True  # it was meant for the cell, and hit a finaliser
        state.ask_again()
        return
    try:
        message = failure.err_msg or "Exception ignored in"
        about = "" if failure.object is None else ": %s" % cut(safe_repr(failure.object), 1000)
        tell_uncaught(message + about, made(failure), failure.exc_traceback)
    except Exception:  # at the interpreter's end, when modules are empty already
        sys.__unraisablehook__(failure)


def safe_repr(value):
    try:
        with patience():
            return str.__str__(repr(value))
    except BaseException:
        return "<object repr() failed>"
