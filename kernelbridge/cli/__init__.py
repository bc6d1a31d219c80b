"""The command line: `kernelbridge serve`, `doctor`, `images`, `token`, `ps`, `kill`, `logs`.

Commands import what they run only when they run it, so `--help` and wrong flags are answered at once.
"""

from __future__ import annotations

from kernelbridge.cli.entry import main

__all__ = ["main"]
