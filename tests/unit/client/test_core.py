"""Any order of sending, losing, finishing and closing: every run is sent at most once and settled exactly once.

What the core does with each frame is in `tests/vectors`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.client.core import Core, Effect, Frame, Kind, Request, Settled
from kernelbridge.client.errors import ClientError, OutcomeUnknown, SessionLost

CELL = {"type": "execute_code", "sessionId": "s", "code": "1"}
LOST = {"from": 2, "to": 9}


class SmallServer:
    """A server that may lose anything but what it says."""

    def __init__(self) -> None:
        self.life = 0
        self.seq = 0
        self.seen: list[str] = []
        self.waiting: list[str] = []
        self.kept: list[tuple[int, str]] = []
        self.followed = False

    def result(self, request_id: str, seq: int) -> Frame:
        return {"type": "execution_result", "sessionId": "s", "requestId": request_id, "seq": seq, "success": True}

    def handle(self, frame: Frame) -> list[Frame]:
        ids = {"sessionId": "s", "requestId": frame["requestId"]}
        if frame["type"] == "open_session":
            self.life = self.life or 1
            return [{"type": "session_ready", **ids, "created": str(self.life), "lastSeq": self.seq}]
        if frame["type"] == "resume":
            self.followed = True
            kept = [(seq, each) for seq, each in self.kept if seq > frame["after"]]
            unknown = set(frame["requestIds"]) - set(self.waiting) - {each for _, each in kept}
            answer = {"type": "resumed", **ids, "created": str(self.life), "unknownRequests": sorted(unknown)}
            return [answer, *(self.result(each, seq) for seq, each in kept)]
        assert frame["requestId"] not in self.seen, "sent twice"
        self.seen.append(frame["requestId"])
        self.waiting.append(frame["requestId"])
        return []

    def finish(self) -> list[Frame]:
        if not self.waiting:
            return []
        self.seq += 1
        self.kept.append((self.seq, self.waiting.pop(0)))
        return [self.result(self.kept[-1][1], self.seq)]

    def forget(self) -> None:
        self.kept.clear()

    def close(self) -> None:
        self.life, self.seq = self.life + 1, 0
        self.waiting.clear()
        self.kept.clear()


class Play:
    """A client and a server, and what is between them; each method is a step."""

    def __init__(self) -> None:
        self.core, self.server = Core("me"), SmallServer()
        self.core.use("s", {}, own_linger=True)
        self.up = False
        self.to_client: list[Frame] = []
        self.runs: list[Request] = []
        self.settled: dict[str, Frame | ClientError] = {}

    def note(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Settled):
                assert effect.request.id not in self.settled
                self.settled[effect.request.id] = effect.outcome

    def run(self) -> None:
        with contextlib.suppress(SessionLost):
            self.runs.append(self.core.submit(CELL, Kind.RUN))

    def send(self) -> None:
        if self.up and (frame := self.core.take()) is not None:
            self.to_client.extend(self.server.handle(frame))

    def deliver(self) -> None:
        if self.up and self.to_client:
            self.note(self.core.receive(self.to_client.pop(0)))

    def finish(self) -> None:
        answers = self.server.finish()
        self.to_client.extend(answers if self.up else [])

    def cut(self) -> None:
        if self.up:
            self.up = self.server.followed = False
            self.to_client.clear()
            self.core.take()  # it is written into the broken connection
            self.note(self.core.link_down("cut"))

    def connect(self) -> None:
        if not self.up:
            self.up = True
            self.core.link_up()

    def forget(self) -> None:
        self.server.forget()

    def overflow(self) -> None:
        """The journal drops what it has, also what a follower has not read."""
        if self.up and self.server.followed:
            self.server.forget()
            self.to_client = [frame for frame in self.to_client if frame["type"] != "execution_result"]
            self.to_client.append({"type": "resumed", "sessionId": "s", "created": str(self.server.life), "lost": LOST})

    def close(self) -> None:
        if not self.up:
            self.server.close()


STEPS = st.sampled_from(
    [Play.run, Play.send, Play.deliver, Play.finish, Play.cut, Play.connect, Play.forget, Play.overflow, Play.close]
)


@given(st.lists(STEPS, max_size=60))
def test_every_run_is_sent_at_most_once_and_settled_exactly_once(steps: list[Callable[[Play], None]]) -> None:
    play = Play()
    for step in steps:
        step(play)
    play.connect()  # in the end everything works
    for _ in range(5 * len(steps) + 10):
        for step in (Play.send, Play.deliver, Play.finish):
            step(play)
    assert play.core.idle
    assert play.settled.keys() == {run.id for run in play.runs}
    for run in play.runs:
        match play.settled[run.id]:
            case SessionLost():
                assert run.id not in play.server.seen
            case OutcomeUnknown():
                pass
            case answer:
                assert isinstance(answer, dict)
                assert run.id in play.server.seen
