"""What kernelbridge adds to an ipykernel from the inside.

Sent as source with one silent execute and run in a namespace of its own, so that the user's has no
new name. For ipykernel 6 and later, Python 3.8 and later; the standard library and the
kernel's own packages only. Each part is installed on its own: one that does not fit this kernel
is told in the answer and leaves the kernel as it was.

names     code is compiled under the request's file name: tracebacks show it with the source line
streams   stdout and stderr arrive in the order in which they were written, those of subprocesses and C code too
threads   what a thread prints belongs to the cell that started the thread
figures   the CPU time of a cell is in the metadata of its reply
plain     tracebacks as Python prints them; no wait per cell, no second copy of all output
"""

import builtins
import codecs
import codeop
import contextlib
import contextvars
import linecache
import os
import select
import sys
import threading
import time
import traceback
from collections import deque

SOURCES = 32 << 20  # characters of old cells kept for tracebacks and inspect; the oldest go first
PART = 1 << 20  # characters of one stream message
AHEAD = 4 << 20  # characters a program may print ahead of what is sent


# -- names ------------------------------------------------------------------------


class CellName(str):
    """A file name that equals its text, yet is another key than any other cell's.

    So several cells of one name keep their own source in `linecache`. Pickles as plain text;
    `marshal` refuses it.
    """

    __slots__ = ("skipped",)  # empty lines at the start, which IPython removes

    def __eq__(self, other):
        return self is other if type(other) is CellName else str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return id(self) >> 4

    def __reduce__(self):
        return (str, (str.__str__(self),))


def install_names(kernel):
    compiler = kernel.shell.compile
    cached = deque()
    kept = [0]
    format_code_name = getattr(compiler, "format_code_name", None)

    def cache(transformed_code, number=0, raw_code=None):
        metadata = parent_of(kernel).get("metadata") or {}
        filename = (metadata.get("kernelbridge") or {}).get("filename")
        if not filename:
            return type(compiler).cache(compiler, transformed_code, number, raw_code)
        name = CellName(filename)
        name.skipped = empty_lines(raw_code or "") - empty_lines(transformed_code)
        linecache.cache[name] = (
            len(transformed_code),
            None,  # no file, so `checkcache` leaves it alone
            ["\n"] * name.skipped + [line + "\n" for line in transformed_code.splitlines()],
            name,
        )
        cached.append(name)
        kept[0] += len(transformed_code)
        while kept[0] > SOURCES and len(cached) > 1:
            kept[0] -= (linecache.cache.pop(cached.popleft(), None) or (0,))[0]
        return name

    def ast_parse(source, filename="<unknown>", symbol="exec"):
        if type(filename) is CellName:
            source = "\n" * filename.skipped + source
        return type(compiler).ast_parse(compiler, source, filename, symbol)

    def format_name(name):
        if type(name) is CellName:
            return "File", str.__str__(name)
        return format_code_name(name) if format_code_name is not None else None

    # The wording for a prompt that waits for more ("incomplete input") is no use for a whole cell.
    compiler.flags &= ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
    compiler.cache = cache
    compiler.ast_parse = ast_parse
    compiler.format_code_name = format_name


def empty_lines(code):
    """Count the empty lines that code starts with."""
    code = code[: len(code) - len(code.lstrip())]
    return code.count("\n")


def parent_of(kernel):
    """Give the request that is being handled."""
    try:
        return kernel.get_parent("shell")
    except TypeError:
        return kernel.get_parent()


# -- streams ------------------------------------------------------------------------


class Mark:
    """A place in the queue."""

    passed = False


