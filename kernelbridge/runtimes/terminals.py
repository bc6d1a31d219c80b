"""Why a terminal cannot be opened: the session has taken all that it may, or the machine has no more."""

from __future__ import annotations

from pathlib import Path

_OWN = "the session has reached its limit of terminals (PTYs); end programs that hold some"
_OTHERS = "the machine has no more terminals (PTYs), which is not this session's doing; try again later"


def no_terminals(settings: Path = Path("/proc/sys/kernel/pty")) -> str:
    """Say whose doing it is. `settings` has the machine's numbers; without them the session's limit is told."""
    try:
        used, most, kept = (int((settings / name).read_text(encoding="ascii")) for name in ("nr", "max", "reserve"))
    except (OSError, ValueError):
        return _OWN
    return _OTHERS if used >= most - kept else _OWN
