"""What a Docker process reads of its own start."""

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.docker_process import _MARK, _NOISE, DockerProcess


class OneRead:
    """A stream that gives all that there is at once."""

    def __init__(self, data: bytes) -> None:
        self.waiting = [data]

    async def read(self) -> bytes:
        return self.waiting.pop(0) if self.waiting else b""

    def unread(self, data: bytes) -> None:
        self.waiting.insert(0, data)


def process(data: bytes) -> DockerProcess:
    made = object.__new__(DockerProcess)
    made._stream = OneRead(data)  # type: ignore[assignment]  # as much of one as is used
    return made


async def test_a_mark_that_comes_with_much_of_the_programs_output_is_seen() -> None:
    output = b"x" * (_NOISE + 1)
    started = process(b"noise\n" + _MARK + b" go\n" + output)
    assert await started._next_mark() == b"go"
    assert await started._stream.read() == output


async def test_two_marks_that_come_at_once_are_both_seen() -> None:
    started = process(_MARK + b" 7\n" + _MARK + b" go\n")
    assert [await started._next_mark(), await started._next_mark()] == [b"7", b"go"]


async def test_a_program_that_says_something_else_has_not_started() -> None:
    with pytest.raises(SandboxError, match="sh: not found"):
        await process(b"sh: not found\n")._next_mark()
