"""Pictures in terminals that can show them; pure. The terminal is known by its environment: asking it would wait."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Literal

Protocol = Literal["kitty", "iterm"]

_PIECE = 4096
"""Characters that kitty takes in one sequence."""
_ITERM = frozenset({"iTerm.app", "WezTerm", "vscode", "mintty"})


def protocol(environ: Mapping[str, str], *, is_terminal: bool) -> Protocol | None:
    """Return how the terminal takes pictures; None where it takes none, or its output goes to a pipe or tmux."""
    if not is_terminal or "TMUX" in environ or environ.get("TERM", "").startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environ or environ.get("TERM") in {"xterm-kitty", "xterm-ghostty"}:
        return "kitty"
    return "iterm" if environ.get("TERM_PROGRAM") in _ITERM else None


def shown(png: bytes, how: Protocol) -> str:
    """Return what shows a PNG picture, on lines of its own."""
    data = base64.b64encode(png).decode()
    if how == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(png)}:{data}\x07\n"
    return "".join(_kitty(data)) + "\n"


def _kitty(data: str) -> Iterator[str]:
    for at in range(0, len(data), _PIECE):
        keys = "a=T,f=100," if at == 0 else ""
        more = int(at + _PIECE < len(data))
        yield f"\x1b_G{keys}m={more};{data[at : at + _PIECE]}\x1b\\"
