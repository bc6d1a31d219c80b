"""Requests that run cells, and what is told of them while they run."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from msgspec import UNSET

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent, Cleared, Displayed, Started, Updated, Wrote
from kernelbridge.protocol.cells import (
    ClearOutput,
    DisplayData,
    ExecuteCode,
    ExecutionOutput,
    ExecutionStarted,
    UpdateDisplayData,
)
from kernelbridge.server.websocket.handlers import answers, interpreter
from kernelbridge.server.websocket.handlers.event_stream import EventStream, LeftOut
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.cells.interrupts import Progress
from kernelbridge.workspace.cells.queue import Job


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
    """Give a cell with the way back to whoever asked for it."""
    request_id = None if context.request_id is UNSET else context.request_id
    if cell.stream:
        told = CellEvents(context)
        report = functools.partial(_step, context)
        return Job(cell, told.answer, told, timeout, report, request_id=request_id)
    listener = functools.partial(_asked, context) if cell.allow_stdin else None
    return Job(cell, functools.partial(_executed, context), listener, timeout, request_id=request_id)


def _step(context: RequestContext, progress: Progress | KernelBridgeError) -> None:
    """Tell of one step by which a cell is ended; not that no interpreter starts behind it: it was answered before."""
    if isinstance(progress, Progress):
        interpreter.report(context, progress)


def _asked(context: RequestContext, event: CellEvent) -> None:
    if isinstance(event, Asked):
        interpreter.ask_for_input(context, event)


def _executed(context: RequestContext, outcome: Outcome | KernelBridgeError) -> None:
    if isinstance(outcome, KernelBridgeError):
        context.answer(answers.error_message(outcome, context.session_id, context.request_id))
    else:
        context.answer(answers.execution_result(outcome, context.session_id, context.request_id))


class CellEvents:
    """Listens to one streamed cell and tells whoever asked; then answers."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._session_id = context.session_id
        self._request_id = context.request_id
        self._events = EventStream(context, self._output)

    def __call__(self, event: CellEvent) -> None:
        """Tell of an event."""
        match event:
            case Wrote(stream, text):
                self._events.write(stream, text)
            case Started(count):
                self._events.tell(lambda seq, _: self._started(seq, count))
            case Displayed(size=size):
                self._events.tell(lambda seq, left_out: self._displayed(event, seq, left_out), size)
            case Updated(size=size):
                self._events.tell(lambda seq, left_out: self._updated(event, seq, left_out), size)
            case Asked():
                self._events.flush()
                interpreter.ask_for_input(self._context, event)
            case Cleared(wait):
                self._events.tell(lambda seq, left_out: self._cleared(seq, left_out, wait=wait))

    def answer(self, outcome: Outcome | KernelBridgeError) -> None:
        """Send what is still held back, and the result behind it."""
        left_out = self._events.close()
        if isinstance(outcome, KernelBridgeError):
            self._context.answer(answers.error_message(outcome, self._session_id, self._request_id))
            return
        self._context.answer(
            answers.execution_result(
                outcome, self._session_id, self._request_id, seq=self._context.seq(), events_left_out=left_out
            )
        )

    def _started(self, seq: int, count: int | None) -> ExecutionStarted:
        return ExecutionStarted(
            session_id=self._session_id,
            request_id=self._request_id,
            seq=seq,
            execution_count=UNSET if count is None else count,
            timestamp=answers.timestamp(),
        )

    def _output(self, stream: str, text: str, seq: int, left_out: LeftOut) -> ExecutionOutput:
        return ExecutionOutput(
            session_id=self._session_id,
            request_id=self._request_id,
            seq=seq,
            stream="stderr" if stream == "stderr" else "stdout",
            text=text,
            left_out=left_out,
        )

    def _displayed(self, event: Displayed, seq: int, left_out: LeftOut) -> DisplayData:
        return DisplayData(
            session_id=self._session_id,
            request_id=self._request_id,
            seq=seq,
            data=event.data,
            metadata=event.metadata,
            display_id=UNSET if event.display_id is None else event.display_id,
            result=event.result or UNSET,
            left_out=left_out,
        )

    def _updated(self, event: Updated, seq: int, left_out: LeftOut) -> UpdateDisplayData:
        return UpdateDisplayData(
            session_id=self._session_id,
            request_id=self._request_id,
            seq=seq,
            data=event.data,
            metadata=event.metadata,
            display_id=event.display_id,
            left_out=left_out,
        )

    def _cleared(self, seq: int, left_out: LeftOut, *, wait: bool) -> ClearOutput:
        return ClearOutput(
            session_id=self._session_id, request_id=self._request_id, seq=seq, wait=wait, left_out=left_out
        )


HANDLERS: Mapping[type, Handler] = {ExecuteCode: execute}
