"""A user id of its own for each session, so that the kernel's limits of a user apply to one session.

The id of a session is stored only as the owner of its files' directory, which nobody but root can change. The id of a
session whose files were deleted is used again only if no other is free: a sandbox that could not be removed may still
run with it.

There can be more stored sessions than ids; a single user can store that many. Then a new session shares the id of a
session that is not open. Two open sessions never share an id: a session that opens keeps its id for itself, and the
others with this id get another one when they are used again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from threading import Lock

from kernelbridge.errors import LimitExceeded


class Uids:
    """The user ids of one server's sessions. Thread-safe."""

    def __init__(
        self,
        first: int,
        last: int,
        *,
        instance: str,
        taken: Mapping[str, int],
        principals: Mapping[str, str | None],
        open_now: Callable[[], Collection[str]],
    ) -> None:
        """Assign ids from `first` to `last`.

        `taken` has the ids of stored workspaces, `principals` their owners as far as they are known. `open_now`
        returns the workspaces that may have a sandbox now; it is called from any thread.
        """
        self._first, self._size = first, last - first + 1
        self._instance = instance
        self._owned = {name: uid for name, uid in taken.items() if first <= uid <= last}
        self._principals = dict(principals)
        self._open_now = open_now
        self._taken: dict[int, set[str]] = {}
        """The workspaces of each id, ordered by the last assignment."""
        for name, uid in self._owned.items():
            self._taken.setdefault(uid, set()).add(name)
        self._left: dict[int, None] = {}
        """Ids without a workspace, in the order in which they were released."""
        self._lock = Lock()

    def of(self, workspace_id: str, principal: str | None) -> int:
        """Return the id of a workspace; assign one if necessary. Raises `LimitExceeded` if open sessions have all."""
        with self._lock:
            self._principals[workspace_id] = principal
            uid = self._owned.get(workspace_id)
            if uid is not None:
                others = self._taken[uid] - {workspace_id}
                if not others:
                    return uid
                open_now = self._open_now()
                if others.isdisjoint(open_now):
                    if workspace_id in open_now:
                        self._drop(others)
                    return uid
                # Assign the other id first: if there is none, nothing changes.
                replacement = self._free(workspace_id, principal)
                self._drop({workspace_id})
                uid = replacement
            else:
                uid = self._free(workspace_id, principal)
            self._owned[workspace_id] = uid
            # Move the id to the end, so that sharing is spread over all ids.
            self._taken[uid] = self._taken.pop(uid, set()) | {workspace_id}
            self._left.pop(uid, None)
            if len(self._taken[uid]) > 1 and workspace_id in self._open_now():
                self._drop(self._taken[uid] - {workspace_id})
            return uid

    def release(self, workspace_id: str) -> None:
        """Release the id of a workspace without files and sandbox. Idempotent."""
        with self._lock:
            self._principals.pop(workspace_id, None)
            self._drop({workspace_id})

    def _drop(self, workspace_ids: Collection[str]) -> None:
        for name in workspace_ids:
            uid = self._owned.pop(name, None)
            if uid is None:
                continue
            self._taken[uid].discard(name)
            if not self._taken[uid]:
                del self._taken[uid]
                self._left[uid] = None

    def _free(self, workspace_id: str, principal: str | None) -> int:
        if len(self._taken) + len(self._left) < self._size:
            # Not the first free one: two servers on one machine should rarely choose the same.
            digest = hashlib.sha256(f"{self._instance}\0{workspace_id}".encode()).digest()
            start = int.from_bytes(digest[:8], "big")
            for step in range(self._size):
                uid = self._first + (start + step) % self._size
                if uid not in self._taken and uid not in self._left:
                    return uid
        for uid in self._left:
            return uid
        return self._shared(principal)

    def _shared(self, principal: str | None) -> int:
        """Choose an id of sessions that are not open: one of the same principal if possible, else the oldest."""
        open_now = self._open_now()
        oldest = None
        for uid, names in self._taken.items():
            if not names.isdisjoint(open_now):
                continue
            # The owner of a session may be unknown, which is different from None, a client without a name.
            if any(self._principals.get(name, name) == principal for name in names):
                return uid
            if oldest is None:
                oldest = uid
        if oldest is None:
            raise LimitExceeded(
                "There is no user id left for another session",
                f"{self._size} sessions are open; close some, or ask the server's operator to extend --uid-range",
            )
        return oldest
