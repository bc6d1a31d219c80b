"""Errors that end no cell, of threads and finalisers: part of the program of `hooks.py`, which see.

Before 3.13 the interpreter reads their source lines from whatever file has the cell's name.
"""

import sys
import threading
import traceback


def install_uncaught(kernel):
    own_threads = getattr(threading, "__excepthook__", threading.excepthook)
    if threading.excepthook is own_threads:
        threading.excepthook = thread_failed
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = not_raised


def thread_failed(failure):
    """Tell how a thread ended, as `threading` does it."""
    stderr = sys.stderr
    if failure.exc_type is SystemExit or stderr is None:
        return
    name = failure.thread.name if failure.thread is not None else threading.get_ident()
    stderr.write("Exception in thread %s:\n%s" % (name, described(failure)))
    stderr.flush()


def not_raised(failure):
    """Tell of an error that nobody can catch, as the interpreter does it."""
    stderr = sys.stderr
    try:
        message = failure.err_msg or "Exception ignored in"
        about = "" if failure.object is None else " %s" % safe_repr(failure.object)
        text = "%s:%s\n%s" % (message, about, described(failure))
    except Exception:  # at the interpreter's end, when modules are empty already
        sys.__unraisablehook__(failure)
        return
    if stderr is not None:
        stderr.write(text)
        stderr.flush()


def described(failure):
    shown = traceback.TracebackException(failure.exc_type, failure.exc_value, failure.exc_traceback)
    hide_hooks(shown)
    return "".join(shown.format())


def safe_repr(value):
    try:
        return repr(value)
    except Exception:
        return "<object repr() failed>"
