"""One command on its way through a shell."""

from collections.abc import Sequence

import pytest

from kernelbridge.jupyter.bounded import BoundedText, Spilled
from kernelbridge.workspace.shell.exchange import Exchange
from kernelbridge.workspace.shell.marks import MarkState


class Disk:
    """Stores the whole of an output, as far as `spilled` says."""

    def __init__(self, spilled: Spilled) -> None:
        self.spilled = spilled

    def begin(self, texts: Sequence[str]) -> None:
        """Take them."""

    def write(self, text: str) -> None:
        """Take it."""

    def discard(self) -> None:
        """Take nothing more."""

    async def finish(self) -> Spilled:
        return self.spilled


def exchange(most: int = 1000, spilled: Spilled | None = None) -> Exchange:
    return Exchange(BoundedText(most, spill=lambda: None if spilled is None else Disk(spilled)), nonce="5eed")


def mark(kind: str, more: str = "") -> bytes:
    return f"\x1b]133;{kind};5eed{more}\x07".encode()


START, END = mark("C"), b"\x1b]133;D;5eed;3;;/w5eed\x07"


async def test_a_command_begins_and_ends_with_its_marks() -> None:
    command, heard, read = exchange(), list[str](), list[bytes]()
    command.listen, command.on_data = heard.append, read.append
    command.receive_data(b"typed")
    assert (command.started.is_set(), command.ended.is_set(), command.pieces) == (False, False, 0)
    command.receive_data(START + b"out")
    assert (command.started.is_set(), command.ended.is_set(), command.complete) == (True, False, False)
    command.receive_data(END)
    assert (command.ended.is_set(), command.complete, command.marks.status) == (True, True, 3)
    assert (heard, read) == (["out"], [b"typed", START + b"out", END])
    assert await command.text() == ("out", None)
    assert 0 <= command.duration_ms < 60_000


async def test_a_command_that_was_withdrawn_is_complete_when_it_was_ended_for_a_reason() -> None:
    command = exchange()
    command.withdraw()
    assert (command.ended.is_set(), command.complete, command.marks.state) == (True, False, MarkState.REFUSED)
    command.cause = "interrupted"
    assert command.complete


async def test_what_was_held_back_is_output_when_the_shell_is_lost() -> None:
    command = exchange()
    command.receive_data(START + b"out\x1b]133;D;5e")
    command.lose()
    command.lose()
    assert command.ended.is_set()
    assert (await command.text())[0].startswith("out")
    assert not command.complete


async def test_the_line_that_bash_writes_when_it_ends_is_no_output() -> None:
    command = exchange()
    command.receive_data(START + b"out\r\nexit\r\n")
    assert await command.text(without_exit=True) == ("out\n", None)
    assert await command.text() == ("out\nexit\n", None)


@pytest.mark.parametrize(
    ("spilled", "told"),
    [
        (Spilled("f", complete=True), {"file": "f", "fileComplete": True}),
        (Spilled("f", complete=False), {"file": "f", "fileComplete": False}),
        (Spilled(None, complete=False), {}),
        (None, {}),
    ],
)
async def test_what_is_left_out_says_where_it_is(spilled: Spilled | None, told: dict[str, object]) -> None:
    command = exchange(100, spilled)
    command.receive_data(START + b"x" * 1000)
    text, truncated = await command.text()
    assert truncated is not None
    left_out = truncated.pop("bytes")
    assert left_out >= 900
    assert len(text) < 1000
    assert truncated == {"kept": "head and tail", "at": truncated["at"], **told}
    command.add_note("note")
    assert (await command.text())[0].endswith("note")
