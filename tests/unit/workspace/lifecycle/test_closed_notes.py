"""What is told of the end of a session's earlier life."""

import pytest
from msgspec import UNSET

from kernelbridge.workspace.lifecycle.closed_notes import MOST_CODE, ClosedNote, ran, read_note, write_note

AT = "2026-01-01T00:00:00.000Z"


def test_a_note_is_read_as_it_was_written() -> None:
    note = ClosedNote(AT, "the server stopped", [ran("cell", request_id="1", since=AT, code="x")], 2, interpreter=True)
    assert read_note(write_note(note)) == note


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"closed_at": "x"}', b"[" * 100_000, b"\xff"])
def test_a_damaged_note_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_note(content)


def test_its_size_is_bounded() -> None:
    entry = ran("cell", code="x" * 100_000)
    assert entry.code is not UNSET
    assert len(entry.code) == MOST_CODE


def test_a_note_says_what_ran_and_what_is_lost() -> None:
    note = ClosedNote(AT, "no client returned within 15 s")
    assert note.how() == f"ended when the session was closed at {AT}, because no client returned within 15 s"
    things = [ran("cell", code="\n  train()\nx"), ran("command", code="make"), ran("terminal", code="t1"), ran("cell")]
    note = ClosedNote(AT, "the server stopped", things, 1)
    ended = "; then a cell (train()), a terminal command (make), an interactive terminal (t1), a cell ran and was ended"
    assert note.how().endswith(f"because the server stopped{ended}; 1 answer that no client had received is lost")
    assert "; 3 answers that no client had received are lost; its files are kept" in ClosedNote(AT, "x", [], 3).detail()


def test_a_note_is_kept_until_both_losses_are_reported() -> None:
    assert ClosedNote(AT, "x", interpreter=True).unreported
    assert ClosedNote(AT, "x", shell=True).unreported
    assert not ClosedNote(AT, "x").unreported
