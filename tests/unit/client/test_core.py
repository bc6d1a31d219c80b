"""What becomes of requests over any number of connections, without a connection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.client.core import Core, Effect, Frame, Happened, Kind, Request, Settled
from kernelbridge.client.errors import (
    ClientError,
    ConnectionLost,
    OutcomeUnknown,
    RequestRefused,
    SessionLost,
)

CELL = {"type": "execute_code", "sessionId": "s", "code": "1"}
COMMAND = {"type": "terminal_command", "sessionId": "s", "command": "ls"}
SAVE = {"type": "save_file", "sessionId": "s", "filename": "f", "content": ""}
LIST = {"type": "list_files", "sessionId": "s"}
TERMINAL = {"type": "open_terminal", "sessionId": "s", "terminalId": "t"}


def taken(core: Core) -> list[Frame]:
    frames = []
    while (frame := core.take()) is not None:
        frames.append(frame)
    return frames


def kinds(frames: list[Frame]) -> list[str]:
    return [frame["type"] for frame in frames]


def ready(request: Frame, created: str = "then", seq: int = 1) -> Frame:
    ids = {"sessionId": request["sessionId"], "requestId": request["requestId"]}
    return {"type": "session_ready", **ids, "created": created, "lastSeq": seq}


def resumed(request: Frame, created: str = "then", **more: Any) -> Frame:
    ids = {"sessionId": request["sessionId"], "requestId": request["requestId"]}
    return {"type": "resumed", **ids, "created": created, **more}


def result(request: Request, **more: Any) -> Frame:
    return {"type": "execution_result", "sessionId": "s", "requestId": request.id, "success": True, **more}


def error(request: Frame, code: str, message: str = "It failed") -> Frame:
    ids = {"sessionId": request["sessionId"], "requestId": request["requestId"]}
    return {"type": "error", **ids, "message": message, "error": "because", "code": code, "retryable": False}


def outcomes(effects: list[Effect]) -> dict[str, Frame | ClientError]:
    return {effect.request.id: effect.outcome for effect in effects if isinstance(effect, Settled)}


@pytest.fixture
def core() -> Core:
    made = Core("me")
    made.use("s", {"linger": 180}, own_linger=True)
    return made


@pytest.fixture
def open_core(core: Core) -> Core:
    """A core whose session is open."""
    core.link_up()
    core.submit(LIST, Kind.QUESTION)
    core.receive(ready(taken(core)[0]))
    [asked] = taken(core)
    core.receive({"type": "file_list", "sessionId": "s", "requestId": asked["requestId"], "files": []})
    assert core.idle
    return core


def test_a_session_is_opened_once_before_its_first_requests(core: Core) -> None:
    first, second = core.submit(CELL, Kind.RUN), core.submit(COMMAND, Kind.RUN)
    assert taken(core) == []
    core.link_up()
    [opening] = taken(core)
    assert (opening["type"], opening["linger"]) == ("open_session", 180)
    assert core.receive(ready(opening)) == []
    assert taken(core) == [first.frame, second.frame]
    core.submit(LIST, Kind.QUESTION)
    assert kinds(taken(core)) == ["list_files"]


def test_answers_go_to_their_requests_and_those_of_others_to_nobody(open_core: Core) -> None:
    run = open_core.submit(CELL, Kind.RUN)
    taken(open_core)
    event = {"type": "execution_output", "sessionId": "s", "requestId": run.id, "text": "x", "seq": 2}
    assert open_core.receive(event) == [Happened(run, event)]
    assert open_core.receive({**event, "requestId": "another client's"}) == []
    assert open_core.receive(result(run)) == [Settled(run, result(run))]
    assert open_core.receive(result(run)) == []


def test_what_was_sent_is_asked_for_and_what_was_not_is_sent(open_core: Core) -> None:
    sent = open_core.submit(CELL, Kind.RUN)
    taken(open_core)
    unsent = open_core.submit(CELL, Kind.RUN)
    open_core.receive({"type": "execution_started", "sessionId": "s", "requestId": sent.id, "seq": 7})
    assert open_core.link_down("cut") == []
    later = open_core.submit(CELL, Kind.RUN)
    open_core.link_up()
    [resume] = taken(open_core)
    assert (resume["type"], resume["after"], resume["requestIds"]) == ("resume", 7, [sent.id])
    open_core.receive(resumed(resume))
    assert taken(open_core) == [unsent.frame, later.frame]
    assert outcomes(open_core.receive(result(sent, seq=8))) == {sent.id: result(sent, seq=8)}


@pytest.mark.parametrize("with_request_id", [True, False])
def test_what_the_server_does_not_know_is_unknown(open_core: Core, with_request_id: bool) -> None:  # noqa: FBT001
    run, save, other = (
        open_core.submit(frame, kind) for frame, kind in ((CELL, Kind.RUN), (SAVE, Kind.CHANGE), (CELL, Kind.RUN))
    )
    taken(open_core)
    assert open_core.link_down("cut") == []
    open_core.link_up()
    [resume] = taken(open_core)
    answer = resumed(resume, unknownRequests=[run.id, save.id])
    if not with_request_id:  # one that comes later, among the frames
        open_core.receive(resumed(resume))
        del answer["requestId"]
    found = outcomes(open_core.receive(answer))
    assert found.keys() == {run.id, save.id}
    for each in found.values():
        assert isinstance(each, OutcomeUnknown)
        assert "may have run" in str(each)
    assert outcomes(open_core.receive(result(other))) == {other.id: result(other)}


LOST = {"from": 2, "to": 9}


def test_what_was_sent_since_is_asked_for_when_answers_fall_out_of_the_journal(open_core: Core) -> None:
    open_core.link_down("cut")
    open_core.link_up()
    [resume] = taken(open_core)
    open_core.receive(resumed(resume))
    run, listing, gone = (
        open_core.submit(frame, kind) for frame, kind in ((CELL, Kind.RUN), (LIST, Kind.QUESTION), (CELL, Kind.RUN))
    )
    terminal = open_core.submit(TERMINAL, Kind.TERMINAL)
    taken(open_core)
    later = {"type": "resumed", "sessionId": "s", "created": "then", "lost": LOST}
    assert open_core.receive({"type": "execution_output", "sessionId": "s", "requestId": run.id, "seq": 3})
    open_core.receive(later)
    open_core.receive(later)
    [again] = taken(open_core)
    assert (again["type"], again["after"]) == ("resume", 3)
    assert again["requestIds"] == [run.id, listing.id, gone.id]
    event = {"type": "execution_output", "sessionId": "s", "requestId": run.id, "seq": 10}
    assert open_core.receive(event) == [Happened(run, event)]
    found = outcomes(open_core.receive(resumed(again, unknownRequests=[listing.id, gone.id])))
    assert found.keys() == {gone.id}
    assert isinstance(found[gone.id], OutcomeUnknown)
    assert taken(open_core) == [listing.frame], "it changes nothing, so it is asked again"
    assert open_core.receive(event) == [], "it has come already"
    assert open_core.receive({**event, "seq": 11}) == [Happened(run, {**event, "seq": 11})]
    assert outcomes(open_core.receive(result(run, seq=12))) == {run.id: result(run, seq=12)}
    assert not open_core.idle
    closed = {"type": "terminal_closed", "sessionId": "s", "requestId": terminal.id, "cause": "exited"}
    assert outcomes(open_core.receive(closed)) == {terminal.id: closed}


def test_nothing_is_asked_again_when_nothing_waits(open_core: Core) -> None:
    open_core.receive({"type": "resumed", "sessionId": "s", "created": "then", "lost": LOST})
    assert taken(open_core) == []


def test_a_question_is_asked_again_because_it_changes_nothing(open_core: Core) -> None:
    asked, run = open_core.submit(LIST, Kind.QUESTION), open_core.submit(CELL, Kind.RUN)
    assert open_core.take() == asked.frame
    assert open_core.link_down("cut") == []
    open_core.link_up()
    [resume] = taken(open_core)
    assert resume["requestIds"] == []
    open_core.receive(resumed(resume))
    assert taken(open_core) == [asked.frame, run.frame]


@pytest.mark.parametrize(
    "answer",
    [
        lambda resume: error(resume, "unknown_session"),
        lambda resume: resumed(resume, anew=True),
        lambda resume: resumed(resume, created="later"),
    ],
)
def test_a_session_that_is_gone_ends_what_it_had_and_is_opened_again(open_core: Core, answer: Any) -> None:
    sent = open_core.submit(CELL, Kind.RUN)
    taken(open_core)
    assert open_core.link_down("cut") == []
    unsent, files = open_core.submit(CELL, Kind.RUN), open_core.submit(LIST, Kind.QUESTION)
    open_core.link_up()
    [resume] = taken(open_core)
    found = outcomes(open_core.receive(answer(resume)))
    assert isinstance(found[sent.id], OutcomeUnknown)
    assert isinstance(found[unsent.id], SessionLost)
    [opening] = taken(open_core)
    open_core.receive(ready(opening, created="later"))
    assert taken(open_core) == [files.frame]
    assert open_core.submit(CELL, Kind.RUN).frame == taken(open_core)[0]


def test_the_loss_of_an_idle_session_is_told_once_to_the_first_that_relies_on_it(open_core: Core) -> None:
    assert open_core.link_down("cut") == []
    open_core.link_up()
    [resume] = taken(open_core)
    assert open_core.receive(error(resume, "unknown_session")) == []
    open_core.submit(LIST, Kind.QUESTION)
    with pytest.raises(SessionLost):
        open_core.submit(CELL, Kind.RUN)
    open_core.submit(CELL, Kind.RUN)
    assert kinds(taken(open_core)) == ["open_session"]


def test_a_session_that_this_client_closes_is_not_lost(open_core: Core) -> None:
    close = open_core.submit({"type": "close_session", "sessionId": "s"}, Kind.CHANGE)
    taken(open_core)
    open_core.receive({"type": "session_status", "sessionId": "s", "status": "closed", "detail": "", "seq": 9})
    open_core.receive({"type": "close_session_reply", "sessionId": "s", "requestId": close.id})
    open_core.submit(CELL, Kind.RUN)
    assert kinds(taken(open_core)) == ["open_session"]


def test_an_end_of_a_session_that_got_no_answer_is_unknown(open_core: Core) -> None:
    close = open_core.submit({"type": "close_session", "sessionId": "s"}, Kind.CHANGE)
    taken(open_core)
    open_core.link_down("cut")
    open_core.link_up()
    [resume] = taken(open_core)
    assert resume["requestIds"] == [close.id]
    found = outcomes(open_core.receive(error(resume, "unknown_session")))
    assert isinstance(found[close.id], OutcomeUnknown)


@pytest.mark.parametrize("kind", ["close_session", "session_info"])
def test_what_is_sent_behind_a_resume_is_not_settled_by_its_refusal(open_core: Core, kind: str) -> None:
    run = open_core.submit(CELL, Kind.RUN)
    taken(open_core)
    open_core.link_down("cut")
    held = open_core.submit({"type": kind, "sessionId": "s"}, Kind.CHANGE)
    open_core.link_up()
    [resume, sent] = taken(open_core)
    assert (resume["requestIds"], sent) == ([run.id], held.frame)
    assert outcomes(open_core.receive(error(resume, "unknown_session"))).keys() == {run.id}
    answer = {"type": f"{kind}_reply", "sessionId": "s", "requestId": held.id}
    assert outcomes(open_core.receive(answer)) == {held.id: answer}


def test_what_no_session_can_be_asked_for_is_unknown_at_once(open_core: Core) -> None:
    run = open_core.submit(CELL, Kind.RUN)
    other = open_core.submit({"type": "close_session", "sessionId": "another"}, Kind.CHANGE)
    taken(open_core)
    open_core.receive({"type": "session_status", "sessionId": "s", "status": "closed", "detail": "", "seq": 9})
    found = outcomes(open_core.link_down("cut"))
    assert found.keys() == {run.id, other.id}
    assert core_is_idle(open_core)


def core_is_idle(core: Core) -> bool:
    core.link_up()
    return core.idle and taken(core) == []


def test_a_session_that_was_left_is_not_resumed_unless_something_runs_in_it(open_core: Core) -> None:
    open_core.leave("s")
    run = open_core.submit(CELL, Kind.RUN)
    taken(open_core)
    open_core.link_down("cut")
    open_core.link_up()
    [resume] = taken(open_core)
    open_core.receive(resumed(resume))
    open_core.receive(result(run))
    open_core.link_down("cut")
    assert core_is_idle(open_core)


def test_a_refused_opening_ends_what_waits_for_it_and_is_tried_again(core: Core) -> None:
    core.link_up()
    for _ in range(2):
        run = core.submit(CELL, Kind.RUN)
        [opening] = taken(core)
        found = outcomes(core.receive(error(opening, "image_unusable")))[run.id]
        assert isinstance(found, RequestRefused)
        assert (found.code, found.request) == ("image_unusable", "execute_code")


def test_a_linger_that_the_server_does_not_grant_is_left_to_the_server(core: Core) -> None:
    core.link_up()
    run = core.submit(CELL, Kind.RUN)
    [opening] = taken(core)
    assert core.receive(error(opening, "invalid_field", "The field 'linger' is wrong")) == []
    [again] = taken(core)
    assert "linger" not in again
    core.receive(ready(again))
    assert taken(core) == [run.frame]


def test_a_terminal_is_attached_again(open_core: Core) -> None:
    terminal = open_core.submit(TERMINAL, Kind.TERMINAL)
    taken(open_core)
    open_core.receive({"type": "terminal_opened", "sessionId": "s", "requestId": terminal.id})
    assert open_core.notify(terminal, {"type": "terminal_input"})
    taken(open_core)
    assert open_core.link_down("cut") == []
    assert not open_core.notify(terminal, {"type": "terminal_input"})
    open_core.link_up()
    [resume] = taken(open_core)
    open_core.receive(resumed(resume))
    assert taken(open_core) == [terminal.frame]


def test_a_terminal_that_is_detached_for_reading_slowly_is_attached_again(open_core: Core) -> None:
    terminal = open_core.submit(TERMINAL, Kind.TERMINAL)
    taken(open_core)
    ids = {"sessionId": "s", "requestId": terminal.id}
    open_core.receive({"type": "terminal_opened", **ids})
    assert open_core.receive({"type": "terminal_closed", **ids, "cause": "too_slow"}) == []
    assert taken(open_core) == [terminal.frame]
    refused = error(terminal.frame, "terminal_failed")
    assert isinstance(outcomes(open_core.receive(refused))[terminal.id], RequestRefused)


def test_a_question_of_a_cell_is_asked_once_and_its_answer_sent_again(open_core: Core) -> None:
    run = open_core.submit({**CELL, "allowStdin": True}, Kind.RUN)
    taken(open_core)
    asked = {"type": "input_request", "sessionId": "s", "requestId": run.id, "inputId": "i", "seq": 3}
    assert open_core.receive(asked) == [Happened(run, asked)]
    open_core.answer_question(run, "another", "a late line")
    assert taken(open_core) == []
    open_core.answer_question(run, "i", "Ann")
    [reply] = taken(open_core)
    assert open_core.link_down("cut") == []
    open_core.link_up()
    [resume] = taken(open_core)
    open_core.receive(resumed(resume))
    [again] = taken(open_core)
    assert {**again, "requestId": ""} == {**reply, "requestId": ""}
    assert open_core.receive({**asked, "seq": 4}) == []
    without_id = {"type": "input_request", "sessionId": "s", "inputId": "another", "seq": 5}
    assert open_core.receive(without_id) == [Happened(run, without_id)]


def test_a_request_that_nobody_waits_for_is_interrupted_or_never_sent(open_core: Core) -> None:
    sent = open_core.submit(COMMAND, Kind.RUN)
    taken(open_core)
    unsent = open_core.submit(CELL, Kind.RUN)
    open_core.abandon(unsent)
    open_core.abandon(sent)
    [interrupt] = taken(open_core)
    assert (interrupt["type"], interrupt["target"], interrupt["runId"]) == ("interrupt", "terminal", sent.id)


def test_giving_up_says_of_each_request_what_is_known(core: Core) -> None:
    core.link_up()
    core.submit(CELL, Kind.RUN)
    core.receive(ready(taken(core)[0]))
    taken(core)
    core.link_down("cut")
    unsent = core.submit(CELL, Kind.RUN)
    found = outcomes(core.give_up(ConnectionLost("gone", "cut"), "cut"))
    assert [type(each) for each in found.values()] == [OutcomeUnknown, ConnectionLost]
    assert unsent.id in found
    assert core.idle
    core.link_up()
    assert kinds(taken(core)) == ["resume"]


def test_giving_up_while_connected_leaves_nothing_to_send(core: Core) -> None:
    core.link_up()
    run = core.submit(CELL, Kind.RUN)
    sessions = core.submit({"type": "list_sessions"}, Kind.CHANGE)
    found = outcomes([*core.link_down("no frame"), *core.give_up(ConnectionLost("gone", "cut"), "cut")])
    assert found.keys() == {run.id, sessions.id}
    assert not core.ready
    core.link_up()
    assert taken(core) == []
    core.submit(CELL, Kind.RUN)
    assert kinds(taken(core)) == ["open_session"], "it does not wait for an answer to the first one"


def test_sessions_that_were_left_and_closed_are_forgotten(core: Core) -> None:
    core.link_up()
    for number in range(3):
        name = f"tmp-{number}"
        core.use(name, {}, own_linger=True)
        core.submit({**CELL, "sessionId": name}, Kind.RUN)
        [opening] = taken(core)
        core.receive(ready(opening))
        [cell] = taken(core)
        core.receive({"type": "execution_result", "sessionId": name, "requestId": cell["requestId"]})
        close = core.submit({"type": "close_session", "sessionId": name}, Kind.CHANGE)
        taken(core)
        core.receive({"type": "close_session_reply", "sessionId": name, "requestId": close.id})
        core.leave(name)
    assert core._sessions.keys() == {"s"}


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
        for request_id, outcome in outcomes(effects).items():
            assert request_id not in self.settled
            self.settled[request_id] = outcome

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
