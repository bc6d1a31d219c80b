"""What kernelbridge adds to an ipykernel from the inside.

The files of `PROGRAM` (in `kernelbridge.jupyter.launch`), one after the other, are one program. It is
sent as source with one silent execute and runs in a namespace of its own, so that the user's has
no new name. For ipykernel 6 and later, Python 3.8 and later; the standard library and the
kernel's own packages only. Each part is installed on its own: one that does not fit this kernel
is told in the answer and leaves the kernel as it was.

names       code is compiled under the request's file name: tracebacks show it with the source line
lines       only newlines (and Windows' line ends) end a line; numbers are right behind a `!command` of several lines, too
sources     `inspect.getsource` finds classes too, and debuggers find the lines of cells
imports     the kernel finds its own modules, whatever the workspace has of their names
streams     output arrives in the order in which it was written, that of subprocesses and C code too; nothing that user
            code does to `sys.stdout` and its like keeps a cell from being answered
forks       a forked child ends where its cell ends, and is no second kernel
json        messages are strict JSON, whatever a bundle holds; nothing is warned of
threads     what a thread prints belongs to the cell that started the thread
figures     the CPU time of a cell, and whether memory ran out meanwhile, are in the metadata of its reply
plain       no wait per cell, no second copy of all output
tracebacks  errors as Python prints them, each once and bounded, whatever the exception does when it is asked
uncaught    so are those of threads and finalisers
pager       what IPython shows in a pager (`len?`, `%prun`) is printed: there is none
input       a program that asks for input is told what to do instead; a question goes out whole, whatever interrupts it
debugger    `breakpoint()` asks on stdin, as pdb does: no debugger can be attached
interrupts  one ends what blocks, in tasks, callbacks and finalisers too, and the cell where a magic has swallowed it;
            one that comes before the cell's first line waits for it, one behind its last ends nothing
commands    `!command` reads end-of-file, and an interrupt of it is one of its cell
recall      what a cell tells while no server is there is kept for the next one
"""

import contextlib
import contextvars
import os
import signal
import sys
import threading
import time


def install_threads(kernel):
    """Let a new thread inherit which cell it belongs to, and a child that was forked in one end with it."""
    from concurrent.futures import thread as pool

    shell, outbox = kernel.shell, kernel.kernelbridge_outbox
    owners = (sys.stdout, sys.stderr, shell.display_pub, shell.displayhook, shell)
    variables = [getattr(owner, "_parent_header", None) for owner in owners]
    variables += [getattr(kernel, name, None) for name in ("_shell_parent", "_shell_parent_ident")]
    variables = [variable for variable in variables if isinstance(variable, contextvars.ContextVar)]
    if hasattr(sys.stdout, "_thread_to_parent"):
        variables = []  # ipykernel 6 keeps its own account
    start = threading.Thread.start

    def start_in_cell(self):
        # A pool's thread works for many cells: it belongs to whichever runs.
        if getattr(self, "_target", None) is not pool._worker:
            values = [(variable, variable.get(None)) for variable in variables]
            forked = outbox.forked
            run = self.run

            def run_in_cell():
                del self.run
                for variable, value in values:
                    if value is not None:
                        variable.set(value)
                try:
                    run()
                except BaseException as error:
                    if outbox.forked is not forked:
                        kernel.kernelbridge_forks.end(error)
                    raise
                if outbox.forked is not forked:
                    kernel.kernelbridge_forks.end()

            self.run = run_in_cell
        start(self)

    start_in_cell.__name__, start_in_cell.__qualname__ = "start", "Thread.start"
    start_in_cell.__doc__, start_in_cell.__module__ = start.__doc__, start.__module__
    threading.Thread.start = start_in_cell


