"""The command line: `kernelbridge run`, `shell`, `cp`, `serve`, `doctor`, `images`, `token`, `ps`, `kill`, `logs`.

Commands import what they run only when they run it, so `--help` and wrong flags are answered at once. Where only the
client is installed, there is nothing to run: one sentence says what to install.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Never raises an `Exception`."""
    try:
        from kernelbridge.cli.entry import main as run  # noqa: PLC0415 - it needs the extra `server`
    except ModuleNotFoundError as exc:
        if str(exc.name).startswith("kernelbridge"):
            raise
        print(f"kernelbridge: {NOT_INSTALLED.format(exc.name)}", file=sys.stderr)  # noqa: T201
        return 1
    return run(argv)


NOT_INSTALLED = "the server needs {}, which is not installed here: pip install 'kernelbridge[server]'"
