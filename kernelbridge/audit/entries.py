"""One entry of the audit log as a line of JSON; pure.

A line is printable ASCII, whatever a client has put into a name or path: no text can begin a line of its own, or move
the cursor of the terminal on which somebody reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

MOST_TEXT = 4096
"""Characters of a field: as many as a path may have."""
MOST_CODE = 64 << 10
"""Characters of the code of a cell or command, with `--audit-code`."""
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
        return COST + (0 if self.code is None else len(self.code))


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
    """Return a value whose text has at most `most` characters, and says how many more there were."""
    if not isinstance(value, str) or len(value) <= most:
        return value
    return f"{value[:most]}… ({len(value) - most} more)"
