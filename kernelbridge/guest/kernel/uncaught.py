"""Errors of threads and finalizers, which end no cell: part of the hooks, see `hooks.py`.

Before Python 3.13, the interpreter would read their source lines from a file that has the cell's name.
"""

import contextlib
import sys
import threading


def install_uncaught(kernel):
    own_threads = getattr(threading, "__excepthook__", threading.excepthook)
    if threading.excepthook is own_threads:
        threading.excepthook = print_thread_error
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = print_unraisable


def print_thread_error(failure):
    """Print the error that ended a thread, as `threading` does."""
    if failure.exc_type is not SystemExit:
        name = failure.thread.name if failure.thread is not None else threading.get_ident()
        print_uncaught("Exception in thread %s" % (name,), exception_of(failure), failure.exc_traceback)


def print_uncaught(what, value, tb):
    """Write an error that ends no cell to stderr, if there is a stderr."""
    stderr = sys.stderr
    if stderr is not None:
        with contextlib.suppress(Exception):  # it may be an object of the user without these methods
            stderr.write("%s:\n%s\n" % (what, "\n".join(described(value, tb).lines)))
            stderr.flush()


def exception_of(failure):
    """Return the exception; a failure may have only its class."""
    return failure.exc_type() if failure.exc_value is None else failure.exc_value


def print_unraisable(failure):
    """Print an error that nothing can catch, as the interpreter does."""
    state = interrupts.state
    if state is not None and failure.exc_value is not None and failure.exc_value is state.raised:
        state.unraisable = True  # an interrupt of the cell was raised in a finalizer
        state.retry_later()
        return
    try:
        message = failure.err_msg or "Exception ignored in"
        about = "" if failure.object is None else ": %s" % cut(safe_text(repr, failure.object, "object"), 1000)
        print_uncaught(message + about, exception_of(failure), failure.exc_traceback)
    except Exception:  # at the end of the interpreter, whose modules are empty already
        sys.__unraisablehook__(failure)
