"""Requests about the interpreter."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.execution import Cell, Outcome
from kernelbridge.protocol.cells import ExecuteCode
from kernelbridge.server import answers
from kernelbridge.server.client import Asker, Handler


async def execute(asker: Asker, message: ExecuteCode) -> None:
    """Queue a cell."""
    cell = Cell(code=message.code, filename=message.filename or "main.py")
    asker.workspace.execute(cell, functools.partial(_executed, asker))


def _executed(asker: Asker, outcome: Outcome | KernelBridgeError) -> None:
    if isinstance(outcome, KernelBridgeError):
        asker.answer(answers.error_message(outcome, asker.session_id, asker.request_id))
    else:
        asker.answer(answers.execution_result(outcome, asker.session_id, asker.request_id))


HANDLERS: Mapping[type, Handler] = {ExecuteCode: execute}
