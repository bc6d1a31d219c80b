"""The events of an execution while it runs (pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Started:
    """The kernel has begun to run it."""

    execution_count: int | None


@dataclass(frozen=True, slots=True)
class Wrote:
    """Text on a stream, as written."""

    stream: str
    """`stdout` or `stderr`."""
    text: str


@dataclass(frozen=True, slots=True)
class Displayed:
    """A result or display."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None
    result: bool
    """Whether it is the value of the last expression."""
    size: int
    """Bytes of the kernel's message."""


@dataclass(frozen=True, slots=True)
class Updated:
    """The content of a display has changed."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str
    size: int
    """Bytes of the kernel's message."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """The output so far is removed; with `wait`, when the next output arrives."""

    wait: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """It waits for a line of input."""

    prompt: str
    password: bool
    input_id: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """It waits no more for the line of input that it has asked for last."""


CellEvent = Started | Wrote | Displayed | Updated | Cleared | Asked | GivenUp

Listener = Callable[[CellEvent], None]
"""Called from the event loop with each event in order, before the execution's `done`. It must not raise or block."""
