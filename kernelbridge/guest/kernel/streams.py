"""The exact output of a cell: part of the hooks, see `hooks.py`.

stdout and stderr share one queue, so that output arrives in the order in which it was written. Output of subprocesses,
forked children and C code, which write to descriptors 1 and 2, is inserted in its place. ipykernel has a separate
buffer for each stream and a separate thread for each descriptor.

User code may replace any function that this module uses. So functions are imported by name when the kernel starts.
"""

import codecs
import io
import os
import select
import sys
import threading
from collections import deque
from os import dup2, fstat, read, sched_yield
from os import write as write_fd
from threading import Event, Thread, current_thread
from time import monotonic

PART = 1 << 17  # characters of one stream message: ZeroMQ's queues count messages, so they must be small
COLLECT = 0.2  # seconds for which writes are collected, as in ipykernel
COLLECT_STREAMED = 0.004  # the same for cells that a client watches
COLLECT_FIRST = 0.0005  # the same for their first write after silence: a line of print() is two writes
AHEAD = 4 << 20  # characters that may be written and not sent yet; then writers wait
AHEAD_TIMEOUT = 10  # maximum seconds of this wait
ALIVE_INTERVAL = 100  # milliseconds between the signs of life of a kernel that reads nothing from the pump
PUMP_TIMEOUT = 2.0  # maximum seconds to wait until the pump has read a pipe; usually it takes microseconds
TARGETS = {"stdout": 1, "stderr": 2}
# The words of the memory that is shared with the pump; see `pump.py`.
WRITTEN, TAKEN, SENT, BUSY, OUT, ERR, ALIVE, LOST = range(8)
PAGE = 4096
CHUNK = 1 << 16  # bytes that the pump reads at once
LEFT_OUT = "\n[kernelbridge: %d bytes of what C code or subprocesses wrote are left out here]\n"


class Mark:
    """A place in the queue."""

    passed = False


class Place:
    """A place in the queue up to which the shared memory, up to byte `at`, has been sent."""

    def __init__(self, at):
        self.at = at


