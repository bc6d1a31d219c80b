r"""Commands that want what a command here has not, a whole terminal above all: known by what they write; pure."""

from __future__ import annotations

import re
import signal

from kernelbridge.jupyter.end_causes import BUS_ERROR
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.workspace.hints import LOOKED_AT, PROCESS_HINT, TERMINAL_HINT, failure_hint

_OVERLAP = 24
"""Characters of a sequence that may be cut by the end of a piece."""
_SEQUENCE = re.compile(
    r"\x1b\[\?(?:[0-9;]*;)?(?:47|1047|1049)(?P<alternate>[hl])"  # the alternate screen: entered, left
    # The cursor put somewhere on the screen; not into its corner, as those do who only clear it before they go on.
    r"|\x1b\[(?!0*1?;0*1?H)[0-9]+;[0-9]+H"
)
BUS_HINT = f"a program was ended by SIGBUS: {BUS_ERROR}"
_BUS_ERROR = 128 + signal.SIGBUS
_STALL = "fork: retry: "
"""What bash says when it cannot start a process, before it sleeps and tries again: for 15 seconds in all."""


class ScreenWatch:
    """Notices in a command's output that it paints a screen."""

    def __init__(self) -> None:
        self._rest = ""
        self.paints = False
        """Whether it has put the cursor somewhere, or taken the alternate screen."""
        self.alternate = False
        """Whether it is on the alternate screen."""
        self.stalls = False
        """Whether a shell in it waits until it may start a process."""

    def take(self, text: str) -> None:
        """Look at the next output."""
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
    """Say what to do instead, if a command failed for want of a terminal, a network or processes, or painted a screen.

    `late` is what jobs wrote: one that multiplies has said there that it can no more.
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
