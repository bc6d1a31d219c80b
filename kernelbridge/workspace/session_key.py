"""The identity of a session on the server: its principal and its `sessionId`; pure.

A module of its own, because every room needs it, and none of them a whole workspace.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kernelbridge.identity.principal import Principal

_ID_DIGITS = 24


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session: what `sessionId` names, always together with its principal."""

    principal: Principal
    session_id: str

    @property
    def workspace_id(self) -> str:
        """Lower-case hexadecimal, different for every (principal, sessionId)."""
        # The kind distinguishes a user named "" from a client without a name.
        name = self.principal.key
        kind = "anonymous" if name is None else "user"
        text = "\0".join((kind, name or "", self.session_id))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_DIGITS]
