"""Summaries of the engine's output during a build or a pull, for people; pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from kernelbridge.errors import ImageError

Progress = Callable[[str], None]
"""Called with one line at a time, without a line end. Lines that begin with a blank are details of the one before."""


class Counted(str):
    """A line that says how far a build or a pull is."""

    __slots__ = ("done", "total", "what")

    def __new__(cls, line: str, what: str, done: int, total: int) -> Self:
        """`done` of `total` steps or layers of the image `what` are complete."""
        made = super().__new__(cls, line)
        made.what, made.done, made.total = what, done, total
        return made

    what: str
    done: int
    total: int


_STEP: Final = re.compile(r"Step (\d+)/(\d+) : (.+)")
_SHOWN: Final = re.compile(
    r"(Collecting \S+|Installing collected packages|Successfully installed|Building wheel for \S+|Fetched )"
)
_WIDTH: Final = 100
_KEPT_LINES: Final = 20
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_HINTS: Final = (
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|SSLError|self-signed certificate"),
        "a proxy seems to re-sign TLS: pass its certificate authority with --ca-bundle FILE",
    ),
    (
        re.compile(
            r"Temporary failure (in name resolution|resolving)|Name or service not known|Could not resolve|"
            r"NewConnectionError|Network is unreachable"
        ),
        "the build cannot reach the network: try --network host",
    ),
    (
        re.compile(r"DO NOT MATCH THE HASHES"),
        "the package index offered another file than the locked one: use PyPI or a mirror, and find out who changed it",
    ),
    (
        re.compile(r"Could not find a version .*\(from versions: (?!none\))"),
        "no wheel of the locked version fits: use PyPI or a full mirror, and --base with Python 3.11 to 3.14",
    ),
    (re.compile(r"No space left on device"), "free some disk space, for example with `docker system prune`"),
)


class BuildSummary:
    """Follows the decoded events of one build."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._step = ""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._partial = ""
        self.image_id: str | None = None
        """The id of the image, once it is built."""

    def feed(self, event: Mapping[str, Any]) -> list[str]:
        """Process one event; return the lines to show. Raises `ImageError` with the failed step and its last lines."""
        if "error" in event:
            self._take(self._partial)
            raise self._failure(str(event["error"]))
        if "aux" in event and "ID" in event["aux"]:
            self.image_id = str(event["aux"]["ID"])
        *lines, self._partial = (self._partial + str(event.get("stream", ""))).split("\n")
        return [shown for line in lines if (shown := self._take(line)) is not None]

    def _take(self, raw: str) -> str | None:
        line = _ANSI.sub("", raw).rstrip("\r").rpartition("\r")[2].rstrip()
        if not line:
            return None
        if step := _STEP.match(line):
            number, total, instruction = step.groups()
            instruction = one_line(instruction)
            self._step = f"step {number} of {total}, {instruction}"
            self._lines.clear()
            line = _shorten(f"{self._name} {number}/{total}: {instruction}")
            return Counted(line, self._name, int(number) - 1, int(total))
        self._lines.append(line)
        return _shorten(f"  {line.strip()}") if _SHOWN.match(line.strip()) else None

    def _failure(self, error: str) -> ImageError:
        output = "\n".join(self._lines)
        reason = one_line(error)
        if output:
            reason += f"\nits last lines:\n{output}"
        for pattern, hint in _HINTS:
            if pattern.search(output) or pattern.search(error):
                reason += f"\n{hint}"
        where = f" at {_shorten(self._step)}" if self._step else ""
        return ImageError(f"Building the {self._name} image failed{where}", reason)


class PullSummary:
    """Follows the decoded events of one pull, with a line for each layer that is complete."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._layers: set[str] = set()
        self._here: set[str] = set()

    def feed(self, event: Mapping[str, Any]) -> str | None:
        """Process one event; return the line to show, or None."""
        status, layer = event.get("status", ""), event.get("id")
        if layer is None or status.startswith("Pulling from"):
            return f"  {status}" if status.startswith(("Status:", "Digest:")) else None
        self._layers.add(layer)
        if status not in {"Pull complete", "Already exists"} or layer in self._here:
            return None
        self._here.add(layer)
        line = f"  {len(self._here)} of {len(self._layers)} layers of {self._reference}"
        return Counted(line, self._reference, len(self._here), len(self._layers))


def _shorten(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def one_line(text: str) -> str:
    """Return an engine's message on one line."""
    return " ".join(text.split())
