"""What a program in a sandbox may send to the terminal of a person; pure.

A terminal obeys more than colours and cursor movements. It answers questions, and the answer is typed into the next
prompt; it writes into the clipboard, saves files and prints. New sequences of this kind are invented all the time, so
what is known to be harmless passes, and everything else is removed.
"""

from __future__ import annotations

import re

_TEXT = r"[^\x00-\x1f\x7f-\x9f]"
_LINES = r"[^\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]"
_OPENS = r"(?:\x1b[\]P_^X]|[\x90\x98\x9d-\x9f])"
_CSI = r"(?:\x1b\[|\x9b)"

_SEQUENCE = re.compile(
    rf"{_CSI}[ -?]*[@-~]?"
    rf"|{_OPENS}{_LINES}*(?:\x07|\x1b\\|\x9c|\x1b\Z)?"  # a string: a title, a colour, a picture
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x05\x80-\x9f]"  # a terminal says who it is after \x05
)
"""Any sequence, whole or not. A control character within one ends it: terminals obey that and read on."""

_UNFINISHED = re.compile(rf"{_CSI}[ -?]*|{_OPENS}{_LINES}*\x1b?|\x1b[ -/]*")

_HARMLESS = re.compile(
    r"\x1b\[[\d;:]*[@A-MPSTXZ`abdefghlmrsu]"  # movements, erasing, colours, margins
    r"|\x1b\[2[23](?:;[012])?t"  # keeps a title, and takes it back
    r"|\x1b\[(?:\?[\d;]*[JKrs]|\d* q|!p)"
    r"|\x1b(?:[()*+][0-9A-Za-z]|#[3-68]|[78DEHMc])"
    rf"|\x1b\](?:[0127]|8|9;4|133);{_TEXT}*(?:\x07|\x1b\\)"  # titles, directory, links, progress, prompts
    r"|\x1b\](?:4;\d+|1[0-9]);[\w#:/.]+(?:\x07|\x1b\\)"  # colours; a question mark would ask for them
    r"|\x1b\]1(?:04|1[0-9])[\d;]*(?:\x07|\x1b\\)"
    r"|\x1b\]1337;File=(?:[\w=%,+/-]+;)*inline=1(?:;[\w=%,+/-]+)*:[\w+/=]*(?:\x07|\x1b\\)"  # not inline: it is saved
    rf"|\x1bP[\d;]*q{_LINES}*\x1b\\"  # a picture, as sixels
)
_MODES = re.compile(r"\x1b\[\?([\d;]+)[hl]")
_SCREEN_MODES = frozenset({"5", "6", "7", "12", "25", "45", "47", "69", "1047", "1048", "1049", "2026"})
_REPORTING_MODES = frozenset({"2031", "2048"})
"""Modes in which a terminal says at once what it is like."""
_KEYS = re.compile(r"\x1b[=>]|\x1b\[>[\d;]*m|\x1b\[[<=>][\d;]*u")
"""What keys send."""
_KITTY = re.compile(r"\x1b_G([A-Za-z]=[\w-]*(?:,[A-Za-z]=[\w-]*)*)(?:;[\w+/=]*)?\x1b\\")
"""A picture, or a part of one."""

_IN_STRING = re.compile(rf"{_OPENS}{_LINES}*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_LONGEST = 2 << 20
"""Characters of an unfinished sequence that are kept: more than a terminal's replay has."""

_CANCEL = "\x18"
"""Stands for what is removed. It ends a sequence that is begun before it, which could go on behind it otherwise."""


class OutputFilter:
    """Removes what is not known to be harmless from text that comes in pieces.

    The beginning of a sequence at the end of a piece waits for the next one.
    """

    def __init__(self, *, keys: bool = False) -> None:
        """With `keys`, programs may change what the terminal sends for keys, the mouse and pasted text."""
        self._keys = keys
        self._begun: list[str] = []
        """The beginning of a sequence."""
        self._size = 0
        self._in_string = False

    def take(self, text: str) -> str:
        """Return what the terminal may get of the next piece."""
        self._begun.append(text)
        self._size += len(text)
        if self._in_string and self._size < _LONGEST and not _CONTROL.search(text):
            return ""  # it goes on: a large picture is not looked at again with each piece
        text, at, shown = self.end(), 0, []
        for found in _SEQUENCE.finditer(text):
            shown.append(text[at : found.start()])
            at = found.end()
            if at == len(text) and len(found[0]) < _LONGEST and _UNFINISHED.fullmatch(found[0]):
                self._begun, self._size = [found[0]], len(found[0])
                self._in_string = _IN_STRING.fullmatch(found[0]) is not None
            else:
                shown.append(found[0] if self._is_harmless(found[0]) else _CANCEL)
        return "".join(shown) + text[at:]

    def end(self) -> str:
        """Return the beginning of a sequence that waits, and forget it."""
        begun = "".join(self._begun)
        self._begun, self._size, self._in_string = [], 0, False
        return begun

    def _is_harmless(self, sequence: str) -> bool:
        if _HARMLESS.fullmatch(sequence):
            return True
        if modes := _MODES.fullmatch(sequence):
            named = {mode.lstrip("0") for mode in modes[1].split(";")}
            return not named & _REPORTING_MODES if self._keys else named <= _SCREEN_MODES
        if picture := _KITTY.fullmatch(sequence):
            about = dict(part.split("=") for part in picture[1].split(","))
            silent = about.get("q") == "2" or not about.keys() & {"i", "I"}
            return silent and about.get("a") != "q" and about.get("t", "d") == "d"  # others read files of this machine
        return self._keys and _KEYS.fullmatch(sequence) is not None
