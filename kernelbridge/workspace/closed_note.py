"""How a session was closed, for clients that return; kept beside its files until results have reported it; pure."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from kernelbridge.protocol.sessions import WhatRan

MOST_CODE = 200
"""Characters of a cell or a command that are quoted."""


class ClosedNote(msgspec.Struct, frozen=True):
    """The end of one life of a session in which something was lost."""

    closed_at: str
    why: str
    """A clause for a person: `no client returned within 15 s`."""
    what_ran: list[WhatRan] = []
    """What the close ended."""
    answers_lost: int = 0
    """Answers and results that no client had received."""
    interpreter: bool = False
    """Whether variables of the interpreter were lost, and no result has reported that yet."""
    shell: bool = False
    """Whether the shell of terminal commands was lost, and no result has reported that yet."""

    @property
    def unreported(self) -> bool:
        """Whether a result must still report it."""
        return self.interpreter or self.shell

    def how(self) -> str:
        """Return how the session's programs ended: the text after the words `the interpreter`."""
        return f"ended when the session was closed at {self.closed_at}, because {self.why}{self._ended()}"

    def detail(self) -> str:
        """Return what happened and what comes next, for a person."""
        return (
            f"the session was closed at {self.closed_at}, because {self.why}{self._ended()};"
            " its files are kept, and its next command starts again without the variables"
        )

    def _ended(self) -> str:
        ran = ", ".join(_quoted(each) for each in self.what_ran)
        ended = f"; then {ran} ran and was ended" if ran else ""
        answers = "1 answer that no client had received is lost"
        if self.answers_lost != 1:
            answers = f"{self.answers_lost} answers that no client had received are lost"
        return ended + (f"; {answers}" if self.answers_lost else "")


def ran(kind: str, *, request_id: str | None = None, since: str | None = None, code: str = "") -> WhatRan:
    """Describe something that the close ends: a `cell`, a `command` or a `terminal`."""
    return WhatRan(
        kind=kind,
        request_id=request_id or UNSET,
        since=since or UNSET,
        code=(code if len(code) <= MOST_CODE else code[: MOST_CODE - 1] + "…") or UNSET,
    )


def write_note(note: ClosedNote) -> bytes:
    """Return the content of a note's file."""
    return msgspec.json.encode(note)


def read_note(content: bytes) -> ClosedNote:
    """Read the content of a note's file; raises `ValueError` if it is damaged."""
    try:
        return msgspec.json.decode(content, type=ClosedNote)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


def _quoted(entry: WhatRan) -> str:
    name = {"cell": "a cell", "command": "a terminal command"}.get(entry.kind, "an interactive terminal")
    code = "" if entry.code is UNSET else next((line for line in entry.code.splitlines() if line.strip()), "")
    return f"{name} ({code.strip()})" if code else name
