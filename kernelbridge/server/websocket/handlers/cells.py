"""Requests that run cells, and the events of those that stream."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent, Cleared, Displayed, Started, Updated, Wrote
from kernelbridge.protocol.base import timestamp
from kernelbridge.protocol.cells import (
    ClearOutput,
    DisplayData,
    ExecuteCode,
    ExecutionOutput,
    ExecutionResult,
    ExecutionStarted,
    UpdateDisplayData,
)
from kernelbridge.server.websocket.handlers import answers, interpreter
from kernelbridge.server.websocket.handlers.event_stream import EventStream, LeftOut
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.cells.run import Job
from kernelbridge.workspace.interrupt_progress import InterruptProgress


async def execute(context: RequestContext, message: ExecuteCode) -> None:
    """Queue a cell."""
    streamed = context.client.streams if message.stream is None else message.stream
    cell = Cell(
        code=message.code,
        filename=message.filename or "main.py",
        silent=message.silent,
        store_history=message.store_history,
        allow_stdin=message.allow_stdin,
        stream=streamed,
    )
    context.workspace.executions.submit(job_of(context, cell, message.timeout))


def job_of(context: RequestContext, cell: Cell, timeout: float | None) -> Job:
    """Return the queue's entry for a cell, whose events and result go back to its client."""
    request_id = None if context.request_id is UNSET else context.request_id
    if cell.stream:
        events = CellEvents(context)
        report = functools.partial(_report_step, context)
        return Job(cell, events.answer, events, timeout, report, request_id=request_id)

    def ask(event: CellEvent) -> None:
        if isinstance(event, Asked):
            interpreter.ask_for_input(context, event)

    def answer(outcome: Outcome | KernelBridgeError) -> None:
        _count(context, outcome)
        context.reply(outcome, lambda result: execution_result(context, result))

    return Job(cell, answer, ask if cell.allow_stdin else None, timeout, request_id=request_id)


def _count(context: RequestContext, outcome: Outcome | KernelBridgeError) -> None:
    metrics = context.client.registry.metrics
    if isinstance(outcome, KernelBridgeError):
        metrics.cell_ended("refused", outcome.code)
    else:
        metrics.cell_ended("ok" if outcome.success else "failed", outcome.cause)


def _report_step(context: RequestContext, progress: InterruptProgress | KernelBridgeError) -> None:
    """Report one step of ending a cell. An error only says that no new interpreter started; the cell was answered."""
    if isinstance(progress, InterruptProgress):
        interpreter.report(context, progress)


def execution_result(
    context: RequestContext, outcome: Outcome, *, seq: int | UnsetType = UNSET, events_left_out: int = 0
) -> ExecutionResult:
    """Return the answer to `execute_code`.

    For a cell that streams, `seq` is its number and `events_left_out` how many bytes its events left out.
    """
    return ExecutionResult(
        success=outcome.success,
        output=outcome.json.get("output", outcome.output),
        error=outcome.error,
        timestamp=timestamp(),
        **context.ids,
        seq=seq,
        # No text twice: the copy of a large one would fill half of the frame.
        stdout=UNSET if outcome.stdout == outcome.output else outcome.json.get("stdout", outcome.stdout),
        stderr=outcome.json.get("stderr", outcome.stderr) or UNSET,
        results=outcome.json.get("results", outcome.results),
        traceback=outcome.json.get("traceback", outcome.traceback) or UNSET,
        execution_count=UNSET if outcome.execution_count is None else outcome.execution_count,
        duration_ms=round(outcome.duration_ms, 3),
        cpu_ms=UNSET if outcome.cpu_ms is None else round(outcome.cpu_ms, 3),
        late_output=outcome.late_output or UNSET,
        hint=outcome.hint or UNSET,
        truncated=answers.truncated(outcome.truncated, events_left_out),
        cause=answers.cause(outcome.cause),
        exit_code=UNSET if outcome.exit_code is None else outcome.exit_code,
        signal=outcome.signal or UNSET,
        state_preserved=UNSET if outcome.state_preserved and outcome.cause is None else outcome.state_preserved,
    )


class CellEvents:
    """Sends the events of one streamed cell, then its result."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._ids = context.ids
        self._events = EventStream(context, self._output)

    def __call__(self, event: CellEvent) -> None:
        """Send an event."""
        match event:
            case Wrote(stream, text):
                self._events.write(stream, text)
            case Started(count):
                self._events.send(lambda seq, _: self._started(seq, count))
            case Displayed(size=size):
                self._events.send(lambda seq, left_out: self._displayed(event, seq, left_out), size)
            case Updated(size=size):
                self._events.send(lambda seq, left_out: self._updated(event, seq, left_out), size)
            case Asked():
                self._events.flush()
                interpreter.ask_for_input(self._context, event)
            case Cleared(wait):
                self._events.send(lambda seq, left_out: self._cleared(seq, left_out, wait=wait))

    def answer(self, outcome: Outcome | KernelBridgeError) -> None:
        """Send what is still held back, then the result."""
        left_out = self._events.close()
        context = self._context
        _count(context, outcome)
        context.reply(
            outcome,
            lambda result: execution_result(context, result, seq=context.seq(), events_left_out=left_out),
        )

    def _started(self, seq: int, count: int | None) -> ExecutionStarted:
        return ExecutionStarted(
            **self._ids,
            seq=seq,
            execution_count=UNSET if count is None else count,
            timestamp=timestamp(),
        )

    def _output(self, stream: str, text: str, seq: int, left_out: LeftOut) -> ExecutionOutput:
        return ExecutionOutput(
            **self._ids,
            seq=seq,
            stream="stderr" if stream == "stderr" else "stdout",
            text=text,
            left_out=left_out,
        )

    def _displayed(self, event: Displayed, seq: int, left_out: LeftOut) -> DisplayData:
        return DisplayData(
            **self._ids,
            seq=seq,
            data=event.data,
            metadata=event.metadata,
            display_id=UNSET if event.display_id is None else event.display_id,
            result=event.result or UNSET,
            left_out=left_out,
        )

    def _updated(self, event: Updated, seq: int, left_out: LeftOut) -> UpdateDisplayData:
        return UpdateDisplayData(
            **self._ids,
            seq=seq,
            data=event.data,
            metadata=event.metadata,
            display_id=event.display_id,
            left_out=left_out,
        )

    def _cleared(self, seq: int, left_out: LeftOut, *, wait: bool) -> ClearOutput:
        return ClearOutput(**self._ids, seq=seq, wait=wait, left_out=left_out)


HANDLERS: Mapping[type, Handler] = {ExecuteCode: execute}
