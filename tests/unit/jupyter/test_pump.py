"""The order of output, whatever moment of the pump's work the kernel meets."""

from __future__ import annotations

import fcntl
import importlib
import mmap
import os
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PATIENCE = 60.0

# The program of the kernel's process, which is not typed.
pumps: Any = importlib.import_module("kernelbridge.guest.kernel.pump")
streams: Any = importlib.import_module("kernelbridge.guest.kernel.streams")


class PumpThatIsSlowToCount:
    """A real pump that waits after its first read, before it counts that, until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared = mmap.mmap(-1, pumps.PAGE + pumps.RING)
        self.out, self.err, self.bell, self.life = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        self.worker = pumps.Worker(self.shared, self.out[0], self.err[0], self.bell[1], self.life[0])
        self.has_read, self.may_count = threading.Event(), threading.Event()
        self._read = os.readv
        monkeypatch.setattr(pumps.os, "readv", self._read_and_wait)
        self.kernel_side = pumps.Pump(
            self.shared, (self.out[0], self.err[0]), (self.out[1], self.err[1]), self.bell[0], self.life[1]
        )

    def _read_and_wait(self, fd: int, buffers: list[memoryview]) -> int:
        count = self._read(fd, buffers)
        self.has_read.set()
        assert self.may_count.wait(PATIENCE)
        return count

    def take(self, fd: int) -> None:
        """Do what a turn of the pump does with a pipe that can be read."""
        self.worker.words[pumps.BUSY] = 1
        self.worker.take(fd)
        self.worker.words[pumps.BUSY] = 0

    def close(self) -> None:
        for pipe in (self.out, self.err, self.bell, self.life):
            for fd in pipe:
                os.close(fd)


class Outbox:
    """What takes the text that the kernel finds."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {"stdout": "", "stderr": ""}
        self.items: list[Any] = []

    def put(self, stream: str, text: str) -> None:
        self.text[stream] += text


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[PumpThatIsSlowToCount]:
    monkeypatch.setattr(streams, "ioctl", fcntl.ioctl, raising=False)
    monkeypatch.setattr(streams, "FIONREAD", termios.FIONREAD, raising=False)
    pump = PumpThatIsSlowToCount(monkeypatch)
    yield pump
    pump.close()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_all_that_was_written_before_is_taken_while_the_pump_has_read_only_a_part(
    slow: PumpThatIsSlowToCount, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = slow.out if name == "stdout" else slow.err
    outbox = Outbox()
    pipes = streams.PumpedPipes(outbox, ["stdout", "stderr"], slow.kernel_side)
    os.write(writer, b"1" * pumps.CHUNK)
    first = threading.Thread(target=slow.take, args=(reader,))
    first.start()
    assert slow.has_read.wait(PATIENCE)
    os.write(writer, b"2" * 1000)  # written before the text that the kernel has to put after it

    def count_the_first() -> None:
        slow.may_count.set()
        first.join(PATIENCE)

    steps: list[Callable[[], None]] = [lambda: slow.take(reader), count_the_first]
    monkeypatch.setattr(streams, "sched_yield", lambda: steps.pop()())  # noqa: PLW0108 - a step for each call
    assert pipes.pending()
    pipes.take()
    assert outbox.text[name] == "1" * pumps.CHUNK + "2" * 1000
    assert not pipes.pending()


def test_all_that_a_dead_kernel_has_not_sent_is_found(slow: PumpThatIsSlowToCount) -> None:
    """Each text begins at a multiple of eight bytes."""
    worker = slow.worker
    at = pumps.RING + 64
    worker.words[pumps.SENT] = at
    expected = b""
    for size in (1, 8, 13, 7):
        text = bytes([65 + size]) * size
        start = at % pumps.RING
        worker.ring[start : start + 8] = size.to_bytes(8, "little")
        worker.ring[start + 8 : start + 8 + size] = text
        expected += text
        at += 8 + (size + 7) // 8 * 8
    worker.words[pumps.WRITTEN] = at
    assert bytes(worker.unsent()) == expected
    worker.words[pumps.SENT] = at
    assert bytes(worker.unsent()) == b""
