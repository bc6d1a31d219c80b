"""The identity of a session on the server: its principal and its `sessionId`; pure.

A module of its own, because every room needs it, and none of them a whole workspace.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_ID_DIGITS = 24


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session: what `sessionId` names, always together with its principal."""

    principal: str | None
    """`user_id`, or None for connections without one."""
    session_id: str

    @property
    def workspace_id(self) -> str:
        """Lower-case hexadecimal, different for every (principal, sessionId)."""
        # The kind distinguishes a user named "" from a client without a name.
        kind = "anonymous" if self.principal is None else "user"
        text = "\0".join((kind, self.principal or "", self.session_id))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_DIGITS]
