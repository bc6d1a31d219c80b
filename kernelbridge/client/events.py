"""What happens while a run is streamed, as its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernelbridge.client.results import Bundle


@dataclass(frozen=True)
class Started:
    """The cell has begun."""

    execution_count: int | None
    run_id: str = ""
    """Its `requestId`: `interrupt(run_id=…)` reaches this cell and no other."""


@dataclass(frozen=True)
class Output:
    """The run wrote text."""

    text: str
    """As written, with escape sequences and carriage returns."""
    stream: str
    """`stdout` or `stderr`; of a command `terminal`."""
    left_out: int = 0
    """Bytes of events that are missing before this one, because they were read too slowly. The result is complete."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Display:
    """The cell shows something, or its last expression has a value, or something that is shown changes."""

    bundle: Bundle
    display_id: str | None = None
    updates: bool = False
    """Whether it replaces what `display_id` shows already."""
    left_out: int = 0
    """As of `Output`."""


@dataclass(frozen=True)
class Cleared:
    """Remove what the cell has shown; with `wait`, when its next output comes."""

    wait: bool


Event = Started | Output | Display | Cleared


def event_of(frame: Mapping[str, Any]) -> Event | None:
    """Return the event in a frame, or None for a frame that is none of a run's output."""
    match frame["type"]:
        case "execution_started":
            return Started(frame.get("executionCount"), frame.get("requestId", ""))
        case "execution_output":
            return Output(frame["text"], frame["stream"], frame.get("leftOut", 0))
        case "terminal_chunk":
            return Output(frame["text"], "terminal", frame.get("leftOut", 0))
        case "display_data" | "update_display_data":
            bundle = Bundle(frame["data"], frame["metadata"], bool(frame.get("result")))
            updates = frame["type"] == "update_display_data"
            return Display(bundle, frame.get("displayId"), updates, frame.get("leftOut", 0))
        case "clear_output":
            return Cleared(frame["wait"])
    return None
