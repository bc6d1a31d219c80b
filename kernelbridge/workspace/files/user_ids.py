"""A user id of its own for each session, so that the kernel's limits of one user are those of one session.

Which one a session has is written nowhere but in its files: their directory belongs to it, and only the server, which
is root then, can change that. Ids of sessions whose files were deleted are given out again last of all: a sandbox that
could not be removed may still run with one.

Stored sessions can outnumber the ids, and one user alone can store that many. Then a new one shares the id of a session
that is not open. Two open ones never share: a session that opens has its id for itself, and the others that had
it get another one when they are used again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from threading import Lock

from kernelbridge.errors import LimitExceeded


class Uids:
    """The user ids of one server's sessions. From any thread."""

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
        """Give ids from `first` to `last`.

        `taken` says which workspaces have one, `principals` whose they are, as far as that is known. `open_now` tells
        which may have a sandbox now; it is called from any thread.
        """
        self._first, self._size = first, last - first + 1
        self._instance = instance
        self._owned = {name: uid for name, uid in taken.items() if first <= uid <= last}
        self._principals = dict(principals)
        self._open_now = open_now
        self._taken: dict[int, set[str]] = {}
        """The workspaces that have an id; what was given out or shared last is at the end."""
        for name, uid in self._owned.items():
            self._taken.setdefault(uid, set()).add(name)
        self._left: dict[int, None] = {}
        """Ids that nobody has any more, in the order in which they were given back."""
        self._lock = Lock()

    def of(self, workspace_id: str, principal: str | None) -> int:
        """Give the id of a workspace. Raises `LimitExceeded` if open sessions have all of them."""
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
                # Not before there is another: whoever is refused is asked again later.
                replacement = self._free(workspace_id, principal)
                self._drop({workspace_id})
                uid = replacement
            else:
                uid = self._free(workspace_id, principal)
            self._owned[workspace_id] = uid
            # Behind all others, so that those that share do not all have the same.
            self._taken[uid] = self._taken.pop(uid, set()) | {workspace_id}
            self._left.pop(uid, None)
            if len(self._taken[uid]) > 1 and workspace_id in self._open_now():
                self._drop(self._taken[uid] - {workspace_id})
            return uid

    def release(self, workspace_id: str) -> None:
        """Take back what a workspace has, whose files and sandbox are gone. Idempotent."""
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
            # Not the first one that is free: another server on the machine shall hardly ever choose the same.
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
        """Choose an id of sessions that are not open: of the same principal's if there are any, else the oldest."""
        open_now = self._open_now()
        oldest = None
        for uid, names in self._taken.items():
            if not names.isdisjoint(open_now):
                continue
            # Whose a session is may be unknown, and None is whoever gave no name.
            if any(self._principals.get(name, name) == principal for name in names):
                return uid
            if oldest is None:
                oldest = uid
        if oldest is None:
            raise LimitExceeded(
                "There is no user id left for another session",
                f"{self._size} sessions are open; close some, or have the server's operator widen --uid-range",
            )
        return oldest
