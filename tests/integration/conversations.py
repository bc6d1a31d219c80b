"""Conversations in the documentation: what a client sends, and the frames that must come next.

    ```conversation
    → {"type": "ping", "requestId": "1"}
    ← {"type": "pong", "timestamp": "…", "requestId": "1"}
    ```

In an expected frame `…` inside a string stands for any text, the numbers in `VOLATILE` only have to be numbers, and a
last member `"…": "…"` says that further members may follow. A line that begins with a space continues the frame above
it. Lines that begin with `#` are for the reader.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOLATILE = frozenset({"seq", "durationMs", "cpuMs", "modified", "executionCount", "size", "from", "to", "lastSeq"})
"""Members whose numbers differ from run to run."""
ANY = "…"

_BLOCK = re.compile(r"^```conversation\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """One block of a page."""

    page: str
    line: int
    steps: tuple[tuple[str, dict[str, Any]], ...]
    """`→` and what is sent, or `←` and what must come."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def conversations(directory: Path) -> Iterator[Conversation]:
    """Give every conversation in the pages of a directory."""
    for page in sorted(directory.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for found in _BLOCK.finditer(text):
            body = found["body"].replace("\n ", " ")
            lines = [line for line in body.splitlines() if line and not line.startswith("#")]
            line = text.count("\n", 0, found.start()) + 1
            steps = tuple((line[0], json.loads(line[1:])) for line in lines)
            assert all(mark in "→←" for mark, _ in steps), f"{page.name}:{line}"
            yield Conversation(page.name, line, steps)


def mismatch(expected: Any, found: Any, where: str = "") -> str | None:
    """Say where a frame is not what was expected, or None."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return _members(expected, found, where)
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{where} has {len(found)} items and not {len(expected)}"
        pairs = enumerate(zip(expected, found, strict=True))
        return next((bad for at, pair in pairs if (bad := mismatch(*pair, f"{where}[{at}]"))), None)
    if isinstance(expected, str) and isinstance(found, str) and ANY in expected:
        pattern = ".*".join(map(re.escape, expected.split(ANY)))
        return None if re.fullmatch(pattern, found, re.DOTALL) else f"{where} is {found!r} and not {expected!r}"
    return None if type(expected) is type(found) and expected == found else f"{where} is {found!r} and not {expected!r}"


def _members(expected: dict[str, Any], found: dict[str, Any], where: str) -> str | None:
    named = {key: value for key, value in expected.items() if key != ANY}
    if missing := named.keys() - found.keys():
        return f"{where} lacks {sorted(missing)}"
    if ANY not in expected and (more := found.keys() - named.keys()):
        return f"{where} also has {sorted(more)}"
    for key, value in named.items():
        inside = f"{where}.{key}"
        if key in VOLATILE and isinstance(value, int | float):
            bad = None if isinstance(found[key], int | float) else f"{inside} is no number"
        else:
            bad = mismatch(value, found[key], inside)
        if bad:
            return bad
    return None


@dataclass(frozen=True)
class Curls:
    """A block of commands that all call curl."""

    page: str
    line: int
    steps: tuple[tuple[str, str], ...]
    """Command, and what it prints, where `…` stands for anything; empty if that is not shown."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


_CONSOLE = re.compile(r"^```console\n(?P<body>\$ curl .*?)^```$", re.MULTILINE | re.DOTALL)


def curls(directory: Path) -> Iterator[Curls]:
    """Give every block of curl commands in the pages of a directory."""
    for page in sorted(directory.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for found in _CONSOLE.finditer(text):
            body = found["body"].replace("\\\n", "")
            parts = [part.partition("\n") for part in ("\n" + body).split("\n$ ")[1:]]
            if all(command.startswith("curl ") for command, _, _ in parts):
                line = text.count("\n", 0, found.start()) + 1
                yield Curls(page.name, line, tuple((command, shown.strip()) for command, _, shown in parts))
