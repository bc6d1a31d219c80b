"""A user id of its own for each open session, so that the kernel's limits of a user apply to one session.

The id of a session is stored only as the owner of its files' directory, which nobody but root can change. A session
keeps its id until another one that is open has the same. Then it gets a free one when it is used again, and its files
change their owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
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
        owner: Callable[[str], int | None],
        open_now: Callable[[], Collection[str]],
    ) -> None:
        """Assign ids from `first` to `last`.

        `owner` returns the owner of a workspace's files, None if it has none. `open_now` returns the workspaces that
        may have a sandbox now. Both are called from any thread.
        """
        self._ids = range(first, last + 1)
        self._instance = instance
        self._owner = owner
        self._open_now = open_now
        self._assigned: dict[str, int] = {}
        """To open workspaces: their files may have another owner until their sandbox starts."""
        self._lock = Lock()

    def of(self, workspace_id: str) -> int:
        """Return an id that no other open workspace has. Raises `LimitExceeded` if there is none."""
        with self._lock:
            open_now = frozenset(self._open_now())
            self._assigned = {name: uid for name, uid in self._assigned.items() if name in open_now}
            taken = {self._present(name) for name in open_now - {workspace_id}}
            start = self._preferred(workspace_id) - self._ids.start
            for step in range(len(self._ids)):
                uid = self._ids[(start + step) % len(self._ids)]
                if uid not in taken:
                    self._assigned[workspace_id] = uid
                    return uid
        raise LimitExceeded(
            "There is no user id left for another session",
            f"{len(self._ids)} sessions are open; close some, or ask the server's operator to extend --uid-range",
        )

    def _present(self, workspace_id: str) -> int | None:
        return self._assigned.get(workspace_id) or self._owner(workspace_id)

    def _preferred(self, workspace_id: str) -> int:
        present = self._present(workspace_id)
        if present is not None and present in self._ids:
            return present
        # Not the first free one: two servers on one machine should rarely choose the same.
        digest = hashlib.sha256(f"{self._instance}\0{workspace_id}".encode()).digest()
        return self._ids[int.from_bytes(digest[:8], "big") % len(self._ids)]
