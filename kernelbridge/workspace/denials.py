"""What the egress policy has refused to the programs of one session; pure."""

from __future__ import annotations

from kernelbridge.workspace.hints import NETWORK_HINT


class Denials:
    """Counts them, so that a run can say in its hint what was refused while it ran."""

    def __init__(self) -> None:
        self._count = 0
        self._last = ""

    def add(self, sentence: str) -> None:
        """Note one; `sentence` is for the user."""
        self._count += 1
        self._last = sentence

    def mark(self) -> int:
        """Return the present count, for `hint` after a run."""
        return self._count

    def hint(self, mark: int, other: str | None) -> str | None:
        """Return the hint of a run that began at `mark`; `other` is what its output gives rise to.

        The latest refusal says more than that there is no network, and less than anything else.
        """
        return self._last if self._count > mark and other in {None, NETWORK_HINT} else other
