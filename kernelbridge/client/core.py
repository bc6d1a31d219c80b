"""The requests of one client, and what becomes of them over any number of connections; pure.

    submit ──▶ held ──▶ out ── take ──▶ (socket) ──▶ receive ──▶ Settled, Happened
                ▲        │
                └────────┴── link_down: what was not taken is held; what was taken is asked for, and never sent again
                             unless it changes nothing

A session is opened before its first request. After a lost connection it is resumed: the server sends what it kept, and
names the requests for which no answer follows. Those, and all requests of a session that was closed meanwhile, end
with `OutcomeUnknown`. The caller moves the frames; nothing here waits, reads a clock or touches a socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any

from kernelbridge.client.errors import ClientError, ConnectionLost, OutcomeUnknown, RequestRefused, SessionLost

Frame = dict[str, Any]

BREAKS = 3
"""How many connections may break over a request that is sent again: it may be why they do."""
UNBOUND = frozenset({"session_info", "list_sessions", "close_session"})
"""Requests that open no session."""


class Kind(Enum):
    """What a broken connection means for a request."""

    RUN = "run"
    """It needs the state of the session. Whether it still runs is known to the server."""
    CHANGE = "change"
    """It changes something. Its answer may be kept."""
    QUESTION = "question"
    """It changes nothing, so it is asked again."""
    TERMINAL = "terminal"
    """An interactive terminal: attached again by the same request."""


@dataclass(slots=True, eq=False)
class Request:
    """One request, until it is settled."""

    frame: Frame
    kind: Kind
    sent: bool = False
    breaks: int = 0
    """How many connections broke before its answer; of a terminal, before it was open."""
    attached: bool = False
    """Of a terminal: whether it was opened."""
    question: str | None = None
    """The `inputId` of the latest question that it asked."""
    reply: Frame | None = None
    """The answer to that question, once it was sent."""

    @property
    def id(self) -> str:
        """Its `requestId`."""
        return str(self.frame["requestId"])


@dataclass(frozen=True, slots=True)
class Settled:
    """A request has its answer, or the error that stands for it."""

    request: Request
    outcome: Frame | ClientError


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of a request."""

    request: Request
    frame: Frame


Effect = Settled | Happened


class _Phase(Enum):
    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    ASLEEP = "asleep"
    """There is no connection; it was open before."""
    RESUMING = "resuming"


@dataclass(slots=True, eq=False)
class _Session:
    id: str
    options: Frame = field(default_factory=dict)
    own_linger: bool = False
    """Whether `linger` was chosen by the client and not by its user."""
    phase: _Phase = _Phase.CLOSED
    asked: str | None = None
    """The `requestId` of the latest `open_session` or `resume`."""
    asked_for: frozenset[str] = frozenset()
    """The requests that the latest `resume` asked for."""
    created: str | None = None
    seq: int = 0
    repeated: int = 0
    """The number of the latest event that will come a second time: a `resume` that asked for it was on its way."""
    held: deque[Request] = field(default_factory=deque)
    loss: SessionLost | None = None
    """To be raised by the next request that relies on the session's state."""
    notice: str = ""
    """What the server said about the end of the session."""
    left: bool = False
    """Whether its user has left it: it is not resumed for the sake of its state."""


