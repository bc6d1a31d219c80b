"""The directory in which commands keep what a later command of the same user needs."""

from __future__ import annotations

import os
from pathlib import Path


def state_directory() -> Path:
    """Return `$XDG_STATE_HOME/kernelbridge`, by default `~/.local/state/kernelbridge`, which only the user can read.

    Raises `OSError` if it cannot be made.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    # As the specification says: a path that is not absolute does not count.
    base = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
    directory = base / "kernelbridge"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory
