"""What `execute_code` says is what runs."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import UNSET

from kernelbridge.jupyter.cell import Cell
from kernelbridge.protocol.cells import ExecuteCode
from kernelbridge.server.websocket.handlers.cells import execute
from kernelbridge.server.websocket.handlers.request_context import RequestContext
from kernelbridge.workspace.cells.run import Job


async def job(message: ExecuteCode, *, streams: bool) -> Job:
    """Return what a message queues, from a client that follows its sessions (`streams`) or does not."""
    jobs: list[Job] = []
    context: Any = SimpleNamespace(
        client=SimpleNamespace(streams=streams),
        workspace=SimpleNamespace(executions=SimpleNamespace(submit=jobs.append)),
        request_id=UNSET if message.request_id is None else message.request_id,
        ids={},
    )
    await execute(cast("RequestContext", context), message)
    (found,) = jobs
    return found


async def test_each_field_counts() -> None:
    said = {"silent": True, "store_history": False, "allow_stdin": True, "filename": "f.py"}
    found = await job(
        ExecuteCode(session_id="s", code="1", timeout=2.5, request_id="r", **said),  # type: ignore[arg-type]
        streams=False,
    )
    assert found.cell == Cell(code="1", **said)  # type: ignore[arg-type]
    assert (found.timeout, found.request_id) == (2.5, "r")


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("asked", [True, False, None])
async def test_output_is_streamed_if_the_message_or_else_the_connection_says_so(
    *, streams: bool, asked: bool | None
) -> None:
    found = await job(ExecuteCode(session_id="s", code="1", stream=asked), streams=streams)
    assert found.cell == Cell(code="1", stream=streams if asked is None else asked)
    assert found.request_id is None
