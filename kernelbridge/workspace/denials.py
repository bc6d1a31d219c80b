"""What the egress policy has refused to the programs of one session; pure."""

from __future__ import annotations

from kernelbridge.workspace.hints import NETWORK_HINT

NAMED = 3
"""Refusals that a hint names."""
_KEPT = 100
"""Different refusals that are remembered."""


class Denials:
    """Counts them, so that a run can say in its hint what was refused while it ran."""

    def __init__(self) -> None:
        self._count = 0
        self._latest: dict[str, int] = {}
        """Each sentence, with the count at which it came last; in the order in which they came last."""

    def add(self, sentence: str) -> None:
        """Note one; `sentence` is for the user."""
        self._count += 1
        self._latest.pop(sentence, None)
        self._latest[sentence] = self._count
        if len(self._latest) > _KEPT:
            del self._latest[next(iter(self._latest))]

    def mark(self) -> int:
        """Return the present count, for `hint` after a run."""
        return self._count

    def hint(self, mark: int, other: str | None) -> str | None:
        """Return the hint of a run that began at `mark`; `other` is what its output gives rise to.

        The refusals say more than that there is no network, and less than anything else. The first of them may be why
        the others were asked for; so the first and the latest ones are named, each on a line.
        """
        if self._count <= mark or other not in {None, NETWORK_HINT}:
            return other
        found = [sentence for sentence, count in self._latest.items() if count > mark]
        left_out = len(found) - NAMED
        if left_out > 0:
            found[1 : 1 + left_out] = [f"({left_out} other refusals)"]
        return "\n".join(found)