class Core:
    """The state of one client."""

    def __init__(self, prefix: str) -> None:
        """`prefix` makes request ids unique among all clients of the user."""
        self._ids = (f"{prefix}-{number}" for number in count(1))
        self._up = False
        self._out: deque[Frame | Request] = deque()
        self._held: deque[Request] = deque()
        self._requests: dict[str, Request] = {}
        self._sessions: dict[str, _Session] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._requests

    @property
    def ready(self) -> bool:
        """Whether there is a frame to take."""
        return bool(self._out)

    # -- requests -----------------------------------------------------------------

    def use(self, session_id: str, options: Frame, *, own_linger: bool) -> None:
        """Open a session with these options, when it is opened next."""
        session = self._sessions.setdefault(session_id, _Session(session_id))
        session.options, session.own_linger, session.left = options, own_linger, False

    def leave(self, session_id: str) -> None:
        """Do not resume a session any more when a connection breaks, unless something is under way in it."""
        if (session := self._sessions.get(session_id)) is not None:
            session.left = True
            self._forget(session)

    def submit(self, frame: Frame, kind: Kind) -> Request:
        """Take a request. Raises `SessionLost` if it relies on what its session has lost; nothing is sent then."""
        session = None if frame["type"] in UNBOUND else self._sessions.get(frame.get("sessionId", ""))
        if session is not None and session.loss is not None and kind in {Kind.RUN, Kind.TERMINAL}:
            loss, session.loss = session.loss, None
            raise loss
        request = Request({**frame, "requestId": next(self._ids)}, kind)
        self._requests[request.id] = request
        if session is None:
            (self._out if self._up else self._held).append(request)
        elif session.phase is _Phase.OPEN:
            self._out.append(request)
        else:
            session.held.append(request)
            if self._up and session.phase is _Phase.CLOSED:
                self._open(session)
        return request

    def notify(self, request: Request, frame: Frame) -> bool:
        """Send a message that has no answer but an error, on behalf of a request. Return False without connection."""
        session = self._session_of(request)
        connected = self._up and (session is None or session.phase is _Phase.OPEN)
        if connected:
            self._out.append({**frame, "requestId": request.id})
        return connected

    def answer_question(self, request: Request, input_id: str, value: str) -> None:
        """Answer a question of a run, unless it has asked another one since, or has ended.

        The answer names its question, so it may be sent again.
        """
        if request.question != input_id or request.id not in self._requests:
            return
        request.reply = {
            "type": "input_reply",
            "sessionId": request.frame["sessionId"],
            "inputId": input_id,
            "value": value,
        }
        session = self._sessions[request.frame["sessionId"]]
        if session.phase is _Phase.OPEN:
            self._out.append({**request.reply, "requestId": next(self._ids)})

    def abandon(self, request: Request) -> None:
        """Wait for a request no more. One that was not sent never is; a run that was sent is interrupted."""
        self._requests.pop(request.id, None)
        if not request.sent:
            self._out = deque(item for item in self._out if item is not request)
            for held in (self._held, *(session.held for session in self._sessions.values())):
                if request in held:
                    held.remove(request)
        elif request.kind is Kind.RUN:
            target = "execution" if request.frame["type"] == "execute_code" else "terminal"
            interrupt = {"type": "interrupt", "target": target, "runId": request.id}
            self.submit({**interrupt, "sessionId": request.frame["sessionId"]}, Kind.CHANGE)

    # -- the connection -----------------------------------------------------------

    def link_up(self) -> None:
        """Send what was held: a connection is open."""
        self._up = True
        for session in self._sessions.values():
            if session.phase is _Phase.ASLEEP:
                self._resume(session, [request.id for request in self._of(session) if request.sent])
            elif session.held:
                self._open(session)
        self._out.extend(self._held)
        self._held.clear()

    def take(self) -> Frame | None:
        """Return the next frame to write. From now on its request counts as sent, whether or not it gets through."""
        if not self._out:
            return None
        item = self._out.popleft()
        if not isinstance(item, Request):
            return item
        item.sent = True
        return item.frame

    def link_down(self, why: str) -> list[Effect]:
        """Hold what was not sent and what may be sent again. Return the end of what no session can be asked for."""
        self._up = False
        again = [each for each in self._requests.values() if each.sent and each.kind in {Kind.QUESTION, Kind.TERMINAL}]
        unsent = [item for item in self._out if isinstance(item, Request)]
        self._out.clear()
        for request in again:
            request.breaks += not request.attached
        broken = [request for request in again if request.breaks >= BREAKS]
        effects = [effect for request in broken for effect in self._settle(request, _unanswered(request, why))]
        for request in reversed([*again, *unsent]):
            if request.id not in self._requests:
                continue
            request.sent = request.attached = False
            session = self._session_of(request)
            (self._held if session is None else session.held).appendleft(request)
        for session in list(self._sessions.values()):
            open_before = session.phase in {_Phase.OPEN, _Phase.RESUMING, _Phase.ASLEEP}
            left = session.left and not any(self._of(session))
            session.phase = _Phase.ASLEEP if open_before and not left else _Phase.CLOSED
            self._forget(session)
        asleep = {session.id for session in self._sessions.values() if session.phase is _Phase.ASLEEP}
        lost = [each for each in self._requests.values() if each.sent and each.frame.get("sessionId") not in asleep]
        return [*effects, *(effect for each in lost for effect in self._settle(each, _unknown(each, why)))]

    def give_up(self, error: ClientError, why: str) -> list[Effect]:
        """End all requests: those that were not sent with `error`, those that were as unknown. Nothing is left to send.

        Call `link_down` before.
        """
        effects: list[Effect] = []
        for request in list(self._requests.values()):
            effects += self._settle(request, _unknown(request, why) if _may_have_run(request) else error)
        self._out.clear()
        self._held.clear()
        for session in self._sessions.values():
            session.held.clear()
        return effects

    # -- what arrives -------------------------------------------------------------

    def receive(self, frame: Frame) -> list[Effect]:
        """Take a frame from the server, and return what it means for the requests."""
        session = self._sessions.get(frame.get("sessionId") or "")
        if session is not None:
            session.seq = max(session.seq, frame.get("seq", 0))
            if session.asked is not None and frame.get("requestId") == session.asked:
                return self._opened_or_resumed(session, frame)
            match frame["type"]:
                case "resumed":
                    self._ask_again(session, frame)
                    return self._unknown(session, frame)
                case "session_status":
                    self._status(session, frame)
                case "close_session_reply":
                    session.phase, session.created, session.loss = _Phase.CLOSED, None, None
                    session.seq = session.repeated = 0
        request = self._requests.get(frame.get("requestId", ""))
        if frame["type"] == "input_request":
            request = request or self._asks(session)
        if request is None or (session is not None and self._is_repeated(session, request, frame)):
            return []
        return self._about(request, frame)

    def _about(self, request: Request, frame: Frame) -> list[Effect]:
        if frame["type"] == "input_request":
            if request.question == frame["inputId"]:
                return []  # it is known already, and sent again after a resume
            request.question, request.reply = frame["inputId"], None
        if _is_detached(request, frame):
            self._attach_again(request)
            return []
        if _is_final(request, frame):
            return self._settle(request, _outcome(request, frame))
        if frame["type"] == "terminal_opened":
            request.attached, request.breaks = True, 0
        return [Happened(request, frame)]

    def _is_repeated(self, session: _Session, request: Request, frame: Frame) -> bool:
        """Whether an event of a run has come already, over the same connection (`_ask_again`)."""
        seq = frame.get("seq")
        if seq is None or request.kind is not Kind.RUN or _is_final(request, frame):
            return False
        if seq <= session.repeated:
            return True
        if session.phase is _Phase.RESUMING:
            session.repeated = seq
        return False

    def _opened_or_resumed(self, session: _Session, frame: Frame) -> list[Effect]:
        if session.phase is _Phase.RESUMING:
            if frame["type"] == "error":
                return self._lost(session, f"{frame['message']}: {frame['error']}")
            if frame.get("anew") or frame["created"] != session.created:
                return self._lost(session, session.notice or "it was closed meanwhile, and opened again")
            return [*self._unknown(session, frame), *self._proceed(session)]
        if frame["type"] == "session_ready":
            session.created, session.notice = frame["created"], ""
            session.seq = max(session.seq, frame["lastSeq"])
            return self._proceed(session)
        if session.own_linger and frame.get("code") == "invalid_field" and "'linger'" in frame["message"]:
            session.options = {name: value for name, value in session.options.items() if name != "linger"}
            self._open(session)
            return []
        session.phase = _Phase.CLOSED
        held, session.held = session.held, deque()
        return [effect for request in held for effect in self._settle(request, _refused(request, frame))]

    def _proceed(self, session: _Session) -> list[Effect]:
        session.phase = _Phase.OPEN
        for request in self._of(session):
            if request.reply is not None:
                self._out.append({**request.reply, "requestId": next(self._ids)})
        self._out.extend(session.held)
        session.held.clear()
        return []

    def _unknown(self, session: _Session, resumed: Frame) -> list[Effect]:
        lost = frozenset(resumed.get("unknownRequests", []))
        why = f"the connection broke, and session '{session.id}' has no answer to it any more"
        effects: list[Effect] = []
        for request in self._of(session):
            if request.id not in lost:
                continue
            if request.kind is Kind.QUESTION:
                self._send_again(session, request)
            else:
                effects += self._settle(request, _unknown(request, why))
        return effects

    def _ask_again(self, session: _Session, resumed: Frame) -> None:
        """Ask for what was sent since the connection was resumed: its answers may be among what the server has lost.

        A terminal has no answer that can be lost; nor have requests that are answered past the journal.
        """
        if "lost" not in resumed or session.phase is not _Phase.OPEN:
            return  # or an earlier `resume` is not answered yet: its answer will say it
        waits = [
            request.id
            for request in self._of(session)
            if request.sent and request.kind is not Kind.TERMINAL and request.frame["type"] not in UNBOUND
        ]
        if waits:
            self._resume(session, waits)

    def _attach_again(self, request: Request) -> None:
        """Open a terminal again that the server has detached from this connection: it goes on."""
        session = self._session_of(request)
        if session is not None and request.sent:
            self._send_again(session, request)

    def _send_again(self, session: _Session, request: Request) -> None:
        request.sent = request.attached = False
        if session.phase is _Phase.OPEN:
            self._out.append(request)
        else:
            session.held.append(request)

    def _status(self, session: _Session, frame: Frame) -> None:
        if frame["status"] != "closed":
            return
        session.notice = frame["detail"]
        if "closedAt" not in frame and session.phase is _Phase.OPEN:
            session.phase, session.created, session.seq, session.repeated = _Phase.CLOSED, None, 0, 0
            session.loss = _loss(session.id, session.notice)
            self._forget(session)

    def _lost(self, session: _Session, why: str) -> list[Effect]:
        """End what a session had that was closed meanwhile, and open it again if it is needed."""
        loss = _loss(session.id, why)
        effects: list[Effect] = []
        for request in self._of(session):
            if request.id in session.asked_for:
                effects += self._settle(request, _unknown(request, f"session '{session.id}' is gone: {why}"))
            elif request.sent:
                continue  # right behind `resume`: its answer follows
            elif request.kind in {Kind.RUN, Kind.TERMINAL}:
                session.held.remove(request)
                effects += self._settle(request, loss)
        session.loss = None if effects else loss
        session.phase, session.created, session.seq, session.repeated = _Phase.CLOSED, None, 0, 0
        if session.held:
            self._open(session)
        self._forget(session)
        return effects

    # -- helpers ------------------------------------------------------------------

    def _open(self, session: _Session) -> None:
        session.phase = _Phase.OPENING
        self._ask(session, {"type": "open_session", **session.options})

    def _resume(self, session: _Session, waits: list[str]) -> None:
        session.phase, session.asked_for = _Phase.RESUMING, frozenset(waits)
        self._ask(session, {"type": "resume", "after": session.seq, "requestIds": waits})

    def _ask(self, session: _Session, frame: Frame) -> None:
        session.asked = next(self._ids)
        self._out.append({**frame, "sessionId": session.id, "requestId": session.asked})

    def _settle(self, request: Request, outcome: Frame | ClientError) -> list[Effect]:
        del self._requests[request.id]
        if (session := self._sessions.get(request.frame.get("sessionId", ""))) is not None:
            self._forget(session)
        return [Settled(request, outcome)]

    def _forget(self, session: _Session) -> None:
        """Forget a session that was left, is closed and has no requests: a client may have thousands in its life."""
        if session.left and session.phase is _Phase.CLOSED and not any(self._of(session)):
            self._sessions.pop(session.id, None)

    def _session_of(self, request: Request) -> _Session | None:
        if request.frame["type"] in UNBOUND:
            return None
        return self._sessions.get(request.frame.get("sessionId", ""))

    def _of(self, session: _Session) -> Iterator[Request]:
        return (request for request in list(self._requests.values()) if request.frame.get("sessionId") == session.id)

    def _asks(self, session: _Session | None) -> Request | None:
        """Return the run that a question without a `requestId` is from: the oldest that may ask."""
        if session is None:
            return None
        asking = (request for request in self._of(session) if request.sent and request.frame.get("allowStdin"))
        return next(asking, None)


