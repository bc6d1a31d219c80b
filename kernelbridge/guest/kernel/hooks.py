"""The hooks: what kernelbridge adds to an ipykernel from the inside.

The files of `PROGRAM` (in `kernelbridge.jupyter.launch`), joined, are one program. One silent execute request sends it
as source. It runs in a namespace of its own, so the user's namespace gets no new name. It needs ipykernel 6 or later,
Python 3.8 or later, and only the standard library and the kernel's own packages. Each part is installed separately. If
one does not fit this kernel, the reply says so, and what that part would change stays as it was.

names       code is compiled under the request's file name: tracebacks show it with the source line
lines       only newlines and Windows' line ends end a line; line numbers are right after a `!command` of several lines
sources     `inspect.getsource` finds classes too, and debuggers find the lines of cells
imports     the kernel finds its own modules, even if the workspace has files of the same names
streams     output arrives in the order in which it was written, also that of subprocesses and C code; user code can do
            anything to `sys.stdout` and the like, and a cell is still answered
forks       a forked child ends where its cell ends, and is no second kernel
json        messages are strict JSON, whatever a bundle contains, and without warnings
threads     output of a thread belongs to the cell that started the thread
figures     the metadata of a reply has the CPU time of its cell, and whether memory was exhausted meanwhile
plain       no wait per cell, no second copy of all output
tracebacks  errors as Python prints them, each once and bounded, whatever methods the exception has
uncaught    the same for errors of threads and finalizers
pager       what IPython shows in a pager (`len?`, `%prun`) is printed, because there is no pager
input       if no client can answer, `input()` fails and says what to do; an interrupt never cuts a question; an exception
            of a signal handler ends it; an answer to an earlier question is none
debugger    `breakpoint()` asks on stdin, as pdb does, because no debugger can be attached
interrupts  an interrupt ends what blocks, also in tasks, callbacks and finalizers, and the cell if a magic swallows it;
            before the cell's first line it waits for that, and after the last line it ends nothing
commands    `!command` reads end-of-file, and an interrupt that ends it ends its cell
recall      what a cell sends while no server is connected is kept for the next server
"""

import contextlib
import contextvars
import functools
import os
import signal
import sys
import threading
import time


def install_threads(kernel):
    """Let a new thread belong to the cell that starts it, and let a child that a thread forks end with the thread."""
    from concurrent.futures import thread as pool

    shell, outbox = kernel.shell, kernel.kernelbridge_outbox
    owners = (sys.stdout, sys.stderr, shell.display_pub, shell.displayhook, shell)
    variables = [getattr(owner, "_parent_header", None) for owner in owners]
    variables += [getattr(kernel, name, None) for name in ("_shell_parent", "_shell_parent_ident")]
    variables = [variable for variable in variables if isinstance(variable, contextvars.ContextVar)]
    if hasattr(sys.stdout, "_thread_to_parent"):
        variables = []  # ipykernel 6 records this itself
    start = threading.Thread.start

    @functools.wraps(start)
    def start_in_cell(self):
        # The thread of a pool works for many cells. Its output belongs to the one that runs.
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
    """Return a function that counts the processes killed here because memory was exhausted; 0 if that is unknown.

    It reads the container's own control group, version 1 or 2. The engine reports this too, but maybe after the cell's
    end. Where the agent is not process 1, the control group is shared with the server and other sandboxes.
    """
    pread = os.pread
    try:
        with open("/proc/1/comm") as stream:
            own = stream.read() == "kb-agent\n"
    except OSError:
        own = False
    for path in ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events") if own else ():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue

        def count():
            try:
                text = pread(fd, 4096, 0)
                return int(text.partition(b"\noom_kill ")[2].split(None, 1)[0])
            except (OSError, IndexError, ValueError):  # user code closed the descriptor, or the format is another
                return 0

        return count
    return lambda: 0


def install_plain(kernel):
    shell = kernel.shell
    # ipykernel waits so that output arrives before the reply. The bridge waits for idle, which follows all output.
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
        except Exception as exc:  # a part that does not fit this kernel must not prevent the others
            failures.append("%s: %s: %s" % (part.__name__, type(exc).__name__, exc))
    if failures:
        raise RuntimeError("; ".join(failures))


install()
