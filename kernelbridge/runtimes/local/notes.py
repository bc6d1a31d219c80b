"""What the next server must know about a local sandbox to adopt or end it: one small file for each.

A sandbox that is being started has none: if the server is killed at that moment, the agent waits `START_SECONDS` for
another one, and then ends the sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from kernelbridge.runtimes.local.pidfd import Identity

log = structlog.get_logger(__name__)

_SUFFIX = ".json"


class Note(msgspec.Struct, frozen=True):
    """One sandbox that is ready."""

    id: str
    workspace_id: str
    isolated: bool
    agent: Identity
    """Its first process."""
    shared: str
    """The host's path of its shared directory."""
    shared_path: str
    """Its path in the sandbox."""
    workspace_path: str
    link: str | None
    """The symlink that `shared_path` goes through, if it needs one."""


class Notes:
    """The notes of one server's sandboxes in a directory of their own. Everything blocks for a moment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, note: Note) -> None:
        """Write the note of a sandbox; raises OSError. It is not synced: no sandbox outlives its machine."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{note.id}{_SUFFIX}"
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(note))
        new.replace(path)

    def read(self) -> list[Note]:
        """Return all notes. A damaged one is removed; its sandbox ends itself."""
        return list(self._read())

    def remove(self, sandbox_id: str) -> None:
        """Remove the note of a sandbox. Idempotent."""
        (self._directory / f"{sandbox_id}{_SUFFIX}").unlink(missing_ok=True)

    def _read(self) -> Iterator[Note]:
        if not self._directory.is_dir():
            return
        for path in sorted(self._directory.iterdir()):
            try:
                note = msgspec.json.decode(path.read_bytes(), type=Note)
                if path.name != f"{note.id}{_SUFFIX}":
                    raise msgspec.ValidationError("it is another sandbox's")
            except msgspec.MsgspecError as exc:
                log.warning("sandbox_note_damaged", file=str(path), error=str(exc))
                path.unlink(missing_ok=True)
                continue
            yield note
