r"""Programs that want what a command here has not, a whole terminal or a network, and what to do instead; pure.

They are known by what they write.
"""

from __future__ import annotations

import re

from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.runtimes.base import NO_ROOM

TERMINAL_HINT = (
    "this program wants a terminal with a person at its keys: start it in one from open_terminal, or use"
    " one that only prints (`cat` for a pager, `top -b`, `git commit -m`)"
)

NETWORK_HINT = (
    "a workspace has no network: send files into it (save_file; for pip, wheels), or use an image that has the package"
)

PROCESS_HINT = f"the session {NO_ROOM.removeprefix('it ')}"

_OVERLAP = 24
"""Characters of a sequence that may be cut by the end of a piece."""
_SEQUENCE = re.compile(
    r"\x1b\[\?(?:[0-9;]*;)?(?:47|1047|1049)(?P<alternate>[hl])"  # the alternate screen: entered, left
    # The cursor put somewhere on the screen; not into its corner, as those do who only clear it before they go on.
    r"|\x1b\[(?!0*1?;0*1?H)[0-9]+;[0-9]+H"
)
_REFUSALS = re.compile(
    r"terminal is not fully functional"  # less
    r"|failed tty get"  # top
    r"|[Ee]rror opening terminal"  # whatever uses curses: nano, htop, watch
    r"|open terminal failed"  # tmux
    r"|[Mm]ust be (?:connected to|run (?:from|in|on)) a terminal"  # screen
    r"|(?:[Ii]nput|stdin|[Ss]tandard input) is not (?:from )?a (?:terminal|TTY|tty)"  # vim, nano, docker
    r"|the input device is not a TTY"  # docker
    r"|a terminal is required"  # sudo
    r"|/dev/tty: No such device or address"
    r"|open /dev/tty\b"
)
_UNREACHED = re.compile(
    r"\(from versions: none\)"  # pip
    r"|[Cc]ould not resolve (?:host|proxy)"  # curl, git, ssh
    r"|Could not resolve '"  # apt
    r"|(?:Temporary failure in|failed) name resolution|Name or service not known"  # whatever asks the C library
    r"|unable to resolve host"  # wget
    r"|Network is unreachable"
)
_STALL = "fork: retry: "
"""What bash says when it cannot start a process, before it sleeps and tries again: for 15 seconds in all."""
_LOOKED_AT = 4000
"""Characters at the end of the output: who gives up says so last."""


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
    if stalled or wants_processes(late[-_LOOKED_AT:]):
        return PROCESS_HINT
    if exit_code in {0, None}:
        return None
    end = output[-_LOOKED_AT:]
    if wants_processes(end):
        return PROCESS_HINT
    if _REFUSALS.search(end) is not None:
        return TERMINAL_HINT
    return NETWORK_HINT if _UNREACHED.search(end) is not None else None
