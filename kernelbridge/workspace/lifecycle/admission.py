"""Limits on the number of sessions; pure.

Above a limit, a session is refused with `LimitExceeded`; the same request may succeed later.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kernelbridge.errors import LimitExceeded
from kernelbridge.workspace.session_key import SessionKey

REOPENED = 100
"""How often a session may be opened and closed again while its first close is still under way."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions may be open at a time, and have files."""

    per_user: int
    in_all: int
    stored_per_user: int

    def check(self, key: SessionKey, open_now: Collection[SessionKey], stored: Collection[str]) -> None:
        """Raise `LimitExceeded` if the session `key` cannot be opened in addition to those that are open.

        `stored` has the ids of the sessions of the same principal that have files. A session that is open has files, or
        may have some at any moment.
        """
        if key in open_now:
            return
        if key.session_id not in stored:
            new = sum(1 for one in open_now if one.principal == key.principal and one.session_id not in stored)
            if len(stored) + new >= self.stored_per_user:
                raise LimitExceeded(
                    "Too many sessions of this user have files",
                    f"the limit is {self.stored_per_user}; list_sessions names them, and close_session with"
                    " deleteFiles deletes one that is not needed",
                )
        if sum(1 for other in open_now if other.principal == key.principal) >= self.per_user:
            raise LimitExceeded(
                "Too many sessions are open for this user",
                f"the limit is {self.per_user}; close one with close_session, or wait until an unused one has ended",
            )
        if len(open_now) >= self.in_all:
            raise LimitExceeded(
                "Too many sessions are open on this server",
                f"the limit is {self.in_all}; try again when others have ended, or ask its operator for more",
            )


def check_reopening(count: int) -> None:
    """Raise `LimitExceeded` if a session has been opened again too often while it is being closed."""
    if count >= REOPENED:
        raise LimitExceeded(
            "The session was opened and closed too often while its close was still in progress",
            "send the request again after the answer to close_session",
        )