class Outbox:
    """What was written and not yet sent: one queue for both streams, so that their order is kept.

    Written to by any thread; only the publishing thread takes from it.
    """

    def __init__(self, pub_thread, session):
        self.pub_thread = pub_thread
        self.session = session
        self.master = os.getpid()
        self.items = deque()  # (stream, parent header, text), or a mark
        self.size = 0
        self.timer = False
        self.scheduled = 0
        self.lock = threading.Lock()
        self.pipes = {}  # descriptor: (stream, decoder)
        self.pipe_lock = threading.RLock()
        self.poll = select.poll()
        self.flush_c = lambda: None

    def add(self, stream, parent, text):
        self.items.append((stream, parent, text))
        self.size += len(text)
        if not self.timer:
            self.timer = True
            self.pub_thread.schedule(self.start_timer)
        if self.size > AHEAD and threading.current_thread() is not self.pub_thread.thread:
            self.flush(AHEAD_TIMEOUT)

    def start_timer(self):
        self.pub_thread.io_loop.call_later(0.2, self.on_timer)

    def on_timer(self):
        self.timer = False
        self.request()

    def request(self, then=None):
        """Have what is in the queue now sent, in line with whatever else is to be published."""
        with self.lock:
            self.scheduled += 1
        # What is written from here on may belong behind a display that is published meanwhile.
        mark = Mark()
        self.items.append(mark)

        def send():
            try:
                if not mark.passed:
                    self.send(mark)
            finally:
                with self.lock:
                    self.scheduled -= 1
                if then is not None:
                    then()

        self.pub_thread.schedule(send)

    def flush(self, timeout):
        """Return when everything is on its way."""
        if self.pipes:
            self.flush_c()
            self.drain()
        if not self.items and not self.scheduled:
            return
        thread = self.pub_thread.thread
        if thread is None or not thread.is_alive():
            self.send(None)
        elif thread is threading.current_thread():
            self.request()
        else:
            sent = threading.Event()
            self.request(sent.set)
            sent.wait(timeout)

    def send(self, until):
        """Publish what is before a mark, or all; what follows in one stream and one cell goes as one message."""
        items = self.items
        parts, length, last = [], 0, None
        while items:
            item = items.popleft()
            if type(item) is Mark:
                item.passed = True
                if item is until:
                    break
                continue
            stream, parent, text = item
            self.size -= len(text)
            if last is not None and (last[0] is not stream or last[1] is not parent or length > PART):
                self.publish(last[0], last[1], "".join(parts))
                parts, length = [], 0
            last = (stream, parent)
            parts.append(text)
            length += len(text)
        if last is not None:
            self.publish(last[0], last[1], "".join(parts))
        if not items:
            self.size = 0

    def publish(self, stream, parent, text):
        session = self.session
        session.pid = os.getpid()
        if not text.isascii():
            # Half a surrogate pair, from a file name that is not UTF-8, say: JSON cannot carry it.
            text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        for start in range(0, len(text), PART):
            content = {"name": stream.name, "text": text[start : start + PART]}
            session.send(self, session.msg("stream", content, parent=parent), ident=stream.topic)

    def send_multipart(self, *args, **kwargs):
        # Called by `session.send`, in the publishing thread: at once, not behind what was queued meanwhile.
        self.pub_thread._really_send(*args, **kwargs)

    def drain(self):
        """Take what subprocesses and C code have written to descriptors 1 and 2.

        What another thread has taken from a pipe is in the queue when this returns: hence the lock.
        """
        with self.pipe_lock:
            while True:
                try:
                    ready = self.poll.poll(0)
                except RuntimeError:  # a signal handler that prints, run in the middle of this very call
                    return
                if not ready:
                    return
                for fd, _ in ready:
                    stream, decoder = self.pipes[fd]
                    data = os.read(fd, 65536)
                    if not data:
                        self.poll.unregister(fd)
                        continue
                    text = decoder.decode(data)
                    if text:
                        self.items.append((stream, stream_parent(stream), text))
                        self.size += len(text)

    def watch(self):
        """Body of the thread that waits for such output while Python code prints nothing."""
        waiter = select.poll()
        for fd in self.pipes:
            waiter.register(fd, select.POLLIN)
        while True:
            for _, event in waiter.poll():
                if not event & select.POLLIN:
                    return
            self.drain()
            if self.items and not self.timer:
                self.timer = True
                self.pub_thread.schedule(self.start_timer)
            if self.size > AHEAD:
                self.flush(AHEAD_TIMEOUT)


AHEAD_TIMEOUT = 10