class Timer:
    """Sends what was written, a short time later."""

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
    """Text that was written and is not sent yet, in one queue for both streams, so that their order is kept.

    Any thread may add to it; only the publishing thread removes from it.
    """

    def __init__(self, pub_thread, session):
        self.pub_thread = pub_thread
        self.session = session
        self.forked = False  # whether this is a forked child, which has no publisher
        self.begun = {}  # descriptor: the unfinished line of such a child
        self.items = deque()  # (stream, parent header, text), or a `Mark` or `Place`
        self.size = 0  # characters in it
        self.timers = (Timer(self, COLLECT, COLLECT), Timer(self, COLLECT_STREAMED, COLLECT_FIRST))
        self.timer = self.timers[0]  # that of the running cell; a slower one may still be armed for the cell before
        self.scheduled = 0
        self.lock = threading.Lock()
        self.source = None  # of the text that is written to descriptors
        self.source_lock = threading.RLock()
        self.draining = False
        self.flush_c = lambda: None

    def arm(self, timer):
        timer.armed = True
        self.pub_thread.schedule(timer.start)

    def wait_for_room(self):
        """Wait until the queue is sent, because it is too long."""
        if current_thread() is not self.pub_thread.thread:
            self.flush(AHEAD_TIMEOUT)

    def request(self, then=None):
        """Schedule the sending of the present queue, in order with other messages; then call `then`."""
        with self.lock:
            self.scheduled += 1
        # Later text may have to follow a display that is published meanwhile.
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
        """Wait until everything written so far has been published, or for `timeout` seconds."""
        if self.source is not None:
            self.flush_c()
            self.drain()
        if not self.items and not self.scheduled:
            return
        thread = self.pub_thread.thread
        if thread is None or not thread.is_alive():
            self.send(None)
        elif thread is current_thread():
            self.request()
        else:
            sent = Event()
            self.request(sent.set)
            sent.wait(timeout)

    def send(self, until):
        """Publish the queue up to a mark (None: all of it); adjacent text of one stream and cell is one message."""
        items = self.items
        parts, length, stream, parent, place = [], 0, None, None, None
        while items:
            item = items.popleft()
            if type(item) is tuple:
                if item[0] is not stream or item[1] is not parent or length > PART:
                    if parts:
                        self.size -= length
                        self.publish(stream, parent, "".join(parts))
                        parts, length = [], 0
                    stream, parent = item[0], item[1]
                parts.append(item[2])
                length += len(item[2])
            elif type(item) is Place:
                place = item.at
            else:
                item.passed = True
                if item is until:
                    break
        if parts:
            self.size -= length
            self.publish(stream, parent, "".join(parts))
        if place is not None:
            self.source.sent(place)
        if not items:
            self.size = 0

    def publish(self, stream, parent, text):
        session = self.session
        if not text.isascii():
            # JSON cannot encode half a surrogate pair, which a file name that is not UTF-8 may contain.
            text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        name, topic = stream.kernelbridge_target
        for start in range(0, len(text), PART):
            content = {"name": name, "text": text[start : start + PART]}
            recorder.length = len(content["text"]) if text.isascii() else len(content["text"].encode())
            session.send(self, session.msg("stream", content, parent=parent), ident=topic)
        recorder.length = None

    def send_multipart(self, *args, **kwargs):
        # Called by `session.send` in the publishing thread: it sends at once, not after what was queued meanwhile.
        self.pub_thread._really_send(*args, **kwargs)

    def drain(self):
        """Move what subprocesses and C code have written to descriptors 1 and 2 into the queue.

        It takes a lock, so that text that another thread is moving is in the queue as well when this returns.
        """
        if self.forked:
            return
        with self.source_lock:
            if self.draining:  # a signal handler prints in the middle of this call
                return
            self.draining = True
            try:
                self.source.take()
            finally:
                self.draining = False

    def put(self, stream, text):
        """Add text of a descriptor to the queue."""
        if text:
            self.items.append((stream, stream_parent(stream), text))
            self.size += len(text)

    def watch(self):
        """Wait for output of descriptors while Python code prints nothing; runs in a thread of its own."""
        waiter = select.poll()
        for fd in self.source.bells():
            waiter.register(fd, select.POLLIN)
        full = False
        while True:
            for fd, event in waiter.poll(ALIVE_INTERVAL if full else None):
                # The second: another thread has noticed the pump's end, and its bell may ring unheard for ever.
                if not event & select.POLLIN or fd not in self.source.bells():
                    waiter.unregister(fd)
                    self.source.go_on_without_pump()
                    if fd in self.source.bells():  # the pipe itself has ended
                        return
                    for other in self.source.bells():
                        waiter.register(other, select.POLLIN)
            self.source.show_alive()
            full = self.size > AHEAD
            if not full:
                self.drain()
                full = self.size > AHEAD
            if self.items and not self.timer.armed:
                self.arm(self.timer)
            if full and self.pub_thread.thread.is_alive() and not self.scheduled:
                self.request()

    def forget_all(self):
        """Drop everything, in a forked child: the parent sends it."""
        self.forked = True
        self.items.clear()
        self.size = 0
        self.lock, self.source_lock = threading.Lock(), threading.RLock()
        self.flush_c = lambda: None
        if self.source is not None:
            self.source.close()


class OwnPipes:
    """Descriptors 1 and 2, read by this process: `start.py` has not started the kernel, or the pump was killed."""

    def __init__(self, outbox, streams):
        self.outbox = outbox
        self.pipes = {stream._fid: (stream, codecs.getincrementaldecoder("utf-8")("replace")) for stream in streams}
        self.poll = poll_of(self.pipes)
        self.glance = poll_of(self.pipes).poll  # for any thread, also while another uses `poll`
        self.words = [0] * 8

    def pending(self):
        """Whether there may be unread output."""
        try:
            return self.glance(0) or self.words[BUSY]
        except RuntimeError:  # another thread uses the same poll object
            return True

    def take(self):
        self.words[BUSY] = 1  # while text is read, it is neither in a pipe nor in the queue
        try:
            while True:
                ready = self.poll.poll(0)
                if not ready:
                    return
                for fd, _ in ready:
                    stream, decoder = self.pipes[fd]
                    data = read(fd, 65536)
                    if not data:
                        self.poll.unregister(fd)
                        continue
                    self.outbox.put(stream, decoder.decode(data))
        finally:
            self.words[BUSY] = 0

    def bells(self):
        return list(self.pipes)

    def go_on_without_pump(self):
        pass

    def show_alive(self):
        pass

    def sent(self, place):
        pass

    def close(self):
        for fd in self.pipes:
            close_fd(fd)


