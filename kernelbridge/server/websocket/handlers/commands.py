"""Requests about the session's persistent shell."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from msgspec import UNSET

from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol.cells import Interrupt, Interrupted
from kernelbridge.protocol.terminals import TerminalChunk, TerminalCommand
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.server.websocket.handlers.event_stream import EventStream, LeftOut
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.shell.lane import CommandDone, Interruption


async def run(context: RequestContext, message: TerminalCommand) -> None:
    """Queue a terminal command."""
    streams = context.client.streams if message.stream is None else message.stream
    told = CommandEvents(context) if streams else None
    context.workspace.commands.submit(
        message.command,
        answer_of(context) if told is None else told.answer,
        timeout=message.timeout,
        listen=told,
        request_id=message.request_id,
    )


def answer_of(context: RequestContext) -> CommandDone:
    """Give what answers a command that is not streamed."""
    return functools.partial(_ran, context)


async def interrupt(context: RequestContext, message: Interrupt) -> None:
    """End the running terminal command; each step is told."""

    def tell(interruption: Interruption) -> None:
        done = interruption.done
        context.answer(
            Interrupted(
                session_id=context.session_id,
                request_id=context.request_id,
                seq=context.seq(),
                target="terminal",
                step=interruption.step,
                done=done,
                state_preserved=interruption.state_preserved if done else UNSET,
                ended=interruption.ended if done and message.queued else UNSET,
            )
        )

    context.workspace.commands.interrupt(tell, queued=message.queued, jobs=message.jobs)


def _ran(context: RequestContext, outcome: CommandOutcome | KernelBridgeError) -> None:
    if isinstance(outcome, KernelBridgeError):
        context.answer(answers.error_message(outcome, context.session_id, context.request_id))
    else:
        context.answer(answers.terminal_output(outcome, context.session_id, context.request_id))


class CommandEvents:
    """Listens to one streamed command and tells whoever asked; then answers."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._events = EventStream(context, self._chunk)

    def __call__(self, text: str) -> None:
        """Tell of output."""
        self._events.write("terminal", text)

    def answer(self, outcome: CommandOutcome | KernelBridgeError) -> None:
        """Send what is still held back, and the result behind it."""
        left_out = self._events.close()
        context = self._context
        if isinstance(outcome, KernelBridgeError):
            context.answer(answers.error_message(outcome, context.session_id, context.request_id))
            return
        context.answer(
            answers.terminal_output(
                outcome, context.session_id, context.request_id, seq=context.seq(), events_left_out=left_out
            )
        )

    def _chunk(self, _stream: str, text: str, seq: int, left_out: LeftOut) -> TerminalChunk:
        return TerminalChunk(
            session_id=self._context.session_id,
            request_id=self._context.request_id,
            seq=seq,
            text=text,
            left_out=left_out,
        )


HANDLERS: Mapping[type, Handler] = {TerminalCommand: run}
