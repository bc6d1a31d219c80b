"""What background threads or jobs write while no run is theirs, kept for the next result; pure."""

from __future__ import annotations

LIMIT = 1 << 20
"""Characters that are kept."""


class LateText:
    """The text of one kind of writers, bounded."""

    def __init__(self, writers: str) -> None:
        """`writers` is what a reader calls them, e.g. `background jobs`."""
        self._left_out = f"\n[more output of {writers} was left out here]\n"
        self._pieces: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Keep a text, or its beginning and a note that more was left out."""
        room = LIMIT - self._size
        if room < 0:
            return  # the note is there
        self._pieces.append(text[:room])
        self._size += len(text)
        if len(text) > room:
            self._pieces.append(self._left_out)

    def take(self) -> str:
        """Return what is kept, and forget it."""
        text = "".join(self._pieces)
        self._pieces, self._size = [], 0
        return text
