"""Requests about the interpreter itself: input, interrupts, restarts, and questions about code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from msgspec import UNSET

from kernelbridge.errors import BadRequest, KernelBridgeError
from kernelbridge.jupyter.events import Asked
from kernelbridge.jupyter.help import Completion, Help, Inspection, Judgement
from kernelbridge.protocol import ServerMessage
from kernelbridge.protocol.cells import (
    Complete,
    CompleteReply,
    InputReply,
    InputRequest,
    Inspect,
    InspectReply,
    Interrupt,
    Interrupted,
    IsComplete,
    IsCompleteReply,
    KernelRestarted,
    RestartKernel,
)
from kernelbridge.server.websocket.handlers import answers, commands
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.cells.interrupts import Progress

T = TypeVar("T")


def ask_for_input(context: RequestContext, asked: Asked) -> None:
    """Tell whoever ran the cell that it waits for input, and remember that its connection knows."""
    prompt = context.workspace.executions.prompt
    if prompt is None:
        return
    prompt.told.append(context.client)
    context.answer(
        InputRequest(
            session_id=context.session_id,
            request_id=context.request_id,
            seq=context.seq(),
            prompt=asked.prompt,
            password=asked.password,
            input_id=asked.input_id,
        )
    )


def remind(context: RequestContext) -> None:
    """Tell a connection that a cell of the session waits for input, if nobody who is there knows of it."""
    prompt = context.workspace.executions.prompt
    if prompt is not None and not prompt.known:
        ask_for_input(RequestContext(context.client, context.workspace, context.session_id, UNSET), prompt.asked)


async def reply_input(context: RequestContext, message: InputReply) -> None:
    """Give the waiting cell its input."""
    context.workspace.executions.reply_input(message.value, message.input_id)


async def interrupt(context: RequestContext, message: Interrupt) -> None:
    """Interrupt what runs; each step is told."""
    if message.target == "terminal":
        await commands.interrupt(context, message)
    else:
        context.workspace.executions.interrupt(lambda progress: report(context, progress), queued=message.queued)


def report(context: RequestContext, progress: Progress | KernelBridgeError) -> None:
    """Tell of one step of an interrupt."""
    if isinstance(progress, KernelBridgeError):
        _fail(context, progress)
        return
    context.answer(
        Interrupted(
            session_id=context.session_id,
            request_id=context.request_id,
            seq=context.seq(),
            target="execution",
            step=progress.step,
            done=progress.done,
            state_preserved=UNSET if progress.state_preserved is None else progress.state_preserved,
            ended=UNSET if progress.ended is None else progress.ended,
        )
    )


async def restart(context: RequestContext, _message: RestartKernel) -> None:
    """Give the session a new interpreter."""

    def done(ended: int | KernelBridgeError) -> None:
        if isinstance(ended, KernelBridgeError):
            _fail(context, ended)
            return
        context.answer(
            KernelRestarted(
                session_id=context.session_id,
                request_id=context.request_id,
                seq=context.seq(),
                cause="requested",
                ended=ended,
            )
        )

    context.workspace.executions.restart(done)


async def complete(context: RequestContext, message: Complete) -> None:
    """Say how code could go on."""

    def reply(found: Completion) -> CompleteReply:
        return CompleteReply(
            session_id=context.session_id,
            request_id=context.request_id,
            matches=found.matches,
            cursor_start=found.start,
            cursor_end=found.end,
            metadata=found.metadata or UNSET,
        )

    cursor = _cursor(message)
    _question(context, message.code, lambda help_: help_.complete(message.code, cursor), reply)


async def inspect(context: RequestContext, message: Inspect) -> None:
    """Say what is known of a name."""

    def reply(found: Inspection) -> InspectReply:
        return InspectReply(
            session_id=context.session_id,
            request_id=context.request_id,
            found=found.found,
            text=found.text,
            data=found.data or UNSET,
        )

    cursor = _cursor(message)
    _question(context, message.code, lambda help_: help_.inspect(message.code, cursor, message.detail), reply)


async def is_complete(context: RequestContext, message: IsComplete) -> None:
    """Say whether code is ready to be run."""

    def reply(found: Judgement) -> IsCompleteReply:
        return IsCompleteReply(
            session_id=context.session_id,
            request_id=context.request_id,
            status=found.status,
            indent=found.indent if found.status == "incomplete" else UNSET,
        )

    _question(context, message.code, lambda help_: help_.is_complete(message.code), reply)


def _question(
    context: RequestContext, code: str, put: Callable[[Help], Awaitable[T]], reply: Callable[[T], ServerMessage]
) -> None:
    """Put a question about `code` and answer with what `reply` makes of what was found."""

    def done(found: T | KernelBridgeError) -> None:
        if isinstance(found, KernelBridgeError):
            _fail(context, found)
        else:
            context.answer(reply(found))

    context.workspace.executions.question(code, put, done)


def _cursor(message: Complete | Inspect) -> int:
    if message.cursor is None:
        return len(message.code)
    if message.cursor > len(message.code):
        raise BadRequest(
            "The field 'cursor' is wrong",
            f"expected at most {len(message.code)}, the number of characters of 'code'",
            field="cursor",
            code="invalid_field",
        )
    return message.cursor


def _fail(context: RequestContext, error: KernelBridgeError) -> None:
    context.answer(answers.error_message(error, context.session_id, context.request_id))


HANDLERS: Mapping[type, Handler] = {
    InputReply: reply_input,
    Interrupt: interrupt,
    RestartKernel: restart,
    Complete: complete,
    Inspect: inspect,
    IsComplete: is_complete,
}
