"""How a session's life ended, for whoever comes back; kept beside its files until a result has told it; pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from kernelbridge.protocol.sessions import WhatRan

MOST_CODE = 200
"""Characters of a cell or a command that are quoted."""
MOST_RAN = 20
"""Entries that are kept of what ran."""


class ClosedNote(msgspec.Struct, frozen=True):
    """The end of one life of a session that lost something."""

    closed_at: str
    why: str
    """A clause for a person: `nobody had come back within 15 s`."""
    what_ran: list[WhatRan] = []
    """What was ended by it."""
    answers_lost: int = 0
    """Answers and results that nobody had got."""
    interpreter: bool = False
    """Whether variables of the interpreter were lost, and no result has told that yet."""
    shell: bool = False
    """Whether the terminal commands' shell was lost, likewise."""

    @property
    def untold(self) -> bool:
        """Whether a result has to tell of it."""
        return self.interpreter or self.shell

    def how(self) -> str:
        """Say how what ran in the session ended: what follows the words `the interpreter`."""
        return f"ended when the session was closed at {self.closed_at}, because {self.why}{self._ended()}"

    def detail(self) -> str:
        """Say what happened and what comes next, for a person."""
        return (
            f"the session was closed at {self.closed_at}, because {self.why}{self._ended()};"
            " its files are kept, and its next command starts anew, without the variables"
        )

    def _ended(self) -> str:
        ran = ", ".join(_quoted(each) for each in self.what_ran)
        ended = f"; then {ran} ran and was ended" if ran else ""
        answers = "1 answer that nobody had got is lost"
        if self.answers_lost != 1:
            answers = f"{self.answers_lost} answers that nobody had got are lost"
        return ended + (f"; {answers}" if self.answers_lost else "")


def ran(kind: str, *, request_id: str | None = None, since: str | None = None, code: str = "") -> WhatRan:
    """Describe something that is ended: a `cell`, a `command` or a `terminal`."""
    return WhatRan(
        kind=kind,
        request_id=request_id or UNSET,
        since=since or UNSET,
        code=(code if len(code) <= MOST_CODE else code[: MOST_CODE - 1] + "…") or UNSET,
    )


def write_note(note: ClosedNote) -> bytes:
    """Give the content of its file."""
    return msgspec.json.encode(note)


def read_note(content: bytes) -> ClosedNote:
    """Read it; raises `ValueError` if it is damaged."""
    try:
        return msgspec.json.decode(content, type=ClosedNote)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


def first(entries: Sequence[WhatRan]) -> list[WhatRan]:
    """Give as many of them as are kept."""
    return list(entries[:MOST_RAN])


def _quoted(entry: WhatRan) -> str:
    name = {"cell": "a cell", "command": "a terminal command"}.get(entry.kind, "an interactive terminal")
    code = "" if entry.code is UNSET else next((line for line in entry.code.splitlines() if line.strip()), "")
    return f"{name} ({code.strip()})" if code else name
