"""When each workspace was used last, on a clock that only counts the time that the server was there to see; pure.

The wall clock may jump, the machine may sleep, the server may be off for a month: none of that is time in which anybody
could have used anything. So the clock goes on by what is told, and never by more than `longest_step` at a time.
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
    """The clock, and when the workspaces that it knows were used. All times in seconds."""

    def __init__(self, *, longest_step: float) -> None:
        self._longest_step = longest_step
        self.clock = 0.0
        self._used: dict[str, float] = {}

    @classmethod
    def read(cls, text: bytes, *, longest_step: float) -> Usage:
        """Go on from what `written` gave; raises `ValueError` for anything else."""
        record = msgspec.json.decode(text, type=_Record)
        usage = cls(longest_step=longest_step)
        usage.clock = record.clock
        # Later than now would be kept for longer than was asked for.
        usage._used = {workspace_id: min(used, record.clock) for workspace_id, used in record.used.items()}
        return usage

    def written(self) -> str:
        """Give it as JSON."""
        return msgspec.json.encode(_Record(self.clock, self._used)).decode()

    def advance(self, elapsed: float) -> None:
        """Let the clock go on."""
        self.clock += min(max(elapsed, 0.0), self._longest_step)

    def use(self, workspace_id: str) -> bool:
        """Note that a workspace is used now; say whether it is a known one. Others are used when they are found."""
        if workspace_id not in self._used:
            return False
        self._used[workspace_id] = self.clock
        return True

    def found(self, present: Iterable[str], *, in_use: Container[str]) -> None:
        """Take note of all workspaces that there are: one that is new, or in use, is used now; others are forgotten."""
        self._used = {
            workspace_id: self.clock if workspace_id in in_use else self._used.get(workspace_id, self.clock)
            for workspace_id in present
        }

    def unused_for(self, workspace_id: str) -> float:
        """Say for how long a workspace was not used; 0 for one that is not known."""
        return self.clock - self._used.get(workspace_id, self.clock)

    def forget(self, workspace_id: str) -> None:
        """Take note that a workspace is gone."""
        self._used.pop(workspace_id, None)
