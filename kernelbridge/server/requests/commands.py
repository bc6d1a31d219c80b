"""Requests about the session's persistent shell."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol.terminals import TerminalCommand
from kernelbridge.server import answers
from kernelbridge.server.client import Asker, Handler
from kernelbridge.workspace.shell import CommandOutcome


async def run(asker: Asker, message: TerminalCommand) -> None:
    """Queue a terminal command."""
    asker.workspace.command(message.command, functools.partial(_ran, asker))


def _ran(asker: Asker, outcome: CommandOutcome | KernelBridgeError) -> None:
    if isinstance(outcome, KernelBridgeError):
        asker.answer(answers.error_message(outcome, asker.session_id, asker.request_id))
    else:
        asker.answer(answers.terminal_output(outcome, asker.session_id, asker.request_id))


HANDLERS: Mapping[type, Handler] = {TerminalCommand: run}
