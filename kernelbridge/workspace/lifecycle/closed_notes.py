"""How sessions were closed, for the clients that return to them: kept beside their files."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.threads import in_thread
from kernelbridge.workspace.closed_note import ClosedNote, read_note, write_note
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.session_key import SessionKey

log = structlog.get_logger(__name__)


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
