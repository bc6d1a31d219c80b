"""Requests about the session's persistent shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import UNSET, UnsetType

from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol.cells import Interrupt, Interrupted
from kernelbridge.protocol.terminals import TerminalChunk, TerminalCommand, TerminalOutput
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.server.websocket.handlers.event_stream import EventStream, LeftOut
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.interrupt_progress import InterruptProgress
from kernelbridge.workspace.shell.lane import CommandDone


async def run(context: RequestContext, message: TerminalCommand) -> None:
    """Queue a terminal command."""
    streams = context.client.streams if message.stream is None else message.stream
    events = CommandEvents(context) if streams else None
    context.workspace.commands.submit(
        message.command,
        answer_of(context) if events is None else events.answer,
        timeout=message.timeout,
        listen=events,
        request_id=message.request_id,
    )


def _count(context: RequestContext, outcome: CommandOutcome | KernelBridgeError) -> None:
    metrics = context.client.registry.metrics
    if isinstance(outcome, KernelBridgeError):
        metrics.command_ended("refused", outcome.code)
    else:
        metrics.command_ended("ok" if outcome.exit_code == 0 else "failed", outcome.cause)


def answer_of(context: RequestContext) -> CommandDone:
    """Return the callback that answers a command which does not stream."""

    def answer(outcome: CommandOutcome | KernelBridgeError) -> None:
        _count(context, outcome)
        context.reply(outcome, lambda result: terminal_output(context, result))

    return answer


async def interrupt(context: RequestContext, message: Interrupt) -> None:
    """Interrupt the running terminal command; each step is reported."""

    def report(progress: InterruptProgress) -> None:
        context.answer(interrupted(context, progress, "terminal"))

    context.workspace.commands.interrupt(report, queued=message.queued, jobs=message.jobs, only=message.run_id)


def interrupted(
    context: RequestContext, progress: InterruptProgress, target: Literal["execution", "terminal"]
) -> Interrupted:
    """Return the event that reports one step of an interrupt."""
    return Interrupted(
        **context.ids,
        seq=context.seq(),
        target=target,
        step=progress.step,
        done=progress.done,
        state_preserved=UNSET if progress.state_preserved is None else progress.state_preserved,
        ended=UNSET if progress.ended is None else progress.ended,
    )


def terminal_output(
    context: RequestContext, outcome: CommandOutcome, *, seq: int | UnsetType = UNSET, events_left_out: int = 0
) -> TerminalOutput:
    """Return the answer to `terminal_command`.

    For a command that streams, `seq` is its number and `events_left_out` how many bytes its events left out.
    """
    return TerminalOutput(
        output=outcome.json.get("output", outcome.output),
        **context.ids,
        seq=seq,
        exit_code=UNSET if outcome.exit_code is None else outcome.exit_code,
        cwd=outcome.cwd or UNSET,
        duration_ms=round(outcome.duration_ms, 3),
        truncated=answers.truncated(outcome.truncated, events_left_out),
        cause=answers.cause(outcome.cause),
        state_preserved=UNSET if outcome.state_preserved and outcome.cause is None else outcome.state_preserved,
        hint=outcome.hint or UNSET,
        late_output=outcome.late_output or UNSET,
    )


class CommandEvents:
    """Sends the output of one streamed command, then its result."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._events = EventStream(context, self._chunk)

    def __call__(self, text: str) -> None:
        """Send output."""
        self._events.write("terminal", text)

    def answer(self, outcome: CommandOutcome | KernelBridgeError) -> None:
        """Send what is still held back, then the result."""
        left_out = self._events.close()
        context = self._context
        _count(context, outcome)
        context.reply(
            outcome,
            lambda result: terminal_output(context, result, seq=context.seq(), events_left_out=left_out),
        )

    def _chunk(self, _stream: str, text: str, seq: int, left_out: LeftOut) -> TerminalChunk:
        return TerminalChunk(
            **self._context.ids,
            seq=seq,
            text=text,
            left_out=left_out,
        )


HANDLERS: Mapping[type, Handler] = {TerminalCommand: run}
