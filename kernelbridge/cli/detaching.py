"""Leaving a terminal that goes on, with `~d` at the beginning of a line; pure."""

from __future__ import annotations

LEFT = (
    "\x1b7\x1b[?1049l\x1b[<u\x1b[>4m"
    + "".join(f"\x1b[?{mode}l" for mode in (1000, 1002, 1003, 1004, 1005, 1006, 1015, 2004, 1))
    + "\x1b7\x1b[r\x1b8\x1b[?7h\x1b(B\x0f\x1b>\x1b[?25h\x1b[m"
)
"""Undoes what programs in a terminal may have set: the other screen, keys, mouse, paste, margins, cursor, colours."""


class Keys:
    """Finds `~d` among the keys of a person.

    As with ssh, only a `~` at the beginning of a line waits for the next key: typed and then erased, it would reach
    programs that do not edit lines. No other key is held back.
    """

    def __init__(self) -> None:
        self._begins = True
        """Whether the next key is the first of a line."""
        self._tilde = False
        """Whether a `~` waits."""

    def take(self, text: str) -> tuple[str, bool]:
        """Return what is to be typed, and whether the person leaves; keys after that are dropped."""
        typed = ""
        for key in text:
            if self._tilde:
                self._tilde, self._begins = False, False
                if key == "d":
                    return typed, True
                typed += "~" if key != "~" else ""  # ~~ types one
            elif self._begins and key == "~":
                self._tilde = True
                continue
            typed += key
            self._begins = key in "\r\n\x03\x15"  # Ctrl-C and Ctrl-U begin a line anew
        return typed, False
