r"""Recognise, by its output, a command that paints a screen or waits until it may start a process; pure."""

from __future__ import annotations

import re

_OVERLAP = 24
"""Characters that are kept from one piece, because a sequence may continue in the next."""
_SEQUENCE = re.compile(
    r"\x1b\[\?(?:[0-9;]*;)?(?:47|1047|1049)(?P<alternate>[hl])"  # the alternate screen: entered, left
    # The cursor placed on the screen; not in its corner, as by programs that only clear it.
    r"|\x1b\[(?!0*1?;0*1?H)[0-9]+;[0-9]+H"
)
_STALL = "fork: retry: "
"""What bash writes when it cannot start a process, before it sleeps and tries again: for 15 seconds in all."""


class ScreenWatch:
    """Recognises in a command's output that it paints a screen, or cannot start a process."""

    def __init__(self) -> None:
        self._rest = ""
        self.paints = False
        """Whether it has placed the cursor, or switched to the alternate screen."""
        self.alternate = False
        """Whether it is on the alternate screen now."""
        self.stalls = False
        """Whether a shell in it has said that it waits until it may start a process."""

    def receive(self, text: str) -> None:
        """Process the next output."""
        self.stalls = self.stalls or _STALL in text
        if "\x1b" not in text and "\x1b" not in self._rest:
            return
        text = self._rest + text
        for found in _SEQUENCE.finditer(text):
            self.paints = True
            if found["alternate"]:
                self.alternate = found["alternate"] == "h"
        self._rest = text[-_OVERLAP:]
