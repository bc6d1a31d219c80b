"""What keeps the kernel's own code working whatever user code replaces: part of the hooks, see `hooks.py`.

User code may put anything in the place of `sys.stdout`, `print`, `open`, and functions of modules. The kernel gets
streams, modules and builtins of its own.
"""

import builtins
import functools
import io
import sys
from io import open as io_open
from os import dup
from time import monotonic


class KernelStream:
    """`sys.stdout` as the kernel's own code sees it: it works whatever user code puts there."""

    def __init__(self, name, stream, original):
        self._name = name
        self._stream = stream
        self._original = original

    def _users(self):
        current = getattr(sys, self._name, None)
        return None if current is self._stream or current is self._original else current

    def write(self, text):
        current = self._users()
        if current is not None:
            try:
                return current.write(text)
            except Exception:  # an object of user code may raise anything
                pass
        return self._original.write(text)

    def flush(self):
        current = self._users()
        if current is not None:
            try:
                current.flush()
            except BaseException:  # an object of user code must not stop the kernel
                pass
        self._original.flush()

    def set_parent(self, parent):
        self._stream.set_parent(parent)
        self._original.set_parent(parent)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def print(*values, sep=" ", end="\n", file=None, flush=False):
    """Print for the hooks, even if user code has replaced `print` or `sys.stdout`."""
    file = file or own_stdout[0]
    file.write(sep.join(map(str, values)) + end)
    if flush:
        file.flush()


own_stdout = [sys.stdout]


class KernelSys:
    """`sys` as the kernel's own code sees it."""

    def __init__(self, stdout, stderr):
        self.__dict__.update(stdout=stdout, stderr=stderr)

    def __getattr__(self, name):
        return getattr(sys, name)

    def __setattr__(self, name, value):
        setattr(sys, name, value)

    def __delattr__(self, name):
        delattr(sys, name)


STREAM_USERS = ("ipykernel.kernelbase", "ipykernel.displayhook", "ipykernel.zmqshell", "IPython.core.interactiveshell")
PRIVATE_TO = ("ipykernel", "jupyter_client", "zmq", "comm", "tornado.ioloop", "tornado.platform.asyncio", "logging")
print_in_kernel = builtins.print
PRIVATE = ("os", "time", "json", "threading", "select", "signal", "logging", "warnings")
OWN_BUILTINS_OF = ("IPython", "ipykernel", "jedi", "parso", "tokenize", "linecache")


def isolate_kernel(kernel):
    """Give the kernel's code its own copies of modules in which user code may replace functions, such as `time`."""
    copies = {}
    for name in PRIVATE:
        if name in sys.modules:
            copies[name] = type(sys)(name)
            copies[name].__dict__.update(sys.modules[name].__dict__)
    for name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", {})
        if any(name == package or name.startswith(package + ".") for package in PRIVATE_TO):
            for attribute, copy in copies.items():
                if names.get(attribute) is sys.modules.get(attribute):
                    names[attribute] = copy
        if name.partition(".")[0] in OWN_BUILTINS_OF:
            names.setdefault("print", print_in_kernel)
            names.setdefault("open", io_open)
    loops = [kernel.io_loop, kernel.iopub_thread.io_loop]
    loops += [
        getattr(getattr(kernel, name, None), "io_loop", None) for name in ("control_thread", "shell_channel_thread")
    ]
    for loop in loops:
        loop = getattr(loop, "asyncio_loop", None)
        if loop is not None:
            loop.time = monotonic


@functools.wraps(io.open)
def open_in_cell(file, *args, **kwargs):
    # A file object that is garbage closes its descriptor, and the kernel's next socket must not get its number.
    if type(file) is int and file in (0, 1, 2) and len(args) < 6 and kwargs.get("closefd", True):
        file = dup(file)
    return io_open(file, *args, **kwargs)
