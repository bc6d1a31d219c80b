"""What the next result of a session tells besides its own."""

from __future__ import annotations

LIMIT = 1 << 20
"""Characters of background threads' output that are kept until the next result."""


class LateOutput:
    """What background threads wrote while no cell was theirs, and what the server has to say itself."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Keep a text for the next result."""
        room = LIMIT - self._size
        if room < 0:
            return  # said already
        self._pieces.append(text[:room])
        self._size += len(text)
        if len(text) > room:
            self._pieces.append("\n[more output of background threads was left out here]\n")

    def take(self) -> str:
        """Give it, once."""
        text = "".join(self._pieces)
        self._pieces, self._size = [], 0
        return text


def variables_lost(how: str) -> str:
    """Give the line that tells a person how the interpreter ended that earlier cells ran in."""
    return f"kernelbridge: the interpreter {how}; its variables are lost\n"
