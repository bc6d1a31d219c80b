"""The output pump, a process that reads a kernel's descriptors 1 and 2: part of the program of `start.py`.

The writer of a full pipe waits for the reader. A reader in the kernel's process needs the interpreter's lock. If C code
that writes holds the lock, both wait for ever. This process needs no lock. It copies what it reads into memory that it
shares with the kernel (`streams.py` reads it there), and waits for the kernel only while that shows signs of life. When
the kernel has died, the pump writes what the kernel has not sent to the stderr that the kernel was started with.

It is forked before the interpreter has grown, so it costs about a megabyte. It is not the kernel's child, so
`os.wait()` in a cell does not find it.
"""

import _signal
import mmap
import os
import select

PAGE = 4096
RING = 64 << 20  # bytes of the ring; its memory is used only while the kernel does not read
SOFT = 4 << 20  # unread bytes from which a writer waits for the kernel
TURN = 5  # milliseconds between two looks at the kernel
STUCK = 600  # looks without a new sign of life of the kernel, after which writers do not wait for it
CHUNK = 1 << 16  # bytes that are read at once
RELEASE = 1 << 18  # bytes of the ring that are returned to the system at once
LAST_OUTPUT = 1 << 16  # bytes that are written for a dead kernel
# 64-bit words of the first page. They count bytes since the start; BUSY is 0 or 1, and ALIVE counts signs of life.
WRITTEN, TAKEN, SENT, BUSY, OUT, ERR, ALIVE, LOST = range(8)
IGNORED = "SIGINT SIGQUIT SIGHUP SIGTERM SIGTSTP SIGPIPE SIGUSR1 SIGUSR2 SIGALRM".split()


class Pump:
    """The kernel's side of the pump."""

    def __init__(self, shared, pipes, writers, bell, life):
        self.shared = shared
        self.pipes = pipes  # read ends of stdout and stderr, used here only to check whether they are empty
        self.writers = writers  # write ends, which become descriptors 1 and 2
        self.bell = bell  # readable when the pump has written to the ring; closed when the pump has ended
        self.life = life  # open until the kernel's end, which tells the pump


def start_pump():
    """Start a pump. Return its `Pump`, or None if the system refuses memory, pipes or a process."""
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
    """The pump's process."""

    def __init__(self, shared, out, err, bell, life):
        self.shared = shared
        self.words = memoryview(shared)[:PAGE].cast("Q")
        self.ring = memoryview(shared)[PAGE:]
        self.counts = {out: OUT, err: ERR}
        self.bell = bell
        self.life = life
        self.released = 0  # bytes of the ring returned to the system so far
        self.stuck = None  # the kernel's signs of life when it had shown no new one for too long

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
            words[BUSY] = 1  # before anything is read: a kernel that finds the pipes empty checks this next
            for fd, _ in ready:
                if fd == self.life:
                    return self.end(last)
                if not self.take(fd):
                    poll.unregister(fd)
            words[BUSY] = 0
            self.ring_bell()
            self.release()

    def take(self, fd):
        """Read a chunk of a pipe into the ring. Return False at the end of the pipe."""
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
        room = RING - at - 8  # a record, its header and its bytes, does not wrap around
        count = os.readv(fd, [self.ring[at + 8 : at + 8 + min(room, CHUNK)]]) if room else 0
        if room and not count:
            return False
        self.ring[at : at + 8] = (count | (self.counts[fd] == ERR) << 32).to_bytes(8, "little")
        words[WRITTEN] = written + 8 + (count + 7 & ~7)
        words[self.counts[fd]] += count
        return True

    def wait(self):
        """Wait until the kernel has read enough. Return False if it has ended, else True, also if it is stuck."""
        words = self.words
        signs = words[TAKEN], words[ALIVE]
        if signs == self.stuck:
            return True
        self.stuck = None
        poll = select.poll()
        poll.register(self.life, select.POLLIN)
        looks = 0  # not seconds: those in which both were paused, or waited for a processor, would count
        while words[WRITTEN] - words[TAKEN] > SOFT:
            self.ring_bell()
            if poll.poll(TURN):
                return False
            now = words[TAKEN], words[ALIVE]
            looks += 1
            if now != signs:
                signs, looks = now, 0
            elif looks > STUCK:
                self.stuck = signs
                break
        self.release()
        return True

    def ring_bell(self):
        try:
            os.write(self.bell, b"!")
        except OSError:  # the pipe is full, so it can be read already, or the kernel has ended
            pass

    def release(self):
        """Return memory to the system whose content the kernel has sent."""
        sent = self.words[SENT]
        while sent - self.released >= RELEASE:
            try:
                self.shared.madvise(mmap.MADV_REMOVE, PAGE + self.released % RING, RELEASE)
            except (AttributeError, OSError, ValueError):
                pass
            self.released += RELEASE

    def end(self, last):
        """Write what a dead kernel has not sent to the descriptor `last`."""
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        _signal.alarm(5)  # end this process if nobody reads that
        rest = bytearray(self.unsent())
        for fd in self.counts:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            for _ in range(RING // CHUNK):
                if not any(event & select.POLLIN for _, event in poll.poll(0)):
                    break
                rest += os.read(fd, CHUNK)
                del rest[:-LAST_OUTPUT]
        while rest:
            del rest[: os.write(last, rest)]

    def unsent(self):
        at, written = self.words[SENT], self.words[WRITTEN]
        unsent = bytearray()
        while at < written:
            start = at % RING
            count = int.from_bytes(self.ring[start : start + 8], "little") & 0xFFFFFFFF
            unsent += self.ring[start + 8 : start + 8 + count]
            del unsent[:-LAST_OUTPUT]
            at += 8 + (count + 7 & ~7)
        return unsent
