"""Takes what is written to a kernel's descriptors 1 and 2, in a process of its own: part of the program of `start.py`.

A pipe's writer waits for its reader. In the kernel's process a reader needs the interpreter's lock, which C code that
writes may hold: both would wait for ever. This process needs no lock of anybody. It puts what it reads into memory that
it shares with the kernel (`streams.py` takes it from there), and waits for a kernel only while that shows signs of
life. When the kernel has died, what it had not told yet goes to the stderr that it was started with.

It is forked off before the interpreter has grown, so it costs about a megabyte, and is nobody's child: `os.wait()` in
a cell does not find it.
"""

import _signal
import mmap
import os
import select
import time

PAGE = 4096
RING = 64 << 20  # bytes that are kept for a kernel that cannot take them; used, and given back, as it comes
SOFT = 4 << 20  # bytes that are kept before the writer has to wait for the kernel
STUCK = 1.0  # seconds without a sign of life, after which it need not wait
CHUNK = 1 << 16
RELEASE = 1 << 18  # bytes that are given back to the system at a time
LAST_WORDS = 1 << 16
# Words of the first page. All count bytes since the start, and never fall; BUSY is 0 or 1.
WRITTEN, TAKEN, SENT, BUSY, OUT, ERR, ALIVE, LOST = range(8)
IGNORED = "SIGINT SIGQUIT SIGHUP SIGTERM SIGTSTP SIGPIPE SIGUSR1 SIGUSR2 SIGALRM".split()


class Pump:
    """What the kernel holds of it."""

    def __init__(self, shared, pipes, writers, bell, life):
        self.shared = shared
        self.pipes = pipes  # of stdout and stderr; here only to see whether something is in them
        self.writers = writers  # to be put in the place of descriptors 1 and 2
        self.bell = bell  # something can be read from it when something has come, and its end when the pump has ended
        self.life = life  # held until the kernel's end


def start_pump():
    """Start one; None if the system does not let us."""
    try:
        shared = mmap.mmap(-1, PAGE + RING)
        out, err, bell, life = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        child = os.fork()
    except OSError:
        return None
    if child:
        os.waitpid(child, 0)
        for fd in (bell[1], life[0]):
            os.close(fd)
        return Pump(shared, (out[0], err[0]), (out[1], err[1]), bell[0], life[1])
    try:
        if not os.fork():
            for fd in (out[1], err[1], bell[0], life[1]):
                os.close(fd)
            Worker(shared, out[0], err[0], bell[1], life[0]).run()
    finally:
        os._exit(0)


class Worker:
    """The process itself."""

    def __init__(self, shared, out, err, bell, life):
        self.shared = shared
        self.words = memoryview(shared)[:PAGE].cast("Q")
        self.ring = memoryview(shared)[PAGE:]
        self.counts = {out: OUT, err: ERR}
        self.bell = bell
        self.life = life
        self.released = 0
        self.stuck = None  # the signs of life when it showed none for too long

    def run(self):
        for name in IGNORED:
            _signal.signal(getattr(_signal, name), _signal.SIG_IGN)
        last = os.dup(2)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        try:
            with open("/proc/self/comm", "w") as comm:
                comm.write("kernel-output")
        except OSError:
            pass
        os.set_blocking(self.bell, False)
        poll = select.poll()
        for fd in (*self.counts, self.life):
            poll.register(fd, select.POLLIN)
        words = self.words
        while True:
            ready = poll.poll()
            words[BUSY] = 1  # before anything is read: who finds the pipes empty looks here next
            for fd, _ in ready:
                if fd == self.life:
                    return self.end(last)
                if not self.take(fd):
                    poll.unregister(fd)
            words[BUSY] = 0
            self.ring_bell()
            self.release()

    def take(self, fd):
        """Take a part of what is in a pipe; False at its end."""
        words = self.words
        if words[WRITTEN] - words[TAKEN] > SOFT and not self.wait():
            words[BUSY] = 0
            return True
        written = words[WRITTEN]
        at = written % RING
        if RING - (written - words[SENT]) < 2 * CHUNK:
            data = os.read(fd, CHUNK)
            words[LOST] += len(data)
            words[self.counts[fd]] += len(data)
            return bool(data)
        room = RING - at - 8  # a record has its header and what it holds in one piece
        count = os.readv(fd, [self.ring[at + 8 : at + 8 + min(room, CHUNK)]]) if room else 0
        if room and not count:
            return False
        self.ring[at : at + 8] = (count | (self.counts[fd] == ERR) << 32).to_bytes(8, "little")
        words[WRITTEN] = written + 8 + (count + 7 & ~7)
        words[self.counts[fd]] += count
        return True

    def wait(self):
        """Wait for the kernel to take something. True when it has, or does not live; False at its end."""
        words = self.words
        signs = words[TAKEN], words[ALIVE]
        if signs == self.stuck:
            return True
        self.stuck = None
        poll = select.poll()
        poll.register(self.life, select.POLLIN)
        until = time.monotonic() + STUCK
        while words[WRITTEN] - words[TAKEN] > SOFT:
            self.ring_bell()
            if poll.poll(5):
                return False
            now = words[TAKEN], words[ALIVE]
            if now != signs:
                signs, until = now, time.monotonic() + STUCK
            elif time.monotonic() > until:
                self.stuck = signs
                break
        self.release()
        return True

    def ring_bell(self):
        try:
            os.write(self.bell, b"!")
        except OSError:  # it has rung already, or nobody is there
            pass

    def release(self):
        """Give memory back whose content has been told."""
        sent = self.words[SENT]
        while sent - self.released >= RELEASE:
            try:
                self.shared.madvise(mmap.MADV_REMOVE, PAGE + self.released % RING, RELEASE)
            except (AttributeError, OSError, ValueError):
                pass
            self.released += RELEASE

    def end(self, last):
        """Write what a dead kernel has not told."""
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        _signal.alarm(5)  # nobody may be there to read it
        rest = bytearray(self.untold())
        for fd in self.counts:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            for _ in range(RING // CHUNK):
                if not any(event & select.POLLIN for _, event in poll.poll(0)):
                    break
                rest += os.read(fd, CHUNK)
                del rest[:-LAST_WORDS]
        while rest:
            del rest[: os.write(last, rest)]

    def untold(self):
        at, written = self.words[SENT], self.words[WRITTEN]
        told = bytearray()
        while at < written:
            start = at % RING
            count = int.from_bytes(self.ring[start : start + 8], "little") & 0xFFFFFFFF
            told += self.ring[start + 8 : start + 8 + count]
            del told[:-LAST_WORDS]
            at += 8 + (count + 7 & ~7)
        return told
