"""When each workspace was used last, on a clock that only counts the server's uptime; pure.

The wall clock may jump, the machine may sleep, the server may be off for a month: in that time, no client could use a
session. So the caller advances the clock, by at most `longest_step` at a time.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Annotated

import msgspec

_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    clock: _Seconds
    used: dict[str, _Seconds]


class Usage:
    """The clock, and the last use of each known workspace. All times are in seconds."""

    def __init__(self, *, longest_step: float) -> None:
        self._longest_step = longest_step
        self.clock = 0.0
        self._used: dict[str, float] = {}

    @classmethod
    def read(cls, text: bytes, *, longest_step: float) -> Usage:
        """Continue from the text of `written`; raises `ValueError` for any other text."""
        record = msgspec.json.decode(text, type=_Record)
        usage = cls(longest_step=longest_step)
        usage.clock = record.clock
        # A time in the future would keep the files for too long.
        usage._used = {workspace_id: min(used, record.clock) for workspace_id, used in record.used.items()}
        return usage

    def written(self) -> str:
        """Return it as JSON."""
        return msgspec.json.encode(_Record(self.clock, self._used)).decode()

    def advance(self, elapsed: float) -> None:
        """Advance the clock."""
        self.clock += min(max(elapsed, 0.0), self._longest_step)

    def use(self, workspace_id: str) -> bool:
        """Note that a workspace is used now; return False, and do nothing, if it is not known."""
        if workspace_id not in self._used:
            return False
        self._used[workspace_id] = self.clock
        return True

    def found(self, present: Iterable[str], *, in_use: Container[str]) -> None:
        """Set the known workspaces; those that are new, or in use, are used now."""
        self._used = {
            workspace_id: self.clock if workspace_id in in_use else self._used.get(workspace_id, self.clock)
            for workspace_id in present
        }

    def unused_for(self, workspace_id: str) -> float:
        """Return for how long a workspace has not been used; 0 for an unknown one."""
        return self.clock - self._used.get(workspace_id, self.clock)

    def forget(self, workspace_id: str) -> None:
        """Remove a workspace."""
        self._used.pop(workspace_id, None)
