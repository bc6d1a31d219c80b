r"""Programs that want a whole terminal: how they are known by what they write, and what to do instead; pure."""

from __future__ import annotations

import re

HINT = (
    "this program wants a terminal with a person at its keys: start it in one from open_terminal, or use"
    " one that only prints (`cat` for a pager, `top -b`, `git commit -m`)"
)

_OVERLAP = 24
"""Characters of a sequence that may be cut by the end of a piece."""
_SEQUENCE = re.compile(
    r"\x1b\[\?(?:[0-9;]*;)?(?:47|1047|1049)(?P<alternate>[hl])"  # the alternate screen: entered, left
    r"|\x1b\[[0-9]+;[0-9]+H"  # the cursor put somewhere on the screen
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
_LOOKED_AT = 4000
"""Characters at the end of the output: who refuses says so last."""


class ScreenWatch:
    """Notices in a command's output that it paints a screen."""

    def __init__(self) -> None:
        self._rest = ""
        self.paints = False
        """Whether it has put the cursor somewhere, or taken the alternate screen."""
        self.alternate = False
        """Whether it is on the alternate screen."""

    def take(self, text: str) -> None:
        """Look at the next output."""
        if "\x1b" not in text and "\x1b" not in self._rest:
            return
        text = self._rest + text
        for found in _SEQUENCE.finditer(text):
            self.paints = True
            if found["alternate"]:
                self.alternate = found["alternate"] == "h"
        self._rest = text[-_OVERLAP:]


def refuses(output: str, exit_code: int | None) -> bool:
    """Say whether a program gave up because it has no terminal to read from."""
    return exit_code not in {0, None} and _REFUSALS.search(output[-_LOOKED_AT:]) is not None
