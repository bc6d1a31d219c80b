"""Output of a cell, exact: part of the program of `hooks.py`, which see.

stdout and stderr share one queue, so that what was written first arrives first; what subprocesses,
forked children and C code write to descriptors 1 and 2 is put in between where it belongs. ipykernel
has a buffer for each stream and a thread for each descriptor, none of which knows of the others.
"""

import codecs
import os
import select
import sys
import threading
from collections import deque
from time import monotonic  # not by way of its module, where user code may replace it

PART = 1 << 17  # characters of one stream message: queues count messages, so they must be small
COLLECT = 0.2  # seconds for which writes are collected, as ipykernel does
COLLECT_STREAMED = 0.004  # the same for cells that somebody watches
COLLECT_FIRST = 0.0005  # the same for what they write after a while of silence: a line of print() is two writes
AHEAD = 4 << 20  # characters a program may print ahead of what is sent
AHEAD_TIMEOUT = 10  # seconds that it then waits at most
TARGETS = {"stdout": 1, "stderr": 2}


class Mark:
    """A place in the queue."""

    passed = False


class Timer:
    """Has what was written sent after a while."""

    def __init__(self, outbox, seconds, first):
        self.outbox = outbox
        self.seconds = seconds
        self.first = first
        self.armed = False
        self.fired = 0.0

    def start(self):
        silent = monotonic() - self.fired > self.seconds
        self.outbox.pub_thread.io_loop.call_later(self.first if silent else self.seconds, self.fire)

    def fire(self):
        self.armed = False
        self.fired = monotonic()
        self.outbox.request()


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
        self.timers = (Timer(self, COLLECT, COLLECT), Timer(self, COLLECT_STREAMED, COLLECT_FIRST))
        self.timer = self.timers[0]  # of the cell that runs: a slower one may still be armed for the one before
        self.scheduled = 0
        self.lock = threading.Lock()
        self.pipes = {}  # descriptor: (stream, decoder)
        self.pipe_lock = threading.RLock()
        self.poll = select.poll()
        self.flush_c = lambda: None

    def add(self, stream, parent, text):
        self.items.append((stream, parent, text))
        self.size += len(text)
        timer = self.timer
        if not timer.armed:
            timer.armed = True
            self.pub_thread.schedule(timer.start)
        if self.size > AHEAD and threading.current_thread() is not self.pub_thread.thread:
            self.flush(AHEAD_TIMEOUT)

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
            recollection.length = len(content["text"]) if text.isascii() else len(content["text"].encode())
            session.send(self, session.msg("stream", content, parent=parent), ident=stream.topic)
        recollection.length = None

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
            timer = self.timer
            if self.items and not timer.armed:
                timer.armed = True
                self.pub_thread.schedule(timer.start)
            if self.size > AHEAD:
                self.flush(AHEAD_TIMEOUT)


def stream_parent(stream):
    """Give the running cell's header: descriptors know nothing of threads and tasks."""
    try:
        return stream._parent_header_global
    except AttributeError:
        return stream.parent_header


def write_in_child(stream, string):
    """Write in a forked process, which has no publisher: to the pipe that its parent reads."""
    data = string.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(TARGETS[stream.name], data) :]
    return len(string)


def stream_class(base, outbox):
    class OutStream(base):
        """ipykernel's stream, but with one queue for stdout and stderr."""

        def write(self, string):
            if os.getpid() != outbox.master and not outbox.pipes:
                return base.write(self, string)
            if not isinstance(string, str):
                raise TypeError("write() argument must be str, not %s" % type(string))
            if self.pub_thread is None:
                raise ValueError("I/O operation on closed file")
            if os.getpid() != outbox.master:
                return write_in_child(self, string)
            if self.echo is not None:
                self.echo.write(string)
            if outbox.pipes:
                outbox.drain()
            outbox.add(self, self.parent_header, string)
            return len(string)

        def flush(self):
            if os.getpid() == outbox.master and self.pub_thread is not None:
                outbox.flush(self.flush_timeout)
            elif not outbox.pipes:
                base.flush(self)

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

    init_metadata = kernel.init_metadata

    def choose_timer(parent):
        # Once for each cell, before it runs.
        request = parent.get("metadata") or {}
        outbox.timer = outbox.timers[bool((request.get("kernelbridge") or {}).get("stream"))]
        return init_metadata(parent)

    kernel.init_metadata = choose_timer


def take_pipe(stream, outbox):
    """Take over the pipe that ipykernel has put in the place of the stream's descriptor.

    Its own reader removes data from the pipe before anybody can know of it; ours looks first.
    """
    fd = getattr(stream, "_fid", None)
    thread = getattr(stream, "watch_fd_thread", None)
    if fd is None or thread is None or not getattr(stream, "_should_watch", False):
        return
    stream._should_watch = False  # also keeps `close` from waiting for a thread that is gone
    os.write(TARGETS[stream.name], b"\0")
    thread.join(5)
    if thread.is_alive():
        stream._should_watch = True
        return
    outbox.pipes[fd] = (stream, codecs.getincrementaldecoder("utf-8")("replace"))
    outbox.poll.register(fd, select.POLLIN)
    copy = getattr(stream, "_original_stdstream_copy", None)
    if copy is not None:
        # What the process was started with goes: a forked child would hold it open when the kernel is dead, and the
        # engine waits for that before it tells of the death. And what is given `sys.stdout` writes where it belongs.
        os.dup2(TARGETS[stream.name], copy, inheritable=False)


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
