"""One entry of the audit log as a line of JSON; pure.

A line is printable ASCII, whatever a client has put into a name or path: no text can begin a line of its own, or move
the cursor of the terminal on which somebody reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

MOST_TEXT = 1024
"""Bytes of a field in the line, in which a character that is not ASCII has six or twelve."""
MOST_CODE = 64 << 10
"""The same of the code of a cell or command, with `--audit-code`."""
COST = 1000
"""Bytes that an entry takes while it waits, besides its code."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened."""

    at: float
    """Seconds since the epoch."""
    event: str
    fields: Mapping[str, object]
    """Texts, numbers and bools; `None` is left out."""
    code: str | None = None
    """The code of a cell or command. Its hash and its size are written and, if the log has code, its beginning."""

    @property
    def cost(self) -> int:
        """Bytes that it takes while it waits, about."""
        return COST + sum(len(text) for text in (*self.fields.values(), self.code) if isinstance(text, str))


_ESCAPED = re.compile(r"(?:[^\\]|\\[^u]|\\u[0-9a-f]{4})*")


def line(entry: Entry, *, with_code: bool) -> bytes:
    """Return the line of an entry, with its line feed."""
    at = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found: dict[str, object] = {"time": at, "event": entry.event}
    found.update((name, _cut(value, MOST_TEXT)) for name, value in entry.fields.items() if value is not None)
    if entry.code is not None:
        content = entry.code.encode("utf-8", "surrogatepass")
        found.update(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        if with_code:
            found["code"] = _cut(entry.code, MOST_CODE)
    return json.dumps(found, separators=(",", ":")).encode("ascii") + b"\n"


def _cut(value: object, most: int) -> object:
    """Return a value whose text has at most `most` bytes in the line, and says how many characters more there were."""
    if not isinstance(value, str):
        return value
    escaped = json.dumps(value[: most + 1])[1:-1]  # a character has at least one byte
    if len(escaped) <= most:
        return value
    whole = _ESCAPED.match(escaped, 0, most)
    kept: str = json.loads(f'"{whole[0] if whole else ""}"')
    if "\ud800" <= kept[-1:] <= "\udbff":  # half a character
        kept = kept[:-1]
    return f"{kept}… ({len(value) - len(kept)} more)"