def stream_parent(stream):
    """Give the running cell's header: descriptors know nothing of threads and tasks."""
    try:
        return stream._parent_header_global
    except AttributeError:
        return stream.parent_header


def stream_class(base, outbox):
    class OutStream(base):
        """ipykernel's stream, but with one queue for stdout and stderr."""

        def write(self, string):
            if os.getpid() != outbox.master:
                return base.write(self, string)
            if not isinstance(string, str):
                raise TypeError("write() argument must be str, not %s" % type(string))
            if self.pub_thread is None:
                raise ValueError("I/O operation on closed file")
            if self.echo is not None:
                self.echo.write(string)
            if outbox.pipes:
                outbox.drain()
            outbox.add(self, self.parent_header, string)
            return len(string)

        def flush(self):
            if os.getpid() != outbox.master or self.pub_thread is None:
                return base.flush(self)
            outbox.flush(self.flush_timeout)

    OutStream.__module__ = base.__module__
    OutStream.__qualname__ = OutStream.__name__ = base.__name__
    return OutStream


def install_streams(kernel):
    import zmq
    from ipykernel.iostream import OutStream

    streams = [stream for stream in (sys.stdout, sys.stderr) if type(stream) is OutStream]
    if len(streams) != 2:
        return
    for stream in streams:
        stream.flush()
    pub_thread = streams[0].pub_thread
    outbox = Outbox(pub_thread, streams[0].session)
    for stream in streams:
        take_pipe(stream, outbox)
    for stream in streams:
        stream.__dict__.pop("write", None)  # IPython 9 leaves one there with every cell
        stream.__class__ = stream_class(OutStream, outbox)
    if outbox.pipes:
        outbox.flush_c = c_flush()
        watcher = threading.Thread(target=outbox.watch, name="OutputWatcher", daemon=True)
        watcher.pydev_do_not_trace = watcher.is_pydev_daemon_thread = True
        watcher.start()

    def keep_all():
        # A publisher drops what its subscriber does not take in time; this one waits.
        pub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)

    pub_thread.schedule(keep_all)


def take_pipe(stream, outbox):
    """Take over the pipe that ipykernel has put in the place of the stream's descriptor.

    Its own reader removes data from the pipe before anybody can know of it; ours looks first.
    """
    fd = getattr(stream, "_fid", None)
    thread = getattr(stream, "watch_fd_thread", None)
    if fd is None or thread is None or not getattr(stream, "_should_watch", False):
        return
    target = getattr(stream, "_original_stdstream_fd", {"stdout": 1, "stderr": 2}[stream.name])
    stream._should_watch = False  # also keeps `close` from waiting for a thread that is gone
    os.write(target, b"\0")
    thread.join(5)
    if thread.is_alive():
        stream._should_watch = True
        return
    outbox.pipes[fd] = (stream, codecs.getincrementaldecoder("utf-8")("replace"))
    outbox.poll.register(fd, select.POLLIN)


