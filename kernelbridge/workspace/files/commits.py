"""What all that change one session's files share: a lock, and whether those files have been deleted since."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from threading import Lock
from types import TracebackType

from kernelbridge.errors import FileError, FilesDeleted


class Commits:
    """Entered while something takes its place, from any thread; blocking.

    It belongs to one making of a session's directory: what is deleted and made again has another. Raises
    `FileNotFoundError` when that directory has been deleted.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._deleted = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._deleted:
            self._lock.release()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    @property
    def deleted(self) -> bool:
        """Whether the files have been deleted as a whole: what is there now, if anything, are others. Blocking."""
        # Who has seen that they are gone must hear why, so a deletion that is under way is waited for.
        with self._lock:
            return self._deleted

    @contextlib.contextmanager
    def deletion(self) -> Iterator[None]:
        """Be entered while the directory goes away, and take note that it has; blocking."""
        with self:
            yield
            self._deleted = True

    def told(self, failure: FileError) -> FileError:
        """Give what is to be told of a failure: another one if it comes of the deletion. Blocking."""
        if not self.deleted:
            return failure
        return FilesDeleted(
            failure.message,
            "the session was closed and its files were deleted meanwhile;"
            " send the request again, and it finds the session empty",
        )
