"""What kernelbridge adds to an ipykernel from the inside.

The files of `PROGRAM` (in `kernelbridge.jupyter.launch`), one after the other, are one program. It is
sent as source with one silent execute and runs in a namespace of its own, so that the user's has
no new name. For ipykernel 6 and later, Python 3.8 and later; the standard library and the
kernel's own packages only. Each part is installed on its own: one that does not fit this kernel
is told in the answer and leaves the kernel as it was.

names       code is compiled under the request's file name: tracebacks show it with the source line
lines       line numbers are right behind a `!command` of several lines, too
sources     `inspect.getsource` finds classes too
imports     the kernel finds its own modules, whatever the workspace has of their names
streams     output arrives in the order in which it was written, that of subprocesses and C code too; nothing that user
            code does to `sys.stdout` and its like keeps a cell from being answered
forks       a forked child ends where its cell ends, and is no second kernel
threads     what a thread prints belongs to the cell that started the thread
figures     the CPU time of a cell, and whether memory ran out meanwhile, are in the metadata of its reply
plain       tracebacks as Python prints them; no wait per cell, no second copy of all output
json        messages are strict JSON, whatever a bundle holds; nothing is warned of
uncaught    errors of threads and finalisers show the source line too
pager       what IPython shows in a pager (`len?`, `%prun`) is printed: there is none
input       a program that asks for input is told what to do instead; a question goes out whole, whatever interrupts it
debugger    `breakpoint()` asks on stdin, as pdb does: no debugger can be attached
interrupts  one that comes before the cell's first line waits for it, one behind its last ends nothing; a cell that
            awaits is ended by one
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


def install_pager(kernel):
    def show(shell, data, start=0, screen_lines=0, pager_cmd=None):
        if isinstance(data, dict):
            data = data.get("text/plain", "")
        print("\n".join(data.splitlines()[max(0, start) :]))

    kernel.shell.set_hook("show_in_pager", show, 0)


def install_debugger(kernel):
    if sys.breakpointhook.__module__.split(".")[0] in ("debugpy", "pydevd", "_pydev_bundle"):
        sys.breakpointhook = sys.__breakpointhook__


def install_interrupts(kernel):
    """Let an interrupt end the cell's own code, also where it awaits, and nothing before and behind that.

    IPython's preparations would be broken off by one, or swallow it: the cell would never run, or never stop. Behind
    the cell its reply would be: not sent at all, or cut off between two of its frames, which spoils the next one too.
    So one that comes early waits for the first line, and one that comes late finds nothing to end.
    """
    import asyncio
    import contextlib
    import signal

    shell, before_handler, run_code = kernel.shell, kernel.pre_handler_hook, kernel.shell.run_code
    run_nodes = shell.run_ast_nodes
    user_code = run_code.__func__.__code__
    callbacks = shell.events.trigger.__func__.__code__
    interrupted = compile("raise KeyboardInterrupt", hide_hooks.__code__.co_filename, "exec")
    early, held, depth = [False], [False], [0]

    def inside(frame, code):
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        return frame is not None

    def hold(_signum, frame):
        held[0] = True
        # In callbacks: the user's, and they may take long. IPython goes on after them, but not after its own loop.
        if frame is not None and frame.f_code is not callbacks and inside(frame, callbacks):
            raise KeyboardInterrupt

    def pre_handler_hook():
        early[0] = held[0] = False
        depth[0] = 0
        if parent_of(kernel).get("header", {}).get("msg_type") == "execute_request":
            early[0] = True
            # In place of the original, which lets interrupts through: one between the two would lose the request.
            kernel.saved_sigint_handler = signal.signal(signal.SIGINT, hold)
        else:
            before_handler()

    async def run_code_at_last(code_obj, *args, **kwargs):
        if early[0]:
            early[0] = False
            if signal.getsignal(signal.SIGINT) is hold:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if held[0]:
                code_obj = interrupted
                kwargs["async_"] = False
        return await run_code(code_obj, *args, **kwargs)

    async def run_nodes_and_no_more(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():  # a subshell's: no signal comes there
            return await run_nodes(*args, **kwargs)
        depth[0] += 1  # a cell may run another
        try:
            try:
                return await run_nodes(*args, **kwargs)
            finally:
                depth[0] -= 1
                if not depth[0] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                    signal.signal(signal.SIGINT, hold)
        except KeyboardInterrupt as exc:  # just behind the code's end
            if not depth[0]:
                signal.signal(signal.SIGINT, hold)
            if kwargs.get("result") is not None:
                kwargs["result"].error_in_exec = exc
            shell.showtraceback()
            return True

    @contextlib.contextmanager
    def cancel_on_sigint(future):
        loop = asyncio.get_running_loop()

        def interrupt(signum, frame):
            if early[0]:
                hold(signum, frame)
            elif inside(frame, user_code):
                raise KeyboardInterrupt
            else:  # the loop runs, but waits: only this wakes it
                loop.call_soon_threadsafe(future.cancel)

        saved = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, saved)

    never_stopped(kernel.iopub_thread.thread)
    kernel.pre_handler_hook, shell.run_code = pre_handler_hook, run_code_at_last
    shell.run_ast_nodes = run_nodes_and_no_more
    if hasattr(kernel, "_cancel_on_sigint"):
        kernel._cancel_on_sigint = cancel_on_sigint


def never_stopped(thread):
    """Let an interrupt that hits `is_alive` of a thread leave that alive.

    Up to Python 3.12 it is taken for dead for ever then: what it should publish is sent by whoever writes, in the
    middle of its own messages.
    """
    if hasattr(thread, "_is_stopped") and hasattr(thread, "_tstate_lock"):
        thread.is_alive = lambda: thread._started.is_set() and not thread._is_stopped


def install_commands(kernel):
    """Run `!command` as the session's shell runs commands: with a terminal to write on and none to read from.

    IPython's own way gives it one to read from, at which nobody types: what asks there waits for ever. And
    an interrupt ends only the command there: the cell goes on, and nobody learns that it was cut short.
    """
    import codecs
    import fcntl
    import os
    import select
    import signal
    import struct
    import subprocess
    import termios

    from ipykernel import zmqshell

    # A group of its own, in the kernel's session: it ends with the kernel, and has no /dev/tty.
    apart = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}

    def system(cmd):
        master, slave = os.openpty()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            argv = [os.environ.get("SHELL") or "sh", "-c", cmd]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, **apart)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        try:
            show(process, master)
            code = process.wait()
        except BaseException:
            end(process, master)
            raise
        finally:
            os.close(master)
        return 128 - code if code > 128 else code

    def show(process, master, seconds=None):
        """Print what is written, until the command has ended; at most for so long."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        poll = select.poll()
        poll.register(master, select.POLLIN)
        began, after = time.monotonic(), 0
        # Jobs that it leaves may go on writing: of theirs, what a terminal holds.
        while after < 1 << 16 and (seconds is None or time.monotonic() < began + seconds):
            ended = process.poll() is not None
            if poll.poll(0 if ended else 50):
                try:
                    data = os.read(master, 1 << 16)
                except OSError:  # what Linux says when nobody can write any more
                    break
                print(decoder.decode(data), end="", flush=True)
                after += len(data) if ended else 0
            elif ended:
                break
        print(decoder.decode(b"", True), end="", flush=True)

    def end(process, master):
        """SIGINT, and half a second later SIGKILL, to all that it started in its group."""
        for signum in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, signum)
                show(process, master, 0.5)
            except ProcessLookupError:
                break
            except KeyboardInterrupt:
                pass  # who is impatient gets the next step at once
        process.wait()

    zmqshell.system = system


def install():
    from IPython import get_ipython

    kernel = get_ipython().kernel
    failures = []
    parts = (install_imports, install_names, install_lines, install_sources, install_streams, install_threads)
    parts += (install_figures, install_plain, install_uncaught, install_pager, install_input)
    parts += (install_debugger, install_interrupts, install_commands, install_recall, install_json, install_forks)
    for part in parts:
        try:
            part(kernel)
        except Exception as exc:
            failures.append("%s: %s: %s" % (part.__name__, type(exc).__name__, exc))
    if failures:
        raise RuntimeError("; ".join(failures))


install()