class PumpedPipes:
    """Descriptors 1 and 2, read by the pump, whose ring this process reads."""

    def __init__(self, outbox, streams, pump):
        self.outbox = outbox
        self.pump = pump
        self.streams = streams
        self.decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in streams]
        self.words = memoryview(pump.shared)[:PAGE].cast("Q")
        self.ring = memoryview(pump.shared)[PAGE:]
        self.lost = 0  # bytes reported as lost so far
        self.placed = 0  # where the last `Place` is
        self.ready = poll_of(pump.pipes).poll
        self.glance = poll_of(pump.pipes).poll  # for any thread, also while another uses `ready`
        self.life = poll_of([pump.bell]).poll

    def pending(self):
        words = self.words
        try:
            # In this order: what the pump has read from a pipe, it is either busy with or has written to the ring.
            return self.glance(0) or words[BUSY] or words[WRITTEN] != words[TAKEN]
        except RuntimeError:  # another thread uses the same poll object
            return True

    def take(self):
        """Move all that is in the pipes now into the queue, even if more arrives all the time."""
        words = self.words
        targets = None
        until = None
        while True:
            waiting = self.ready(0) or words[BUSY]
            if waiting and targets is None:
                targets = self.targets()
                until = monotonic() + PUMP_TIMEOUT
            # Checked before the ring is read: the pump counts what is in the ring already.
            arrived = targets and words[OUT] >= targets[0] and words[ERR] >= targets[1]
            self.take_ring()
            if not waiting or arrived or monotonic() > until:
                return
            if self.pump_ended():  # the thread that waits for its end may be late, and the output is read here now
                self.go_on_without_pump()
                return self.outbox.source.take()
            sched_yield()

    def targets(self):
        """Return what the pump will have counted, of each pipe, when it has read what is in the pipe now.

        Read in this order, they may be too high, and then `take` goes on until the pipes are empty. They are never too
        low: what the pump has read from a pipe and not counted yet, in chunks, is there while it is busy.
        """
        words = self.words
        unread = [in_pipe(fd) for fd in self.pump.pipes]
        uncounted = CHUNK if words[BUSY] else 0
        return [words[OUT] + unread[0] + uncounted, words[ERR] + unread[1] + uncounted]

    def take_ring(self):
        words, ring = self.words, self.ring
        at, written = words[TAKEN], words[WRITTEN]
        size = len(ring)
        while at < written:
            start = at % size
            header = words_of(ring[start : start + 8])
            count, number = header & 0xFFFFFFFF, header >> 32
            text = self.decoders[number].decode(ring[start + 8 : start + 8 + count])
            at += 8 + (count + 7 & ~7)
            self.outbox.put(self.streams[number], text)
            words[TAKEN] = at
        if words[LOST] != self.lost:
            lost, self.lost = self.lost, words[LOST]
            self.outbox.put(self.streams[1], LEFT_OUT % (self.lost - lost))
        if at != self.placed:
            self.placed = at
            self.outbox.items.append(Place(at))

    def bells(self):
        return [self.pump.bell]

    def pump_ended(self):
        return any(event & select.POLLHUP for _, event in self.life(0))

    def go_on_without_pump(self):
        """Let this process read the pipes, because the pump was killed. Any thread may call it, also twice."""
        with self.outbox.source_lock:
            if self.outbox.source is not self:
                return
            self.take_ring()
            for stream, fd in zip(self.streams, self.pump.pipes):
                stream._fid = fd
            self.outbox.source = OwnPipes(self.outbox, self.streams)
            self.words = self.outbox.source.words  # what the pump had read and not written is lost

    def show_alive(self):
        self.words[ALIVE] += 1
        try:
            read(self.pump.bell, 65536)
        except BlockingIOError:
            pass

    def sent(self, place):
        self.words[SENT] = place

    def close(self):
        for fd in (*self.pump.pipes, self.pump.bell, self.pump.life):
            close_fd(fd)


def poll_of(fds):
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


def words_of(data):
    return int.from_bytes(data, "little")


def in_pipe(fd):
    """Return the number of bytes in a pipe."""
    return words_of(ioctl(fd, FIONREAD, b"\0\0\0\0"))


