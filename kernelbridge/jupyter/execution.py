"""The table of a kernel's executions (pure).

An execution is one `execute_request`. It is DONE when both its shell reply and its iopub `idle`
have arrived, in whichever order, because output may follow the reply. `TRANSITIONS` is the whole machine;
the documentation draws it.

Replies count only from the shell channel, output only from iopub, and both only for a
pending id: a kernel that forges messages harms itself. Each execution ends exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import NamedTuple

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import Overflow
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.end_causes import Ended
from kernelbridge.jupyter.events import Asked, Listener, Started
from kernelbridge.jupyter.failures import describe, failure_text, plain_traceback
from kernelbridge.jupyter.output import DISPLAYS, OUTPUT, Output, taking_output, text_of, writing

_PROMPT_LIMIT = 1 << 15  # characters of a question; of a longer one, the end matters
_ID_LIMIT = 128


class State(Enum):
    """Where an execution is."""

    SENT = "sent"
    """Neither the reply nor idle has arrived."""
    REPLIED = "replied"
    """The reply has arrived, output may still come."""
    IDLE = "idle"
    """Idle has arrived, the reply has not."""
    DONE = "done"
    """Both have arrived."""
    ENDED = "ended"
    """Ended from outside: its kernel died, or its session was closed."""


class Event(Enum):
    """What moves an execution on."""

    REPLY = "reply"
    IDLE = "idle"
    END = "end"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.SENT, Event.REPLY): State.REPLIED,
    (State.SENT, Event.IDLE): State.IDLE,
    (State.SENT, Event.END): State.ENDED,
    (State.REPLIED, Event.IDLE): State.DONE,
    (State.REPLIED, Event.END): State.ENDED,
    (State.IDLE, Event.REPLY): State.DONE,
    (State.IDLE, Event.END): State.ENDED,
}
"""What is not in it changes nothing: a second reply, a second idle, anything after the end."""

FINAL = frozenset({State.DONE, State.ENDED})
HALF_DONE = frozenset({State.REPLIED, State.IDLE})
"""One of the two has come that make it DONE."""


class _Failed(NamedTuple):
    """An error that the kernel has told of."""

    failure: wire.Failure
    traceback: str
    """As plain text."""


class Execution:
    """One entry of the table; the table alone changes it, but for `cause`."""

    __slots__ = (
        *("asks", "began", "begun", "cause", "done", "failure", "figures", "listener", "msg_id", "on_begun", "output"),
        *("moves", "ran", "reply", "state", "told", "traceback", "waits"),
    )

    def __init__(
        self, msg_id: str, done: Callable[[Outcome], None], listener: Listener | None, output: Output, now: float
    ) -> None:
        self.asks = False
        """Whether it may ask for input."""
        self.waits = False
        """Whether it has asked, and was not answered yet."""
        self.begun: float | None = None
        """When the kernel said that it works on it, or had done so, in monotonic seconds."""
        self.on_begun: Callable[[], object] | None = None
        """Called when `begun` is set."""
        self.msg_id = msg_id
        self.state = State.SENT
        self.cause: str | None = None
        """Set by who interrupts it; told in the outcome if the cell then fails."""
        self.done = done
        self.listener = listener
        self.began = now
        self.told = listener is None
        """Whether `Started` was told, or nobody wants to hear it."""
        self.output = output
        self.reply: wire.ExecuteReply | None = None
        self.failure: _Failed | None = None
        self.traceback = ""
        """That of the reply, as plain text."""
        self.ran = False
        """Whether the kernel has told anything of it but its status and its reply."""
        self.moves = 0
        """Grows with each of its messages that may move it on."""
        self.figures = wire.NO_FIGURES

    def __repr__(self) -> str:
        return f"<Execution {self.msg_id} {self.state.value}>"


class ExecutionTable:
    """All executions of one kernel that are not done.

    `clock` gives monotonic seconds. `late` takes the text of output that belongs to none of them. `overflow` gives
    what takes the output of an execution that has more than `max_output` bytes; a quarter of them is then kept.
    """

    def __init__(
        self,
        *,
        max_output: int,
        clock: Callable[[], float],
        late: Callable[[str], None],
        overflow: Callable[[], Overflow | None] | None = None,
    ) -> None:
        self._max_output = max_output
        self._overflow = overflow
        self._clock = clock
        self._late = late
        self._pending: dict[str, Execution] = {}
        self.on_half: Callable[[], object] = lambda: None
        """Called when one half of an execution's end has come."""

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def running(self) -> Execution | None:
        """The oldest pending execution: the one that the kernel works on."""
        return next(iter(self._pending.values()), None)

    def add(
        self, msg_id: str, done: Callable[[Outcome], None], listener: Listener | None = None, *, asks: bool = False
    ) -> Execution:
        """Enter an execution, before its request is sent.

        `listener` is told of what happens; `done` is called once, with the outcome.
        """
        output = Output(self._max_output, kept=self._max_output // 4, overflow=self._overflow)
        execution = Execution(msg_id, done, listener, output, self._clock())
        execution.asks = asks
        self._pending[msg_id] = execution
        return execution

    def on_shell(self, message: wire.Message) -> None:
        """Take a message of the shell channel, whole; raises `BadFrame`."""
        for _ in self.taking_shell(message):
            pass

    def on_iopub(self, message: wire.Message) -> None:
        """Take a message of the iopub channel, whole; raises `BadFrame`."""
        for _ in self.taking_iopub(message):
            pass

    def taking_shell(self, message: wire.Message) -> Generator[None, None, None]:
        """Take a message of the shell channel; yields often. Raises `BadFrame`."""
        execution = self._pending.get(message.parent_id)
        if execution is None or message.msg_type != "execute_reply":
            return
        reply = yield from wire.decoding(message.content, wire.ExecuteReply)
        if (execution.state, Event.REPLY) not in TRANSITIONS:
            return
        traceback = yield from plain_traceback(reply.traceback or [], self._max_output)
        figures = wire.NO_FIGURES
        if b'"kernelbridge"' in message.metadata:
            figures = (yield from wire.decoding(message.metadata, wire.ReplyMetadata)).kernelbridge
        if execution.state is State.IDLE:
            yield from self._ending(execution, reply)
        if (execution.state, Event.REPLY) not in TRANSITIONS:
            return  # it has been ended meanwhile
        execution.reply, execution.figures, execution.traceback = reply, figures, traceback
        self._move(execution, Event.REPLY)

    def taking_iopub(self, message: wire.Message) -> Generator[None, None, None]:
        """Take a message of the iopub channel; yields often. Raises `BadFrame`."""
        execution = self._pending.get(message.parent_id)
        if message.msg_type == "status":
            if execution is not None:
                yield from self._taking_status(execution, message)
        elif execution is None:
            yield from self._taking_late(message)
        elif message.msg_type == "error":
            failure = yield from wire.decoding(message.content, wire.Failure)
            execution.ran = True
            traceback = yield from plain_traceback(failure.traceback or [], self._max_output)
            yield from self._taking_failure(execution, _Failed(failure, traceback))
        elif message.msg_type in OUTPUT:
            execution.ran = True
            _tell_start(execution)
            yield from self._showing_failure(execution)
            yield from self._while_pending(execution, taking_output(execution.output, message, execution.listener))
            execution.moves += 1
        elif message.msg_type == "execute_input":
            execution.ran = True
            if not execution.told:
                _tell_start(execution, wire.decode(message.content, wire.ExecuteInput).execution_count)

    def on_stdin(self, message: wire.Message) -> None:
        """Take a message of stdin: a question of the running execution, one at a time. Raises `BadFrame`."""
        execution = self.running
        if execution is None or execution.msg_id != message.parent_id or message.msg_type != "input_request":
            return
        if not execution.asks or execution.waits or execution.listener is None:
            return
        asked = wire.decode(message.content, wire.InputRequest)
        execution.waits = True
        _tell_start(execution)  # stdin is a socket of its own: what iopub says of the start may come later
        prompt = asked.prompt if len(asked.prompt) <= _PROMPT_LIMIT else "…" + asked.prompt[-_PROMPT_LIMIT:]
        execution.listener(Asked(prompt, asked.password, message.msg_id[:_ID_LIMIT]))

    def answered(self) -> None:
        """Note that the running execution waits for input no more, and may ask again."""
        if self.running is not None:
            self.running.waits = False

    def complete(self, execution: Execution) -> None:
        """Take it that no more output of an execution comes that has its reply."""
        self._move(execution, Event.IDLE)

    def end(self, execution: Execution, why: Ended) -> None:
        """End one pending execution from outside, with the output it has so far."""
        execution.cause = why.cause
        self._move(execution, Event.END, why)

    def end_all(self, why: Ended) -> None:
        """End every pending execution from outside, with the output it has so far."""
        while self._pending:
            self.end(next(iter(self._pending.values())), why)

    def _taking_status(self, execution: Execution, message: wire.Message) -> Generator[None, None, None]:
        status = wire.decode(message.content, wire.Status).execution_state
        if status == "idle":
            if execution.state is State.REPLIED and execution.reply is not None:
                yield from self._ending(execution, execution.reply)
            self._move(execution, Event.IDLE)
        self._begin(execution)

    def _begin(self, execution: Execution) -> None:
        if execution.begun is None:
            execution.begun = self._clock()
            if execution.on_begun is not None:
                execution.on_begun()

    def _while_pending(self, execution: Execution, work: Iterator[None]) -> Generator[None, None, None]:
        """Do something for an execution, unless it is ended meanwhile: nobody must be told of it then."""
        for _ in work:
            yield
            if execution.state in FINAL:
                return

    def _taking_failure(self, execution: Execution, failed: _Failed) -> Generator[None, None, None]:
        before = execution.failure
        yield from self._showing_failure(execution)
        execution.failure = failed
        if before is not None and before.failure.final:
            yield from self._showing_failure(execution)
            execution.failure = before

    def _ending(self, execution: Execution, reply: wire.ExecuteReply) -> Generator[None, None, None]:
        """Put the output together, before the last half of its end is taken note of; yields often."""
        if reply.status == "ok":
            yield from self._showing_failure(execution, ended=True)
        yield from self._while_pending(execution, execution.output.ending())

    def _showing_failure(self, execution: Execution, *, ended: bool = False) -> Generator[None, None, None]:
        """Show a traceback that was not the end of the cell (`%tb`) where a terminal would have."""
        failed = execution.failure
        if failed is not None and (ended or not failed.failure.final):
            execution.failure = None
            text = failure_text(*failed)
            yield from self._while_pending(execution, writing(execution.output, "stderr", text, execution.listener))

    def _taking_late(self, message: wire.Message) -> Generator[None, None, None]:
        if message.msg_type == "stream":
            text = (yield from wire.decoding(message.content, wire.Stream)).text
        elif message.msg_type == "error":
            failure = yield from wire.decoding(message.content, wire.Failure)
            text = failure_text(failure, (yield from plain_traceback(failure.traceback or [], self._max_output)))
        elif message.msg_type in DISPLAYS:
            # An image too: there is nothing else of it in a result.
            text = yield from text_of((yield from wire.decoding(message.content, wire.Display)))
        else:
            return
        if text:
            self._late(text)

    def _move(self, execution: Execution, event: Event, why: Ended | None = None) -> None:
        state = TRANSITIONS.get((execution.state, event))
        if state is None:
            return
        execution.state = state
        execution.moves += 1
        if state in HALF_DONE:
            self.on_half()
        else:
            self._begin(execution)
            if event is not Event.END and not _skipped(execution):
                _tell_start(execution)
            if execution.reply is not None and execution.reply.status == "ok":
                for _ in self._showing_failure(execution, ended=True):
                    pass
            del self._pending[execution.msg_id]
            now = self._clock()
            duration_ms = (now - execution.began) * 1000
            # Not when `busy` arrives: a kernel whose cell keeps the interpreter to itself sends that late.
            if self.running is not None:
                self.running.began = max(self.running.began, now)
                if self.running.state in HALF_DONE:
                    self.on_half()
            execution.done(_outcome(execution, duration_ms, why))


def _tell_start(execution: Execution, count: int | None = None) -> None:
    """Tell that it has begun, once: with its count if the kernel says it before anything else comes."""
    if not execution.told and execution.listener is not None:
        execution.told = True
        execution.listener(Started(count))


def _outcome(execution: Execution, duration_ms: float, why: Ended | None) -> Outcome:
    rendered = execution.output.render()
    reply = execution.reply
    done = execution.state is State.DONE and reply is not None
    success = done and reply is not None and reply.status == "ok"
    error = "" if why is None else why.error
    traceback = ""
    if done and not success and reply is not None:
        failure, traceback = execution.failure or (wire.Failure("", None, None), "")
        if reply.ename or execution.failure is None:
            failure, traceback = wire.Failure(reply.ename or "", reply.evalue), execution.traceback or traceback
        error = describe(failure, unsaid=_unsaid(execution))
    return Outcome(
        success=success,
        output=rendered.output,
        error=None if success else error,
        stdout=rendered.stdout,
        stderr=rendered.stderr,
        results=rendered.results,
        traceback=traceback or None,
        execution_count=reply.execution_count if reply is not None else None,
        duration_ms=duration_ms,
        cpu_ms=execution.figures.cpu_ms,
        oom_kills=execution.figures.oom_kills,
        truncated=rendered.truncated,
        cause=None if success else execution.cause,
        exit_code=None if why is None else why.exit_code,
        signal=None if why is None else why.signal,
        state_preserved=done and not _leaves(reply) if why is None else why.kernel_lives,
        overflow=rendered.overflow,
    )


def _skipped(execution: Execution) -> bool:
    """Whether the kernel says that it did not run it, because one before it had failed.

    With the same status some kernels answer a cell that they broke off because of an interrupt.
    """
    reply = execution.reply
    return reply is not None and reply.status not in {"ok", "error"} and not execution.ran and execution.cause is None


def _unsaid(execution: Execution) -> str:
    """Give the error of one whose kernel says only that it failed."""
    if execution.cause is not None:
        return "Interrupted: the kernel broke the cell off"
    if _skipped(execution):
        return "Aborted: the kernel skipped the cell because one before it had failed"
    if execution.reply is not None and execution.reply.status != "error":
        return "Aborted: the kernel broke the cell off"
    return "Error"


def _leaves(reply: wire.ExecuteReply | None) -> bool:
    """Whether the kernel ends after this reply: the cell called `exit()` or `quit()`."""
    payload = (reply and reply.payload) or []
    return any(item.get("source") == "ask_exit" and not item.get("keepkernel") for item in payload)
