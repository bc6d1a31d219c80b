"""How sessions were closed, for the clients that return to them: kept beside their files until results report it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

import msgspec
import structlog
from msgspec import UNSET

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.threads import in_thread
from kernelbridge.protocol.sessions import SessionStatus, WhatRan
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.session_key import SessionKey

log = structlog.get_logger(__name__)

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

    def status(self, session_id: str, seq: int) -> SessionStatus:
        """Return the `session_status` that tells it."""
        return SessionStatus(
            session_id=session_id,
            seq=seq,
            status="closed",
            detail=self.detail(),
            cause="session_closed",
            closed_at=self.closed_at,
            what_ran=self.what_ran,
            answers_lost=self.answers_lost or UNSET,
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


class ClosedNotes:
    """The notes of all sessions of a server. Written in threads; until a note is on disk, it is read from memory.

    Reading one takes the event loop 10 µs, once for each session that is opened. No method raises: if a note cannot be
    written or read, that is logged, and clients that return are not told how the session was closed.
    """

    def __init__(self, data: DataDirectory, executor: Executor, tasks: TaskSet) -> None:
        self._data = data
        self._executor = executor
        self._tasks = tasks
        self._unsaved: dict[SessionKey, ClosedNote | None] = {}
        self._saving: dict[SessionKey, asyncio.Task[None]] = {}

    def get(self, key: SessionKey) -> ClosedNote | None:
        """Return how a session was closed, or None if no client has to be told."""
        if key in self._unsaved:
            return self._unsaved[key]
        try:
            content = self._data.read_closed_note(key)
            return None if content is None else read_note(content)
        except (OSError, ValueError) as exc:
            log.warning("closed_note_not_read", workspace=key.workspace_id, error=str(exc))
            return None

    def put(self, key: SessionKey, note: ClosedNote | None) -> None:
        """Replace the note of a session, or remove it; see `saved`."""
        self._unsaved[key] = note
        if key not in self._saving:
            self._saving[key] = self._tasks.create(self._save(key))

    async def saved(self, key: SessionKey) -> None:
        """Wait until the note of a session is on disk, or could not be written."""
        if (saving := self._saving.get(key)) is not None:
            await asyncio.wait({saving})

    async def _save(self, key: SessionKey) -> None:
        try:
            saved = False
            while not saved:
                note = self._unsaved[key]
                await in_thread(self._executor, self._write, key, note)
                saved = self._unsaved[key] is note
        finally:
            del self._unsaved[key], self._saving[key]

    def _write(self, key: SessionKey, note: ClosedNote | None) -> None:
        try:
            if note is None:
                self._data.remove_closed_note(key)
            else:
                self._data.write_closed_note(key, write_note(note))
        except OSError as exc:
            log.warning("closed_note_not_written", workspace=key.workspace_id, error=str(exc))


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
