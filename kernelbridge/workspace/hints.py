r"""Hints: what to do instead of something that cannot work in a sandbox, found in the output of programs; pure.

They are the same for commands and cells. The exit code of a command says whether it failed. A cell may succeed although
a program in it failed (`!pip install x`, `subprocess.run`): there, only lines count that look like error messages.
"""

from __future__ import annotations

import re
import signal

from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.end_causes import BUS_ERROR
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.runtimes.contract import NO_ROOM

TERMINAL_HINT = (
    "this program wants a terminal with a person at its keys: start it in one from open_terminal, or use"
    " one that only prints (`cat` for a pager, `top -b`, `git commit -m`)"
)

NETWORK_HINT = (
    "a workspace has no network of its own, and this program did not use the proxy in HTTPS_PROXY and HTTP_PROXY: set"
    " it in the program; what the server does not allow, send in (save_file), or have in the image"
)

PROCESS_HINT = f"the session {NO_ROOM.removeprefix('it ')}"

BUS_HINT = f"a program was ended by SIGBUS: {BUS_ERROR}"
_BUS_ERROR = 128 + signal.SIGBUS

DISK_HINT = (
    "a disk is full: `session_info` tells how much of its disk limit the session uses (delete files); /tmp and /dev/shm"
    " are small, because they are memory"
)

_LOOKED_AT = 4000
"""Characters at the end of the output: the last message says why a program failed."""
_TRACEBACK = 16_000
"""Characters of a traceback, at its beginning and at its end: the first exception and the last one."""

_REFUSALS = re.compile(
    r"terminal is not fully functional"  # less
    r"|failed tty get"  # top
    r"|[Ee]rror opening terminal"  # programs that use curses: nano, htop, watch
    r"|open terminal failed"  # tmux
    r"|[Mm]ust be (?:connected to|run (?:from|in|on)) a terminal"  # screen
    r"|(?:[Ii]nput|stdin|[Ss]tandard input) is not (?:from )?a (?:terminal|TTY|tty)"  # vim, nano, docker
    r"|Vim: Error reading input, exiting"  # the only message of vim that remains if it could clear the screen
    r"|the input device is not a TTY"  # docker
    r"|a terminal is required"  # sudo
    r"|/dev/tty: No such device or address"
    r"|open /dev/tty\b"
)
_UNREACHED = re.compile(
    r"[Cc]ould not resolve (?:host|proxy)"  # curl, git, ssh, conda
    r"|Could not resolve '|Temporary failure resolving"  # apt
    r"|(?:Temporary failure in|failed) name resolution|Name or service not known"  # programs that use the C library
    r"|[Ff]ailed to lookup address information|dns error:"  # uv, cargo and other programs in Rust
    r"|No address associated with hostname"
    r"|unable to resolve host|bad address '"  # wget
    r"|\b(?:EAI_AGAIN|ENOTFOUND)\b"  # npm, yarn
    r"|dial tcp: lookup "  # programs in Go
    r"|CONNECTION FAILED for url"  # conda
    r"|All attempts to connect to \S+ failed"  # poetry
    r"|no servers could be reached"  # dig, nslookup
    r"|Network is unreachable"
)
_NO_ROOM_ON_DISK = ("No space left on device", "Disk quota exceeded")
"""The first one also where XFS refuses because of a quota."""
_WORDS: tuple[str, ...] = (
    *("esol", "EAI_AGAIN", "ENOTFOUND", "nreachable", "not known", "CONNECTION", "connect to"),
    *("address", "dial tcp", "servers", "dns error"),
)
"""Every match contains one of them: a search for them is much faster, and usually finds none."""
_MESSAGE = re.compile(
    r"^[\s│├└╰─▶]*"
    r"(?:[\w./+-]+: |ERROR: |error: |[EW]: |Err:|npm (?:ERR!|error) |yarn error |\[nltk_data\] Error |CondaHTTPError"
    r"|Caused by|dns error: |Temporary failure resolving|Could not resolve '|;; )"
)
"""The beginning of a line that is a program's error message."""


def failure_hint(text: str) -> str | None:
    """Return a hint if `text`, the output of a program that failed, has one of the known reasons, else None."""
    if wants_processes(text):
        return PROCESS_HINT
    if _REFUSALS.search(text) is not None:
        return TERMINAL_HINT
    if _UNREACHED.search(text) is not None:
        return NETWORK_HINT
    return DISK_HINT if any(words in text for words in _NO_ROOM_ON_DISK) else None


def command_hint(output: str, late: str, exit_code: int | None, *, full_screen: bool, stalled: bool) -> str | None:
    """Return what to do instead of a command that needs a terminal, a network or more processes; None if it does not.

    `late` is what background jobs wrote: a job that starts others until there is no room says so there.
    """
    if full_screen:
        return TERMINAL_HINT
    if stalled or wants_processes(late[-_LOOKED_AT:]):
        return PROCESS_HINT
    if exit_code in {0, None}:
        return None
    if exit_code == _BUS_ERROR:
        return BUS_HINT
    return failure_hint(output[-_LOOKED_AT:])


def cell_hint(outcome: Outcome) -> str | None:
    """Return a hint if a cell, or a program in it, failed because of the sandbox, else None."""
    end = outcome.output[-_LOOKED_AT:]
    if outcome.success:
        return NETWORK_HINT if end and _has_message(end) else None
    if outcome.cause is not None:
        return None
    traceback = outcome.traceback or ""
    if len(traceback) > 2 * _TRACEBACK:
        traceback = traceback[:_TRACEBACK] + traceback[-_TRACEBACK:]
    return failure_hint("\n".join((end, traceback, outcome.error or "")))


def _has_message(text: str) -> bool:
    if not any(word in text for word in _WORDS):
        return False
    return any(_UNREACHED.search(line) and _MESSAGE.match(line) for line in text.split("\n"))
