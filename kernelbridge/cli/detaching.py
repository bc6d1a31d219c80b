"""Leaving a terminal that goes on, with `~d` at the beginning of a line; and what must not reach the emulator; pure."""

from __future__ import annotations

import re

_QUESTIONS = re.compile(
    r"\x05"  # who it is
    r"|(?:\x1b\[|\x9b)[?>=]?[\d;]*[cnx]"  # what it is, how it is, where the cursor is
    r"|\x1b\[>[\d;]*q"  # its version
    r"|\x1b\[\?[\d;]*\$p"  # a mode
    r"|\x1b\[\?u"  # its keyboard protocol
    r"|\x1b\[1[4-9]t|\x1b\[2[01]t"  # its size and title
    r"|\x1b\](?:4;\d+|1\d);\?(?:\x07|\x1b\\)"  # a colour
    r"|\x1b\]52;[^\x07\x1b]*(?:\x07|\x1b\\)"  # the clipboard, to be read or written
    r"|\x1bP[$+]q[^\x1b]*\x1b\\"  # a setting
    r"|\x1b_G[^\x1b;]*a=q[^\x1b]*\x1b\\"  # whether it shows pictures
)

_BEGUN = re.compile(r"(?:\x1b(?:\[[?>=]?[\d;]*\$?)?|\x9b[?>=]?[\d;]*|\x1b\][^\x07\x1b]*\x1b?|\x1b[P_][^\x1b]*\x1b?)\Z")
"""The beginning of what may become a question."""
_LONGEST = 2 << 20
"""Characters of a beginning that are kept: more than a terminal's replay has."""

_CANCEL = "\x18"
"""Stands for each question. It ends a sequence that is begun before it, which could go on behind it otherwise."""

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


class WithoutQuestions:
    """Removes what the terminal would answer, and what writes into its clipboard, from text that comes in pieces.

    The beginning of a sequence at the end of a piece waits for the next one: together they may be a question.
    """

    def __init__(self) -> None:
        self._begun = ""
        """The beginning of a sequence."""

    def take(self, text: str) -> str:
        """Return what the terminal may get of the next piece."""
        text = self._begun + text
        begun = _BEGUN.search(text)
        self._begun = "" if begun is None else begun[0][:_LONGEST]
        return _QUESTIONS.sub(_CANCEL, text if begun is None else text[: begun.start()])

    def end(self) -> str:
        """Return the beginning of a sequence that waits, and forget it."""
        begun, self._begun = self._begun, ""
        return begun