def install_figures(kernel):
    from resource import RUSAGE_CHILDREN, getrusage
    from time import process_time

    init_metadata, finish_metadata = kernel.init_metadata, kernel.finish_metadata
    began = [0.0, 0]
    kills = oom_counter()

    def cpu():
        children = getrusage(RUSAGE_CHILDREN)
        return process_time() + children.ru_utime + children.ru_stime

    def init(parent):
        began[:] = cpu(), kills()
        return init_metadata(parent)

    def finish(parent, metadata, reply_content):
        metadata = finish_metadata(parent, metadata, reply_content)
        metadata["kernelbridge"] = {"cpu_ms": (cpu() - began[0]) * 1000.0}
        killed = kills() - began[1]
        if killed > 0:
            metadata["kernelbridge"]["oom_kills"] = killed
        return metadata

    kernel.init_metadata, kernel.finish_metadata = init, finish


def oom_counter():
    """Give a function that counts what the system has killed here for want of memory; 0 where it does not say.

    The container's own control group, version 1 or 2. The engine tells of it as well, but maybe after the cell's end.
    """
    pread = os.pread
    for path in ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue

        def count():
            try:
                text = pread(fd, 4096, 0)
                return int(text.partition(b"\noom_kill ")[2].split(None, 1)[0])
            except (OSError, IndexError, ValueError):  # the user closed it, or that of another system
                return 0

        return count
    return lambda: 0


def install_input(kernel):
    from IPython.core.error import StdinNotImplementedError

    def refuse(name, original):
        def ask(*args, **kwargs):
            if kernel.kernelbridge_outbox.forked:
                # It has a copy of the kernel's socket, on which no answer reaches it.
                raise StdinNotImplementedError("%s() is not available in a forked process" % name)
            if not kernel._allow_stdin:
                raise StdinNotImplementedError("%s() is not available here: pass the value in the code" % name)
            prompt = args[0] if args else kwargs.get("prompt", "")
            recollection.asked = {"prompt": kept_beginning(str(prompt)), "password": name == "getpass"}
            try:
                return original(*args, **kwargs)
            finally:
                recollection.asked = None

        ask.__name__ = ask.__qualname__ = name
        ask.__doc__ = original.__doc__
        return ask

    send_multipart = kernel.stdin_socket.send_multipart

    def send_whole(*args, **kwargs):
        with uninterrupted():
            return send_multipart(*args, **kwargs)

    kernel.stdin_socket.send_multipart = send_whole
    kernel.raw_input = refuse("input", kernel.raw_input)
    kernel.getpass = refuse("getpass", kernel.getpass)


@contextlib.contextmanager
def uninterrupted():
    """Have an interrupt wait until a message is sent: cut between two of its frames it would spoil the next one too."""
    if threading.current_thread() is not threading.main_thread():  # no signal comes there
        yield
        return
    came = []
    saved = signal.signal(signal.SIGINT, lambda *seen: came.append(seen))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, saved)
    if came and callable(saved):
        saved(*came[-1])


def install_plain(kernel):
    shell = kernel.shell
    # The wait lets output overtake the reply. It need not: a cell is over when idle comes, behind all its output.
    kernel._execute_sleep = 0.0
    if hasattr(shell, "_tee"):
        # IPython 9 keeps a copy of all that is ever printed, for the `%notebook` export.
        shell._tee = lambda channel: contextlib.nullcontext()


def install_pager(kernel):
    def show(shell, data, start=0, screen_lines=0, pager_cmd=None):
        if isinstance(data, dict):
            data = data.get("text/plain", "")
        print("\n".join(data.splitlines()[max(0, start) :]))

    kernel.shell.set_hook("show_in_pager", show, 0)


def install_debugger(kernel):
    if sys.breakpointhook.__module__.split(".")[0] in ("debugpy", "pydevd", "_pydev_bundle"):
        sys.breakpointhook = sys.__breakpointhook__


def install():
    from IPython import get_ipython

    kernel = get_ipython().kernel
    failures = []
    parts = (install_imports, install_names, install_lines, install_sources, install_streams, install_threads)
    parts += (install_figures, install_plain, install_interrupts, install_tracebacks, install_uncaught)
    parts += (install_pager, install_input, install_debugger, install_commands, install_recall)
    parts += (install_json, install_forks)
    for part in parts:
        try:
            part(kernel)
        except Exception as exc:
            failures.append("%s: %s: %s" % (part.__name__, type(exc).__name__, exc))
    if failures:
        raise RuntimeError("; ".join(failures))


install()
