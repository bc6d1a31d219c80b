r"""What to do instead where something cannot work in a sandbox: known by what programs say of it; pure.

The same for commands and cells. A command has failed by its exit code. A cell may succeed although a program in it has
failed (`!pip install x`, `subprocess.run`): there, only a line counts that is a program's complaint by its form.
"""

from __future__ import annotations

import re

from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.runtimes.contract import NO_ROOM

TERMINAL_HINT = (
    "this program wants a terminal with a person at its keys: start it in one from open_terminal, or use"
    " one that only prints (`cat` for a pager, `top -b`, `git commit -m`)"
)

NETWORK_HINT = (
    "a workspace has no network: send files into it (save_file; for pip, wheels), or use an image that has the package"
)

PROCESS_HINT = f"the session {NO_ROOM.removeprefix('it ')}"

LOOKED_AT = 4000
"""Characters at the end of the output: who gives up says so last."""
_TRACEBACK = 16_000
"""Characters of a traceback, at its beginning and its end: the cause is first, what came of it last."""

_REFUSALS = re.compile(
    r"terminal is not fully functional"  # less
    r"|failed tty get"  # top
    r"|[Ee]rror opening terminal"  # whatever uses curses: nano, htop, watch
    r"|open terminal failed"  # tmux
    r"|[Mm]ust be (?:connected to|run (?:from|in|on)) a terminal"  # screen
    r"|(?:[Ii]nput|stdin|[Ss]tandard input) is not (?:from )?a (?:terminal|TTY|tty)"  # vim, nano, docker
    r"|Vim: Error reading input, exiting"  # all that is left of vim's complaints where it could clear the screen
    r"|the input device is not a TTY"  # docker
    r"|a terminal is required"  # sudo
    r"|/dev/tty: No such device or address"
    r"|open /dev/tty\b"
)
_UNREACHED = re.compile(
    r"\(from versions: none\)"  # pip
    r"|[Cc]ould not resolve (?:host|proxy)"  # curl, git, ssh, conda
    r"|Could not resolve '|Temporary failure resolving"  # apt
    r"|(?:Temporary failure in|failed) name resolution|Name or service not known"  # whatever asks the C library
    r"|[Ff]ailed to lookup address information|dns error:"  # uv, cargo and what else is written in Rust
    r"|No address associated with hostname"
    r"|unable to resolve host|bad address '"  # wget
    r"|\b(?:EAI_AGAIN|ENOTFOUND)\b"  # npm, yarn
    r"|dial tcp: lookup "  # whatever is written in Go
    r"|CONNECTION FAILED for url"  # conda
    r"|All attempts to connect to \S+ failed"  # poetry
    r"|no servers could be reached"  # dig, nslookup
    r"|Network is unreachable"
)
_WORDS: tuple[str, ...] = (
    *("esol", "versions: none", "EAI_AGAIN", "ENOTFOUND", "nreachable", "not known", "CONNECTION", "connect to"),
    *("address", "dial tcp", "servers", "dns error"),
)
"""One of them is in everything that is looked for: finding none is much faster."""
_COMPLAINT = re.compile(
    r"^[\s│├└╰─▶]*"
    r"(?:[\w./+-]+: |ERROR: |error: |[EW]: |Err:|npm (?:ERR!|error) |yarn error |\[nltk_data\] Error |CondaHTTPError"
    r"|Caused by|dns error: |Temporary failure resolving|Could not resolve '|;; )"
)
"""How a program's line begins that says what went wrong."""


def failure_hint(text: str) -> str | None:
    """Say what to do instead, if a program that failed has said in `text` why, and it is one of these reasons."""
    if wants_processes(text):
        return PROCESS_HINT
    if _REFUSALS.search(text) is not None:
        return TERMINAL_HINT
    return NETWORK_HINT if _UNREACHED.search(text) is not None else None


def cell_hint(outcome: Outcome) -> str | None:
    """Say what to do instead, if a cell failed, or a program in it, for a reason that a sandbox gives."""
    end = outcome.output[-LOOKED_AT:]
    if outcome.success:
        return NETWORK_HINT if end and _complains(end) else None
    if outcome.cause is not None:
        return None
    traceback = outcome.traceback or ""
    if len(traceback) > 2 * _TRACEBACK:
        traceback = traceback[:_TRACEBACK] + traceback[-_TRACEBACK:]
    return failure_hint("\n".join((end, traceback, outcome.error or "")))


def _complains(text: str) -> bool:
    if not any(word in text for word in _WORDS):
        return False
    return any(_UNREACHED.search(line) and _COMPLAINT.match(line) for line in text.split("\n"))
