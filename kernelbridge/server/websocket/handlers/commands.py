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
from kernelbridge.server.websocket.handlers.request_context import Asker, Handler
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.shell.lane import CommandDone, Interruption


async def run(asker: Asker, message: TerminalCommand) -> None:
    """Queue a terminal command."""
    streams = asker.client.streams if message.stream is None else message.stream
    told = CommandEvents(asker) if streams else None
    asker.workspace.commands.submit(
        message.command,
        answer_of(asker) if told is None else told.answer,
        timeout=message.timeout,
        listen=told,
        request_id=message.request_id,
    )


def answer_of(asker: Asker) -> CommandDone:
    """Give what answers a command that is not streamed."""
    return functools.partial(_ran, asker)


async def interrupt(asker: Asker, message: Interrupt) -> None:
    """End the running terminal command; each step is told."""

    def tell(interruption: Interruption) -> None:
        done = interruption.done
        asker.answer(
            Interrupted(
                session_id=asker.session_id,
                request_id=asker.request_id,
                seq=asker.seq(),
                target="terminal",
                step=interruption.step,
                done=done,
                state_preserved=interruption.state_preserved if done else UNSET,
                ended=interruption.ended if done and message.queued else UNSET,
            )
        )

    asker.workspace.commands.interrupt(tell, queued=message.queued, jobs=message.jobs)


def _ran(asker: Asker, outcome: CommandOutcome | KernelBridgeError) -> None:
    if isinstance(outcome, KernelBridgeError):
        asker.answer(answers.error_message(outcome, asker.session_id, asker.request_id))
    else:
        asker.answer(answers.terminal_output(outcome, asker.session_id, asker.request_id))


class CommandEvents:
    """Listens to one streamed command and tells whoever asked; then answers."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._events = EventStream(asker, self._chunk)

    def __call__(self, text: str) -> None:
        """Tell of output."""
        self._events.write("terminal", text)

    def answer(self, outcome: CommandOutcome | KernelBridgeError) -> None:
        """Send what is still held back, and the result behind it."""
        left_out = self._events.close()
        asker = self._asker
        if isinstance(outcome, KernelBridgeError):
            asker.answer(answers.error_message(outcome, asker.session_id, asker.request_id))
            return
        asker.answer(
            answers.terminal_output(
                outcome, asker.session_id, asker.request_id, seq=asker.seq(), events_left_out=left_out
            )
        )

    def _chunk(self, _stream: str, text: str, seq: int, left_out: LeftOut) -> TerminalChunk:
        return TerminalChunk(
            session_id=self._asker.session_id,
            request_id=self._asker.request_id,
            seq=seq,
            text=text,
            left_out=left_out,
        )


HANDLERS: Mapping[type, Handler] = {TerminalCommand: run}
