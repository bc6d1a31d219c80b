"""What a request says is what is done: no field is lost on the way."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import UNSET

from kernelbridge.errors import SandboxError
from kernelbridge.jupyter.cell import Cell
from kernelbridge.protocol.cells import ExecuteCode, Interrupt
from kernelbridge.protocol.files import DeleteFile, ListFiles, ReadFile, RenameFile, SaveFile
from kernelbridge.protocol.terminals import TerminalCommand
from kernelbridge.server.websocket.handlers import commands, files
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


class BrokenSession:
    """Notes what it is asked for, and fails."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **more: Any) -> None:
            self.asked.append((name, args, more))
            raise SandboxError("It is broken")

        return ask


@pytest.mark.parametrize(
    ("handler", "message", "asked"),
    [
        (
            commands.run,
            TerminalCommand(session_id="s", command="ls", timeout=2.5, request_id="r"),
            ("submit", ("ls",), {"timeout": 2.5, "request_id": "r", "listen": None}),
        ),
        (
            commands.interrupt,
            Interrupt(session_id="s", target="terminal", queued=True, jobs=True, run_id="r"),
            ("interrupt", (), {"queued": True, "jobs": True, "only": "r"}),
        ),
        (
            files.save,
            SaveFile(session_id="s", filename="f", content="c", encoding="base64", mode="append", if_match="0" * 64),
            ("save", ("f", "c"), {"encoding": "base64", "mode": "append", "if_match": "0" * 64}),
        ),
        (
            files.save,
            SaveFile(session_id="s", filename="f", content="c"),
            ("save", ("f", "c"), {"encoding": "utf-8", "mode": "overwrite", "if_match": None}),
        ),
        (
            files.read,
            ReadFile(session_id="s", filename="f", encoding="base64", offset=3, length=4),
            ("read", ("f",), {"encoding": "base64", "offset": 3, "length": 4}),
        ),
        (
            files.list_,
            ListFiles(session_id="s", path="p", recursive=True, hidden=False),
            ("list", ("p",), {"recursive": True, "hidden": False}),
        ),
        (
            files.list_,
            ListFiles(session_id="s", path="p", recursive=False, hidden=True),
            ("list", ("p",), {"recursive": False, "hidden": True}),
        ),
        (
            files.delete,
            DeleteFile(session_id="s", filename="f", recursive=True),
            ("delete", ("f",), {"recursive": True}),
        ),
        (
            files.rename,
            RenameFile(session_id="s", filename="f", new_filename="g", overwrite=True),
            ("rename", ("f", "g"), {"overwrite": True}),
        ),
    ],
)
async def test_other_requests(handler: Any, message: Any, asked: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    session, answers = BrokenSession(), list[Any]()
    context: Any = SimpleNamespace(
        client=SimpleNamespace(streams=False, refused=lambda *_: None),
        workspace=SimpleNamespace(files=session, commands=session),
        session_id="s",
        request_id=UNSET,
        ids={"session_id": "s", "request_id": UNSET},
        answer=answers.append,
    )
    try:
        await handler(context, message)
    except SandboxError:
        assert answers == []
    else:
        (answer,) = answers
        assert (answer.success, answer.code) == (False, SandboxError.code)
    ((name, args, more),) = session.asked
    assert (name, tuple(each for each in args if not callable(each)), more) == asked
