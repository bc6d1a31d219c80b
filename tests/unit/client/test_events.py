"""The events in the frames of a run."""

from typing import Any

import pytest

from kernelbridge.client.events import Cleared, Display, Event, Output, Started, event_of
from kernelbridge.client.results import Bundle


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ({"type": "execution_started", "executionCount": 3, "requestId": "r"}, Started(3, "r")),
        ({"type": "execution_started"}, Started(None, "")),
        ({"type": "execution_output", "text": "t", "stream": "stderr"}, Output("t", "stderr", 0)),
        ({"type": "execution_output", "text": "t", "stream": "stdout", "leftOut": 5}, Output("t", "stdout", 5)),
        ({"type": "terminal_chunk", "text": "t", "leftOut": 5}, Output("t", "terminal", 5)),
        ({"type": "display_data", "data": {"a": 1}, "metadata": {}}, Display(Bundle({"a": 1}, {}, is_result=False))),
        (
            {"type": "display_data", "data": {}, "metadata": {"m": 1}, "result": True, "displayId": "d", "leftOut": 5},
            Display(Bundle({}, {"m": 1}, is_result=True), "d", updates=False, left_out=5),
        ),
        (
            {"type": "update_display_data", "data": {}, "metadata": {}, "displayId": "d"},
            Display(Bundle({}, {}, is_result=False), "d", updates=True),
        ),
        ({"type": "clear_output", "wait": True}, Cleared(wait=True)),
        ({"type": "clear_output", "wait": False}, Cleared(wait=False)),
        ({"type": "pong"}, None),
    ],
)
def test_a_frame_is_read(frame: dict[str, Any], event: Event | None) -> None:
    assert event_of(frame) == event
