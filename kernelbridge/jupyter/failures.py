"""Errors of cells as plain text (pure)."""

from __future__ import annotations

import re
from collections.abc import Generator

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import BoundedText
from kernelbridge.terminal_text import strip_ansi, stripped

_MESSAGE_LIMIT = 4096  # characters of `error`; the traceback has the rest
_READ = 1 << 16  # characters of a name or message that are read
_SYNTAX_ERRORS = frozenset({"SyntaxError", "IndentationError", "TabError", "_IncompleteInputError"})
_NO_PROCESS = re.compile(
    r"fork: (?:retry: )?Resource temporarily unavailable"  # bash, git, perl, make
    r"|[Cc]annot fork|[Cc]an't fork|unable to fork"  # dash, busybox
    r"|[Cc]an't start new thread|BlockingIOError: \[Errno 11\]"  # python
    r"|Resource temporarily unavailable \(src/thread"  # ZeroMQ
    r"|(?:pthread_create|[Tt]hread|fork)\b.{,80}Resource temporarily unavailable"
)
_PLACE = re.compile(r" \([^()\n]*, line \d+\)$")


def describe(failure: wire.Failure, *, default: str = "Error") -> str:
    """Return `<Name>: <message>` on one line, or `default` if the kernel sent neither."""
    if not failure.ename and not failure.evalue:
        return default
    name = " ".join(strip_ansi((failure.ename or "Error")[:_READ]).split())
    message = strip_ansi((failure.evalue or "")[:_READ])
    if name in _SYNTAX_ERRORS:
        message = _PLACE.sub("", message)
    message = " ".join(part.strip() for part in message.splitlines() if part.strip())
    text = f"{name}: {message}" if message else name
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"


def wants_processes(text: str) -> bool:
    """Return whether a program reports in the text that it cannot start a process or thread."""
    return _NO_PROCESS.search(text) is not None


def failure_text(failure: wire.Failure, traceback: str) -> str:
    """Return the traceback, or the line of the error if there is none, as lines of a terminal."""
    return (traceback or describe(failure)).rstrip("\n") + "\n"


def plain_traceback(lines: list[str], limit: int) -> Generator[None, None, str]:
    """Return the lines of a traceback as plain text of at most `limit` bytes; yields often."""
    kept = BoundedText(limit)
    for number, line in enumerate(lines):
        if number:
            kept.append("\n")
        for part in stripped(line):
            kept.append(part)
            yield
    return kept.text()
