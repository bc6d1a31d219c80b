"""Writing files of any size in pieces, as they arrive."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from kernelbridge.aio.threads import Work
from kernelbridge.errors import FileTooLarge
from kernelbridge.workspace.files.names import explained, relative_parts
from kernelbridge.workspace.files.store import WorkspaceFiles
from kernelbridge.workspace.files.versions import Condition, NewVersion, Saved, settled


@dataclass(eq=False)
class Upload:
    """A file that is arriving: `begin`, `write` as often as needed, `commit`; `close` whatever happened. Blocking.

    Each raises `BadRequest`, and `FileError` or one of its kinds. What was not committed leaves nothing.
    """

    files: WorkspaceFiles
    filename: str
    condition: Condition
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _new: NewVersion | None = None

    def begin(self) -> Work[None]:
        """Check the condition and make room beside the file."""
        parts = relative_parts(self.filename)
        with self._explained():
            fd = self._open.enter_context(self.files.home(parts, self.condition))
            self.condition = yield from settled(fd, parts[-1], self.condition)
            self._new = self._open.enter_context(self.files.new_version(fd, parts[-1]))

    def check(self, size: int) -> None:
        """Raise `FileTooLarge` for a file of so many bytes if that is too much."""
        limit = self.files.limits.file
        if size > limit:
            raise FileTooLarge(self._message, f"the limit is {limit} bytes (the server's max_upload)")

    def write(self, data: bytes | bytearray) -> None:
        """Add what has arrived."""
        new = self._begun()
        self.check(new.size + len(data))
        with self._explained():
            new.write(data)

    def commit(self) -> Saved:
        """Make it durable and put it in its place."""
        with self._explained():
            return self._begun().commit(self.condition)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._open.close()

    @property
    def _message(self) -> str:
        return f"The file {self.filename!r} was not saved"

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self._message)

    def _begun(self) -> NewVersion:
        if self._new is None:
            raise AssertionError("begin() comes first")
        return self._new