def close_fd(fd):
    try:
        os.close(fd)
    except OSError:
        pass


def stream_parent(stream):
    """Return the header of the running cell's request, because for descriptors the thread or task is unknown."""
    try:
        return stream._parent_header_global
    except AttributeError:
        return stream.parent_header


def write_in_child(outbox, stream, string):
    """Write in a forked child, which has no publisher, to the parent's pipe, in whole lines."""
    fd = TARGETS[stream.kernelbridge_target[0]]
    begun = outbox.begun.get(fd, "") + string
    if "\n" not in string and len(begun) < 4096:
        outbox.begun[fd] = begun
    else:
        outbox.begun[fd] = ""
        write_all(fd, begun)
    return len(string)


def flush_in_child(outbox):
    for fd, begun in list(outbox.begun.items()):
        outbox.begun[fd] = ""
        write_all(fd, begun)


def write_all(fd, text):
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[write_fd(fd, data) :]


class Buffer(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes written to it keep their order with printed text."""

    mode = "wb"

    def __init__(self, stream):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.name = "<%s>" % stream.kernelbridge_target[0]

    @property
    def raw(self):
        return self

    @property
    def closed(self):
        return self._stream.closed

    def writable(self):
        return True

    def fileno(self):
        return self._stream.fileno()

    def isatty(self):
        return self._stream.isatty()

    def write(self, data):
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        data = bytes(memoryview(data))
        text = self._decoder.decode(data)
        if text:
            self._stream.write(text)
        return len(data)

    def flush(self):
        if not self.closed:
            self._stream.flush()

    def close(self):
        """Flush it, but keep it open: a `TextIOWrapper` around it closes it when that is garbage."""
        self.flush()


def stream_class(base, outbox, stream):
    get_parent = getattr(getattr(stream, "_parent_header", None), "get", None) or (lambda: stream.parent_header)
    items, source = outbox.items, outbox.source
    pending = source.pending if source is not None else (lambda: False)
    fd = TARGETS[stream.name]

    class OutStream(base):
        """ipykernel's stream, with one queue for stdout and stderr."""

        kernelbridge_target = (stream.name, stream.topic)
        errors = "backslashreplace"
        line_buffering = True
        write_through = False
        mode = "w"

        def write(self, string):
            if type(string) is not str:
                if not isinstance(string, str):
                    raise TypeError("write() argument must be str, not %s" % type(string).__name__)
                string = str.__str__(string)
            if self.pub_thread is None:
                raise ValueError("I/O operation on closed file.")
            if outbox.forked:
                return write_in_child(outbox, self, string)
            if pending():
                outbox.drain()
            try:
                parent = get_parent()
            except LookupError:
                parent = stream.parent_header
            items.append((stream, parent, string))
            length = len(string)
            outbox.size = size = outbox.size + length
            if not outbox.timer.armed:
                outbox.arm(outbox.timer)
            if size > AHEAD:
                outbox.wait_for_room()
            return length

        def flush(self):
            if outbox.forked:
                flush_in_child(outbox)
            elif self.pub_thread is not None:
                outbox.flush(self.flush_timeout)

        def close(self):
            self.flush()
            self.pub_thread = None

        def fileno(self):
            if self.pub_thread is None:
                raise ValueError("I/O operation on closed file.")
            return fd if outbox.source is not None else base.fileno(self)

        @property
        def buffer(self):
            buffer = self.__dict__.get("_kernelbridge_buffer")
            if buffer is None:
                buffer = self.__dict__["_kernelbridge_buffer"] = Buffer(self)
            return buffer

        def reconfigure(self, *, encoding=None, errors=None, newline=None, line_buffering=None, write_through=None):
            """Accept the arguments of a text stream. The published text is Unicode all the same."""
            if encoding is not None:
                self.encoding = codecs.lookup(encoding).name
            if errors is not None:
                codecs.lookup_error(errors)
                self.errors = errors
            if line_buffering is not None:
                self.line_buffering = bool(line_buffering)
            if write_through is not None:
                self.write_through = bool(write_through)
            self.flush()

    OutStream.__module__ = base.__module__
    OutStream.__qualname__ = OutStream.__name__ = base.__name__
    return OutStream


def uncloseable(base):
    class OutStream(base):
        def close(self):
            self.flush()

    OutStream.__module__ = base.__module__
    OutStream.__qualname__ = OutStream.__name__ = base.__name__
    return OutStream.__new__(OutStream)


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
    take_over_pipes(streams, outbox)
    originals = []
    for stream in streams:
        stream.__dict__.pop("write", None)  # IPython 9 leaves one there with every cell
        stream.__class__ = stream_class(OutStream, outbox, stream)
        # The streams that user code may restore cannot be closed, not even by a `TextIOWrapper` that is garbage.
        originals.append(uncloseable(stream.__class__))
        originals[-1].__dict__.update(stream.__dict__)
    sys.__stdout__, sys.__stderr__ = originals
    kernel_sys = KernelSys(*map(KernelStream, ("stdout", "stderr"), streams, originals))
    for name in STREAM_USERS:
        module = sys.modules.get(name)
        if getattr(module, "sys", None) is sys:
            module.sys = kernel_sys
    if outbox.source is not None:
        outbox.flush_c = c_flush()
        watcher = Thread(target=outbox.watch, name="OutputWatcher", daemon=True)
        watcher.pydev_do_not_trace = watcher.is_pydev_daemon_thread = True
        watcher.start()
    own_stdout[0] = kernel_sys.stdout
    kernel.kernelbridge_outbox = outbox
    isolate_kernel(kernel)

    def keep_all():
        # A publisher drops messages if its subscriber's queue is full. With this option it waits.
        pub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)

    pub_thread.schedule(keep_all)

    init_metadata, finish_metadata = kernel.init_metadata, kernel.finish_metadata
    copies = [(fd, getattr(stream, "_original_stdstream_copy", None)) for fd, stream in zip((1, 2), streams)]

    def choose_timer(parent):
        # Called before each cell.
        request = parent.get("metadata") or {}
        outbox.timer = outbox.timers[bool((request.get("kernelbridge") or {}).get("stream"))]
        return init_metadata(parent)

    def reopen_descriptors(*args):
        # The object of `os.fdopen(1, "w")` closes the descriptor when it is garbage, and the kernel's next socket must
        # not get its number.
        for fd, copy in copies:
            try:
                fstat(fd)
            except OSError:
                if copy is not None:
                    dup2(copy, fd)
        return finish_metadata(*args)

    kernel.init_metadata, kernel.finish_metadata = choose_timer, reopen_descriptors
    # IPython's own `open` refuses descriptors 0 to 2.
    interactiveshell = sys.modules.get("IPython.core.interactiveshell")
    if getattr(interactiveshell, "_modified_open", None) is kernel.shell.user_ns.get("open", 0):
        interactiveshell._modified_open = kernel.shell.user_ns["open"] = open_in_cell


