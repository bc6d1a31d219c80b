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
    IsComplete,
    IsCompleteReply,
    KernelRestarted,
    RestartKernel,
)
from kernelbridge.server.websocket.handlers import commands
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.interrupt_progress import InterruptProgress

T = TypeVar("T")


def ask_for_input(context: RequestContext, asked: Asked) -> None:
    """Send `input_request` to the client that ran the cell, and note that it knows of the question."""
    prompt = context.workspace.executions.prompt
    if prompt is None:
        return
    prompt.shown_to.append(context.client)
    context.answer(
        InputRequest(
            **context.ids,
            seq=context.seq(),
            prompt=asked.prompt,
            password=asked.password,
            input_id=asked.input_id,
        )
    )


def remind(context: RequestContext) -> None:
    """Send `input_request` to a client of the session if no connected client knows of the question."""
    prompt = context.workspace.executions.prompt
    if prompt is not None and not prompt.known:
        ask_for_input(RequestContext(context.client, context.workspace, context.session_id, UNSET), prompt.asked)


async def reply_input(context: RequestContext, message: InputReply) -> None:
    """Answer the question of the running cell."""
    context.workspace.executions.reply_input(message.value, message.input_id)


async def interrupt(context: RequestContext, message: Interrupt) -> None:
    """Interrupt what runs; each step is reported."""
    if message.target == "terminal":
        await commands.interrupt(context, message)
    else:
        context.workspace.executions.interrupt(
            lambda progress: report(context, progress),
            queued=message.queued,
            only=message.run_id,
            escalate=message.escalate,
        )


def report(context: RequestContext, progress: InterruptProgress | KernelBridgeError) -> None:
    """Send one step of an interrupt, or the error that ended it."""
    context.reply(progress, lambda step: commands.interrupted(context, step, "execution"))


async def restart(context: RequestContext, _message: RestartKernel) -> None:
    """Start a new interpreter for the session."""

    def answer(ended: int) -> KernelRestarted:
        return KernelRestarted(
            **context.ids,
            seq=context.seq(),
            cause="requested",
            ended=ended,
        )

    context.workspace.executions.restart(lambda ended: context.reply(ended, answer))


async def complete(context: RequestContext, message: Complete) -> None:
    """Complete code at a position."""

    def answer(found: Completion) -> CompleteReply:
        return CompleteReply(
            **context.ids,
            matches=found.matches,
            cursor_start=found.start,
            cursor_end=found.end,
            metadata=found.metadata or UNSET,
        )

    cursor = _cursor(message)
    _question(context, message.code, lambda help_: help_.complete(message.code, cursor), answer)


async def inspect(context: RequestContext, message: Inspect) -> None:
    """Look up the name at a position of code."""

    def answer(found: Inspection) -> InspectReply:
        return InspectReply(
            **context.ids,
            found=found.found,
            text=found.text,
            data=found.data or UNSET,
        )

    cursor = _cursor(message)
    _question(context, message.code, lambda help_: help_.inspect(message.code, cursor, message.detail), answer)


async def is_complete(context: RequestContext, message: IsComplete) -> None:
    """Check whether code can be run as it is."""

    def answer(found: Judgement) -> IsCompleteReply:
        return IsCompleteReply(
            **context.ids,
            status=found.status,
            indent=found.indent if found.status == "incomplete" else UNSET,
        )

    _question(context, message.code, lambda help_: help_.is_complete(message.code), answer)


def _question(
    context: RequestContext, code: str, ask: Callable[[Help], Awaitable[T]], answer: Callable[[T], ServerMessage]
) -> None:
    """Ask the kernel about `code`, and send what `answer` makes of its reply."""
    context.workspace.executions.question(code, ask, lambda found: context.reply(found, answer))


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


HANDLERS: Mapping[type, Handler] = {
    InputReply: reply_input,
    Interrupt: interrupt,
    RestartKernel: restart,
    Complete: complete,
    Inspect: inspect,
    IsComplete: is_complete,
}
