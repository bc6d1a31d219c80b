r"""Recognise, by its output, a command that needs a terminal, a network or more processes; pure."""

from __future__ import annotations

import re
import signal

from kernelbridge.jupyter.end_causes import BUS_ERROR
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.workspace.hints import LOOKED_AT, PROCESS_HINT, TERMINAL_HINT, failure_hint

_OVERLAP = 24
"""Characters that are kept from one piece, because a sequence may continue in the next."""
_SEQUENCE = re.compile(
    r"\x1b\[\?(?:[0-9;]*;)?(?:47|1047|1049)(?P<alternate>[hl])"  # the alternate screen: entered, left
    # The cursor placed on the screen; not in its corner, as by programs that only clear it.
    r"|\x1b\[(?!0*1?;0*1?H)[0-9]+;[0-9]+H"
)
BUS_HINT = f"a program was ended by SIGBUS: {BUS_ERROR}"
_BUS_ERROR = 128 + signal.SIGBUS
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


def hint(output: str, late: str, exit_code: int | None, *, full_screen: bool, stalled: bool) -> str | None:
    """Return what to do instead of a command that needs a terminal, a network or more processes; None if it does not.

    `late` is what background jobs wrote: a job that starts others until there is no room says so there.
    """
    if full_screen:
        return TERMINAL_HINT
    if stalled or wants_processes(late[-LOOKED_AT:]):
        return PROCESS_HINT
    if exit_code in {0, None}:
        return None
    if exit_code == _BUS_ERROR:
        return BUS_HINT
    return failure_hint(output[-LOOKED_AT:])
