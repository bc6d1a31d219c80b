"""The table of a kernel's executions (pure).

An execution is one `execute_request`. It is DONE when both its shell reply and its iopub `idle` have arrived, in any
order, because output may follow the reply. `TRANSITIONS` is the whole state machine; the documentation draws it.

Replies count only on the shell channel, output only on iopub, and both only for the id of a pending execution. So a
kernel that forges messages harms only itself. Each execution ends exactly once.

Methods named `handling_…` are generators that yield often, so that the caller can do other work in between.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import NamedTuple

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import Spill
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.end_causes import Ended
from kernelbridge.jupyter.events import Asked, GivenUp, Listener, Started
from kernelbridge.jupyter.failures import describe, failure_text, plain_traceback
from kernelbridge.jupyter.output import DISPLAYS, OUTPUT, Output, handling_output, text_of, writing
from kernelbridge.rates import Bucket

_PROMPT_LIMIT = 1 << 15  # characters of a question; the end of a longer one is kept
_GIVEN_UP = "kernelbridge_given_up"  # what our hooks send when the latest question waits for no answer any more
_ID_LIMIT = 128  # characters of a question's id
_REPLACED = 2.0  # questions in a second that a cell may ask instead of one that is not answered; some at once
_AFTER_GIVEN_UP = 0.1  # what a question counts of these that follows one that the cell has given up


class State(Enum):
    """The state of an execution."""

    SENT = "sent"
    """Neither the reply nor idle has arrived."""
    REPLIED = "replied"
    """The reply has arrived; output may still arrive."""
    IDLE = "idle"
    """Idle has arrived; the reply has not."""
    DONE = "done"
    """Both have arrived."""
    ENDED = "ended"
    """Ended from outside: its kernel died, or its session was closed."""


class Event(Enum):
    """What changes the state of an execution."""

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
"""Everything else is ignored: a second reply, a second idle, anything after the end."""

FINAL = frozenset({State.DONE, State.ENDED})
HALF_DONE = frozenset({State.REPLIED, State.IDLE})
"""One of the two messages that make it DONE has arrived."""


class _ReportedError(NamedTuple):
    """An `error` message of the kernel."""

    failure: wire.Failure
    traceback: str
    """As plain text."""


class Execution:
    """One entry of the table. Only the table changes it, except `cause`."""

    __slots__ = (
        *("allow_stdin", "cause", "counted_from", "done", "failure", "figures", "gave_up", "listener", "msg_id"),
        *(
            "on_started",
            "output",
            "progress",
            "question",
            "replaced",
            "reply",
            "seen_running",
            "start_reported",
            "started_at",
        ),
        *("state", "traceback"),
    )

    def __init__(
        self, msg_id: str, done: Callable[[Outcome], None], listener: Listener | None, output: Output, now: float
    ) -> None:
        self.allow_stdin = False
        """Whether it may ask for input."""
        self.question: str | None = None
        """The id of the latest question that it has asked, until that is answered."""
        self.gave_up = False
        """Whether the cell has given up its latest question by itself."""
        self.replaced = Bucket(_REPLACED, now)
        """How many more questions it may ask instead of an unanswered one."""
        self.started_at: float | None = None
        """When the kernel reported that it runs the cell, or has run it, in monotonic seconds."""
        self.on_started: Callable[[], object] | None = None
        """Called when `started_at` is set."""
        self.msg_id = msg_id
        self.state = State.SENT
        self.cause: str | None = None
        """Set by an interrupt. It is in the outcome if the cell then fails."""
        self.done = done
        self.listener = listener
        self.counted_from = now
        """From when its duration counts, in monotonic seconds: it was sent, and the cell before it has ended."""
        self.start_reported = listener is None
        """Whether the listener has got `Started`, or there is no listener."""
        self.output = output
        self.reply: wire.ExecuteReply | None = None
        self.failure: _ReportedError | None = None
        """The last error that the kernel published and that is not in the output."""
        self.traceback = ""
        """The traceback of the reply, as plain text."""
        self.seen_running = False
        """Whether the kernel has published anything of it except its status."""
        self.progress = 0
        """Grows with each message of output and each change of state."""
        self.figures = wire.NO_FIGURES

    def __repr__(self) -> str:
        return f"<Execution {self.msg_id} {self.state.value}>"


class ExecutionTable:
    """The pending executions of one kernel.

    `clock` returns monotonic seconds. `late` is called with the text of output that belongs to none of them. When the
    output of an execution has more than `max_output` bytes, a quarter of them is kept here, and `spill` returns what
    stores the whole output.
    """

    def __init__(
        self,
        *,
        max_output: int,
        clock: Callable[[], float],
        late: Callable[[str], None],
        spill: Callable[[], Spill | None] | None = None,
    ) -> None:
        self._max_output = max_output
        self._spill = spill
        self._clock = clock
        self._late = late
        self._pending: dict[str, Execution] = {}
        self.on_half_done: Callable[[], object] = lambda: None
        """Called when the running execution has its reply or its idle, but not both."""

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def running(self) -> Execution | None:
        """The oldest pending execution: the one that the kernel runs."""
        return next(iter(self._pending.values()), None)

    def add(
        self,
        msg_id: str,
        done: Callable[[Outcome], None],
        listener: Listener | None = None,
        *,
        allow_stdin: bool = False,
    ) -> Execution:
        """Add an execution, before its request is sent.

        `listener` is called with its events, and then `done` once with its outcome.
        """
        output = Output(self._max_output, kept=self._max_output // 4, spill=self._spill)
        execution = Execution(msg_id, done, listener, output, self._clock())
        execution.allow_stdin = allow_stdin
        self._pending[msg_id] = execution
        return execution

    def on_shell(self, message: wire.Message) -> None:
        """Handle a message of the shell channel at once. Raises `BadFrame`."""
        for _ in self.handling_shell(message):
            pass

    def on_iopub(self, message: wire.Message) -> None:
        """Handle a message of the iopub channel at once. Raises `BadFrame`."""
        for _ in self.handling_iopub(message):
            pass

    def handling_shell(self, message: wire.Message) -> Generator[None, None, None]:
        """Handle a message of the shell channel. Raises `BadFrame`."""
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
            return  # the execution has been ended meanwhile
        execution.reply, execution.figures, execution.traceback = reply, figures, traceback
        self._move(execution, Event.REPLY)

    def handling_iopub(self, message: wire.Message) -> Generator[None, None, None]:
        """Handle a message of the iopub channel. Raises `BadFrame`."""
        execution = self._pending.get(message.parent_id)
        if message.msg_type == "status":
            if execution is not None:
                yield from self._handling_status(execution, message)
        elif execution is None:
            yield from self._handling_late(message)
        elif message.msg_type == "error":
            failure = yield from wire.decoding(message.content, wire.Failure)
            execution.seen_running = True
            traceback = yield from plain_traceback(failure.traceback or [], self._max_output)
            yield from self._handling_error(execution, _ReportedError(failure, traceback))
        elif message.msg_type in OUTPUT:
            execution.seen_running = True
            _report_start(execution)
            yield from self._showing_failure(execution)
            yield from self._while_pending(execution, handling_output(execution.output, message, execution.listener))
            execution.progress += 1
        elif message.msg_type == "execute_input":
            execution.seen_running = True
            if not execution.start_reported:
                _report_start(execution, wire.decode(message.content, wire.ExecuteInput).execution_count)

    def on_stdin(self, message: wire.Message) -> None:
        """Handle a message of the stdin channel: a question of the running execution. Raises `BadFrame`.

        Code can give up an `input()` by itself, when a signal handler raises in it, and ask another question. So the
        new question takes the place of one that is not answered. A flood of questions that nobody answers, which only
        forged messages can be, is left out.
        """
        execution = self.running
        if execution is None or execution.msg_id != message.parent_id:
            return
        if message.msg_type == _GIVEN_UP and execution.question is not None and execution.listener is not None:
            execution.question, execution.gave_up = None, True
            execution.listener(GivenUp())
        if message.msg_type != "input_request":
            return
        input_id = message.msg_id[:_ID_LIMIT]
        if not execution.allow_stdin or execution.listener is None or execution.question == input_id:
            return
        asked = wire.decode(message.content, wire.InputRequest)
        counts = 1.0 if execution.question is not None else _AFTER_GIVEN_UP if execution.gave_up else 0.0
        if not execution.replaced.try_take(counts, self._clock()):
            return
        execution.question, execution.gave_up = input_id, False
        _report_start(execution)  # stdin is another socket: iopub's message about the start may arrive later
        prompt = asked.prompt if len(asked.prompt) <= _PROMPT_LIMIT else "…" + asked.prompt[-_PROMPT_LIMIT:]
        execution.listener(Asked(prompt, asked.password, input_id))

    def take_question(self) -> str | None:
        """Return the id of the question of the running execution, which from now on waits for no answer."""
        if self.running is None:
            return None
        question, self.running.question, self.running.gave_up = self.running.question, None, False
        return question

    def complete(self, execution: Execution) -> None:
        """End an execution that has its reply as if its `idle` had arrived."""
        self._move(execution, Event.IDLE)

    def end(self, execution: Execution, why: Ended) -> None:
        """End one pending execution from outside, with its output so far."""
        execution.cause = why.cause
        self._move(execution, Event.END, why)

    def end_all(self, why: Ended) -> None:
        """End every pending execution from outside, with its output so far."""
        while self._pending:
            self.end(next(iter(self._pending.values())), why)

    def _handling_status(self, execution: Execution, message: wire.Message) -> Generator[None, None, None]:
        status = wire.decode(message.content, wire.Status).execution_state
        if status == "idle":
            if execution.state is State.REPLIED and execution.reply is not None:
                yield from self._ending(execution, execution.reply)
            self._move(execution, Event.IDLE)
        self._note_start(execution)

    def _note_start(self, execution: Execution) -> None:
        if execution.started_at is None:
            execution.started_at = self._clock()
            if execution.on_started is not None:
                execution.on_started()

    def _while_pending(self, execution: Execution, work: Iterator[None]) -> Generator[None, None, None]:
        """Do some work for an execution, but stop when it has been ended: then its listener must get nothing more."""
        for _ in work:
            yield
            if execution.state in FINAL:
                return

    def _handling_error(self, execution: Execution, failed: _ReportedError) -> Generator[None, None, None]:
        before = execution.failure
        yield from self._showing_failure(execution)
        execution.failure = failed
        if before is not None and before.failure.final:
            yield from self._showing_failure(execution)
            execution.failure = before

    def _ending(self, execution: Execution, reply: wire.ExecuteReply) -> Generator[None, None, None]:
        """Put the output together, before the execution becomes DONE."""
        if reply.status == "ok":
            yield from self._showing_failure(execution, ended=True)
        yield from self._while_pending(execution, execution.output.ending())

    def _showing_failure(self, execution: Execution, *, ended: bool = False) -> Generator[None, None, None]:
        """Write a traceback that did not end the cell (`%tb`) to the output, where a terminal would have shown it."""
        failed = execution.failure
        if failed is not None and (ended or not failed.failure.final):
            execution.failure = None
            text = failure_text(*failed)
            yield from self._while_pending(execution, writing(execution.output, "stderr", text, execution.listener))

    def _handling_late(self, message: wire.Message) -> Generator[None, None, None]:
        if message.msg_type == "stream":
            text = (yield from wire.decoding(message.content, wire.Stream)).text
        elif message.msg_type == "error":
            failure = yield from wire.decoding(message.content, wire.Failure)
            text = failure_text(failure, (yield from plain_traceback(failure.traceback or [], self._max_output)))
        elif message.msg_type in DISPLAYS:
            # Images too: late output has only text.
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
        execution.progress += 1
        if state in HALF_DONE:
            self.on_half_done()
        else:
            self._note_start(execution)
            if event is not Event.END and not _was_skipped(execution):
                _report_start(execution)
            if execution.reply is not None and execution.reply.status == "ok":
                for _ in self._showing_failure(execution, ended=True):
                    pass
            del self._pending[execution.msg_id]
            now = self._clock()
            duration_ms = (now - execution.counted_from) * 1000
            # Not when `busy` arrives: if the cell holds the interpreter's lock, its kernel sends that late.
            if self.running is not None:
                self.running.counted_from = max(self.running.counted_from, now)
                if self.running.state in HALF_DONE:
                    self.on_half_done()
            execution.done(_outcome(execution, duration_ms, why))


def _report_start(execution: Execution, count: int | None = None) -> None:
    """Call the listener with `Started`, once; `count` is known if `execute_input` is the first message."""
    if not execution.start_reported and execution.listener is not None:
        execution.start_reported = True
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
        error = describe(failure, default=_default_error(execution))
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
        state_preserved=done and not _asks_to_exit(reply) if why is None else why.kernel_lives,
        spill=rendered.spill,
    )


def _was_skipped(execution: Execution) -> bool:
    """Whether the kernel did not run it, because an earlier cell had failed.

    Some kernels answer a cell that they stopped because of an interrupt with the same status.
    """
    reply = execution.reply
    if reply is None or reply.status in {"ok", "error"}:
        return False
    return not execution.seen_running and execution.cause is None


def _default_error(execution: Execution) -> str:
    """Return the error of an execution whose kernel reports only that it failed."""
    if execution.cause is not None:
        return "Interrupted: the kernel stopped the cell"
    if _was_skipped(execution):
        return "Aborted: the kernel skipped the cell because an earlier one had failed"
    if execution.reply is not None and execution.reply.status != "error":
        return "Aborted: the kernel stopped the cell"
    return "Error"


def _asks_to_exit(reply: wire.ExecuteReply | None) -> bool:
    """Whether the kernel exits after this reply: the cell called `exit()` or `quit()`."""
    payload = (reply and reply.payload) or []
    return any(item.get("source") == "ask_exit" and not item.get("keepkernel") for item in payload)
