"""What all messages have in common."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

PROTOCOL_VERSION = "1.0"

SessionId = Annotated[
    str,
    Meta(
        # The trailing look-ahead: in Python `$` also matches before a final newline.
        pattern=r"^[A-Za-z0-9._-]{1,128}$(?!\n)",
        description="1-128 characters of letters, digits, '.', '_', '-'",
    ),
]
RequestId = Annotated[str, Meta(max_length=256, description="Echoed in every answer that the request causes")]
Seconds = Annotated[float, Meta(gt=0, le=7 * 86400, description="Seconds, more than 0 and at most a week")]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]

Cause = Literal[
    "interrupted",
    "timeout",
    "kernel_died",
    "kernel_restarted",
    "out_of_memory",
    "session_closed",
    "sandbox_lost",
    "shell_exited",
    "process_limit",
    "disk_limit",
]
"""Why a run was ended before it finished; `out_of_memory` also if a process that it started was killed."""


def timestamp(at: float | None = None) -> str:
    """Return a time (`at` seconds since the epoch, or now) in UTC as RFC 3339 with `Z` and milliseconds."""
    time = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Message(Struct, frozen=True, rename="camel", tag_field="type"):
    """A frame: a JSON object whose `type` says which message it is."""


class Request(Message, frozen=True, forbid_unknown_fields=True):
    """A frame that a client sends. `codec.reading` warns about unknown fields."""


Warnings = list[str]
"""In an answer: a sentence for each unknown field of its request."""


class Reply(Message, frozen=True, kw_only=True):
    """The answer to one request of a session."""

    session_id: str
    request_id: str | UnsetType = UNSET
    """That of the request, if it had one."""
    warnings: Warnings | UnsetType = UNSET


class Event(Message, frozen=True, kw_only=True):
    """Something that happened in a session."""

    session_id: str
    request_id: str | UnsetType = UNSET
    """That of the request that caused it, if it had one."""
    seq: int
    """Grows with every event of the session."""


class Truncated(Struct, frozen=True, rename="camel"):
    """What a bounded answer left out."""

    bytes: int
    """How many bytes of `output` were left out."""
    kept: str
    """Which part of `output` is in the message."""
    at: int
    """Position in `output`, in characters, where they are missing."""
    stdout: int | UnsetType = UNSET
    """Bytes left out of `stdout`."""
    stderr: int | UnsetType = UNSET
    """Bytes left out of `stderr`."""
    results: int | UnsetType = UNSET
    """Bytes left out of `results`."""
    file: str | UnsetType = UNSET
    """The workspace file with all of `output`; read it with `read_file`."""
    file_complete: bool | UnsetType = UNSET
    """False if `file` ends early, because it reached its limit or the disk was full."""
    events: int | UnsetType = UNSET
    """Bytes that were left out of this run's events, because the client read too slowly."""
