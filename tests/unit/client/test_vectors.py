"""The core has the conversations of `tests/vectors`, as the JavaScript client's core has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.client import errors
from kernelbridge.client.core import Core, Effect, Frame, Happened, Kind, Request, Settled
from kernelbridge.client.errors import ClientError, ConnectionLost

FOLDER = Path(__file__).parents[2] / "vectors"
CONVERSATIONS: dict[str, dict[str, Any]] = {
    conversation["name"]: conversation
    for path in sorted(FOLDER.glob("*.json"))
    for conversation in json.loads(path.read_text(encoding="utf-8"))["conversations"]
}


class Conversation:
    """A core, and the names of its requests."""

    def __init__(self) -> None:
        self.core = Core("me")
        self.requests: dict[str, Request] = {}
        self.ids: dict[str, str] = {}

    def play(self, conversation: dict[str, Any]) -> None:
        if "after" in conversation:
            self.play(CONVERSATIONS[conversation["after"]])
        for step in conversation["steps"]:
            self.step(step)

    def step(self, step: dict[str, Any]) -> None:  # noqa: C901, PLR0912 - one branch for each kind of step
        match step:
            case {"use": session, "options": options, "ownLinger": own}:
                self.core.use(session, options, own_linger=own)
            case {"leave": session}:
                self.core.leave(session)
            case {"submit": frame, "kind": kind, "error": name}:
                with pytest.raises(getattr(errors, name)):
                    self.core.submit(self.filled(frame), Kind(kind))
            case {"submit": frame, "kind": kind, "as": name}:
                self.requests[name] = request = self.core.submit(self.filled(frame), Kind(kind))
                self.ids[name] = request.id
            case {"takes": frames}:
                taken = []
                while (found := self.core.take()) is not None:
                    taken.append(found)
                assert len(taken) == len(frames), taken
                for found, frame in zip(taken, frames, strict=True):
                    self.compare(found, frame)
            case {"takesOne": frame}:
                found = self.core.take()
                assert found is not None
                self.compare(found, frame)
            case {"receive": frame}:
                received = self.filled(frame)
                self.effects(self.core.receive(received), step, received)
            case {"up": True}:
                self.core.link_up()
            case {"down": why}:
                self.effects(self.core.link_down(why), step)
            case {"giveUp": summary, "why": why}:
                self.effects(self.core.give_up(ConnectionLost(summary, why), why), step)
            case {"abandon": name}:
                self.core.abandon(self.requests[name])
            case {"notify": name, "frame": frame, "sent": sent}:
                assert self.core.notify(self.requests[name], frame) is sent
            case {"reply": name, "inputId": input_id, "value": value}:
                self.core.answer_question(self.requests[name], input_id, value)
            case {"idle": idle}:
                assert self.core.idle is idle
            case {"sessions": number}:
                assert len(self.core._sessions) == number
            case _:
                raise AssertionError(step)

    def filled(self, frame: Any) -> Any:
        """Put ids in the place of names."""
        if isinstance(frame, dict):
            return {field: self.filled(value) for field, value in frame.items()}
        if isinstance(frame, list):
            return [self.filled(value) for value in frame]
        return self.ids[frame[1:]] if isinstance(frame, str) and frame.startswith("$") else frame

    def compare(self, found: Frame, expected: Frame) -> None:
        """Compare what is expected of a frame that was taken, and name it if its name is new."""
        name = expected.get("requestId", "$")[1:]
        if name and name not in self.ids:
            self.ids[name] = found["requestId"]
        for field, value in self.filled(expected).items():
            assert found.get(field) == value, found

    def effects(self, found: list[Effect], step: dict[str, Any], received: Frame | None = None) -> None:
        expected = step.get("effects", [])
        assert len(found) == len(expected), found
        for effect, each in zip(found, expected, strict=True):
            match effect:
                case Happened(request, frame):
                    assert (request, frame) == (self.requests[each["happened"]], received)
                case Settled(request, outcome):
                    assert request is self.requests[each["settled"]]
                    self.outcome(outcome, each, received)

    def outcome(self, outcome: Frame | ClientError, expected: dict[str, Any], received: Frame | None) -> None:
        if "error" not in expected:
            assert outcome == received
            return
        assert type(outcome).__name__ == expected["error"]
        assert expected.get("says", "") in str(outcome)
        names = {"sessionId": "session_id"}
        for field in expected.keys() - {"settled", "error", "says"}:
            assert getattr(outcome, names.get(field, field)) == expected[field]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_goes_as_it_is_written(name: str) -> None:
    Conversation().play(CONVERSATIONS[name])