def c_flush():
    """Give a function that empties the C library's buffer of stdout."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        stdout = ctypes.c_void_p.in_dll(libc, "stdout")
        fflush = libc.fflush
        fflush.argtypes = [ctypes.c_void_p]
        fflush(stdout)
    except (ImportError, OSError, ValueError, AttributeError):
        return lambda: None
    return lambda: fflush(stdout)


# -- threads ------------------------------------------------------------------------


def install_threads(kernel):
    """Let a new thread inherit which cell it belongs to, in kernels that keep that in context variables."""
    from concurrent.futures import thread as pool

    shell = kernel.shell
    owners = (sys.stdout, sys.stderr, shell.display_pub, shell.displayhook, shell)
    variables = [getattr(owner, "_parent_header", None) for owner in owners]
    variables += [getattr(kernel, name, None) for name in ("_shell_parent", "_shell_parent_ident")]
    variables = [variable for variable in variables if isinstance(variable, contextvars.ContextVar)]
    if not variables or hasattr(sys.stdout, "_thread_to_parent"):
        return  # ipykernel 6 keeps its own account
    start = threading.Thread.start

    def start_in_cell(self):
        # A pool's thread works for many cells: it belongs to whichever runs.
        if getattr(self, "_target", None) is not pool._worker:
            values = [(variable, variable.get(None)) for variable in variables]
            run = self.run

            def run_in_cell():
                del self.run
                for variable, value in values:
                    if value is not None:
                        variable.set(value)
                run()

            self.run = run_in_cell
        start(self)

    start_in_cell.__name__, start_in_cell.__qualname__ = "start", "Thread.start"
    start_in_cell.__doc__, start_in_cell.__module__ = start.__doc__, start.__module__
    threading.Thread.start = start_in_cell


# -- figures ------------------------------------------------------------------------


def install_figures(kernel):
    import resource

    init_metadata, finish_metadata = kernel.init_metadata, kernel.finish_metadata
    began = [0.0]

    def cpu():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    def init(parent):
        began[0] = cpu()
        return init_metadata(parent)

    def finish(parent, metadata, reply_content):
        metadata = finish_metadata(parent, metadata, reply_content)
        metadata["kernelbridge"] = {"cpu_ms": (cpu() - began[0]) * 1000.0}
        return metadata

    kernel.init_metadata, kernel.finish_metadata = init, finish


# -- plain ------------------------------------------------------------------------


def install_plain(kernel):
    shell = kernel.shell
    # The wait lets output overtake the reply. It need not: a cell is over when idle comes, behind all its output.
    kernel._execute_sleep = 0.0
    if hasattr(shell, "_tee"):
        # IPython 9 keeps a copy of all that is ever printed, for the `%notebook` export.
        shell._tee = lambda channel: contextlib.nullcontext()
    try:
        shell.colors = "nocolor"  # IPython 9
    except Exception:
        shell.colors = "NoColor"
    shell.InteractiveTB.set_mode(mode="Plain")
    for formatter in (shell.InteractiveTB, shell.SyntaxTB):
        formatter.structured_traceback = python_traceback(formatter)
    show_groups(shell)


def python_traceback(formatter):
    """Give a replacement for IPython's formatting that prints as Python does, until `%xmode` asks for another."""
    original = formatter.structured_traceback

    def structured_traceback(etype=None, evalue=None, etb=None, tb_offset=None, *args, **kwargs):
        if getattr(formatter, "mode", "Plain") != "Plain" or not isinstance(evalue, BaseException):
            return original(etype, evalue, etb, tb_offset, *args, **kwargs)
        skip = getattr(formatter, "tb_offset", 0) if tb_offset is None else tb_offset
        for _ in range(skip):
            etb = getattr(etb, "tb_next", None)
        if isinstance(etb, list):  # of a SyntaxError in the cell itself: there is no stack
            etb = None
        if isinstance(evalue, SyntaxError) and evalue.lineno and not evalue.text:
            evalue.text = linecache.getline(evalue.filename or "", evalue.lineno) or None
        return "".join(traceback.format_exception(etype, evalue, etb)).rstrip("\n").split("\n")

    return structured_traceback


def show_groups(shell):
    """Show exception groups as any other exception: IPython prints them to stderr, its own frames included."""
    group = getattr(builtins, "BaseExceptionGroup", None)
    showtraceback = shell.showtraceback

    def show(exc_tuple=None, filename=None, tb_offset=None, exception_only=False, **kwargs):
        value = (exc_tuple or sys.exc_info())[1]
        if isinstance(value, group) and not exception_only and shell.InteractiveTB.mode == "Plain":
            etype, value, tb = shell._get_exc_info(exc_tuple)
            stb = shell.InteractiveTB.structured_traceback(etype, value, tb, tb_offset=tb_offset)
            shell._showtraceback(etype, value, stb)
        else:
            showtraceback(exc_tuple, filename, tb_offset, exception_only, **kwargs)

    if group is not None:
        shell.showtraceback = show


def install():
    from IPython import get_ipython

    kernel = get_ipython().kernel
    failures = []
    for part in (install_names, install_streams, install_threads, install_figures, install_plain):
        try:
            part(kernel)
        except Exception as exc:
            failures.append("%s: %s: %s" % (part.__name__, type(exc).__name__, exc))
    if failures:
        raise RuntimeError("; ".join(failures))


install()