def take_over_pipes(streams, outbox):
    """Take over the pipes that ipykernel has put in the place of descriptors 1 and 2.

    ipykernel's threads read them at any time. Ours must know that there is data before it is read, to keep the order.
    """
    global ioctl, FIONREAD
    if not all(getattr(stream, "_should_watch", False) and getattr(stream, "_fid", None) for stream in streams):
        return
    for stream in streams:
        stream._should_watch = False  # so `close` does not wait for the thread, which ends here
        write_fd(TARGETS[stream.name], b"\0")
        stream.watch_fd_thread.join(5)
        if stream.watch_fd_thread.is_alive():
            stream._should_watch = True
            return
    pump = libraries_first().pump
    try:
        from fcntl import ioctl
        from termios import FIONREAD
    except ImportError:
        pump = None
    if pump is not None:
        os.set_blocking(pump.bell, False)
        for stream, fd in zip(streams, pump.writers):
            dup2(fd, TARGETS[stream.name])
            close_fd(fd)
            close_fd(stream._fid)
        outbox.source = PumpedPipes(outbox, streams, pump)
    else:
        outbox.source = OwnPipes(outbox, streams)
    for stream in streams:
        copy = getattr(stream, "_original_stdstream_copy", None)
        if copy is not None:
            # Close what the process was started with: a forked child would keep it open, and the output of a dead
            # kernel would have no end. Code that still uses the number of this descriptor writes to the pump.
            dup2(TARGETS[stream.name], copy, inheritable=False)


def c_flush():
    """Return a function that flushes the C library's buffer of stdout."""
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