def _is_detached(request: Request, frame: Frame) -> bool:
    """Whether the server shows a terminal to this connection no more, because it read too slowly."""
    return request.kind is Kind.TERMINAL and frame["type"] == "terminal_closed" and frame.get("cause") == "too_slow"


def _is_final(request: Request, frame: Frame) -> bool:
    match request.frame["type"]:
        case "execute_code":
            return frame["type"] in {"execution_result", "error"}
        case "terminal_command":
            return frame["type"] in {"terminal_output", "error"}
        case "interrupt":
            return frame["type"] != "interrupted" or bool(frame["done"])
        case "open_terminal":
            return frame["type"] == "terminal_closed" or (frame["type"] == "error" and not request.attached)
    return True


def _outcome(request: Request, frame: Frame) -> Frame | ClientError:
    failed = frame["type"] in {"save_result", "file_result"} and not frame["success"]
    return _refused(request, frame) if failed or frame["type"] == "error" else frame


def _refused(request: Request, frame: Frame) -> RequestRefused:
    return RequestRefused(
        frame["message"],
        frame.get("error", ""),
        code=frame.get("code", "internal_error"),
        retryable=frame.get("retryable", False),
        request=request.frame["type"],
    )


def _what(request: Request) -> str:
    text = request.frame.get("code") or request.frame.get("command") or request.frame.get("filename") or ""
    line = text.strip().partition("\n")[0][:60]
    return f"{request.frame['type']} ({line})" if line else str(request.frame["type"])


def _may_have_run(request: Request) -> bool:
    return request.sent and request.kind in {Kind.RUN, Kind.CHANGE}


def _unknown(request: Request, why: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"The outcome of {_what(request)} is unknown",
        f"{why}. It may have run, wholly or in part: look at what it should have changed before you send it again",
        request=request.frame,
    )


def _unanswered(request: Request, why: str) -> ConnectionLost:
    return ConnectionLost(
        f"No answer to {_what(request)}",
        f"{BREAKS} connections broke before it, the last one because {why}. Is it larger than the server or a proxy"
        " takes? Ask again if the network is bad",
    )


def _loss(session_id: str, why: str) -> SessionLost:
    return SessionLost(
        f"Session '{session_id}' was lost",
        f"{why}. Its variables and shell are gone, its files are kept. This request was not sent; the next one opens"
        " the session again",
        session_id=session_id,
    )
