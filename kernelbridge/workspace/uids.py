"""A user id of its own for each session, so that the kernel's limits of one user are those of one session.

Which one a session has is written nowhere but in its files: their directory belongs to it, and only the server, which
is root then, can change that. Ids of sessions whose files were deleted are given out again last of all: a sandbox that
could not be removed may still run with one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from threading import Lock

from kernelbridge.errors import LimitExceeded


class Uids:
    """The user ids of one server's sessions. From any thread."""

    def __init__(self, first: int, last: int, *, instance: str, taken: Mapping[int, str]) -> None:
        """Give ids from `first` to `last`; `taken` are the workspaces that have one, by id."""
        self._first, self._size = first, last - first + 1
        self._instance = instance
        self._taken = {uid: name for uid, name in taken.items() if first <= uid <= last}
        self._owned = {name: uid for uid, name in self._taken.items()}
        self._left: dict[int, None] = {}
        """Ids that nobody has any more, in the order in which they were given back."""
        self._lock = Lock()

    def of(self, workspace_id: str) -> int:
        """Give the id of a workspace. Raises `LimitExceeded` if there are no more."""
        with self._lock:
            uid = self._owned.get(workspace_id)
            if uid is None:
                uid = self._owned[workspace_id] = self._free(workspace_id)
                self._taken[uid] = workspace_id
                self._left.pop(uid, None)
            return uid

    def release(self, workspace_id: str) -> None:
        """Take back what a workspace has, whose files and sandbox are gone. Idempotent."""
        with self._lock:
            uid = self._owned.pop(workspace_id, None)
            if uid is not None:
                del self._taken[uid]
                self._left[uid] = None

    def _free(self, workspace_id: str) -> int:
        # Not the first one that is free: another server on the machine shall hardly ever choose the same.
        digest = hashlib.sha256(f"{self._instance}\0{workspace_id}".encode()).digest()
        start = int.from_bytes(digest[:8], "big")
        for step in range(self._size):
            uid = self._first + (start + step) % self._size
            if uid not in self._taken and uid not in self._left:
                return uid
        for uid in self._left:
            return uid
        raise LimitExceeded(
            "There is no user id left for another session",
            f"{self._size} sessions have files; delete some, or have the server's operator widen --uid-range",
        )
