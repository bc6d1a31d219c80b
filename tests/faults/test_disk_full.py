"""A disk without room: every request is answered with what is true, nothing is lost, and nothing is left over."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.session_key import SessionKey
from tests.faults.full_disk import SmallDisk, small_disk
from tests.integration.conftest import Client, Frame, RunningServer, StartServer
from tests.integration.test_lifecycle import containers
from tests.integration.test_transfers import fetch, root

TOLD = 5.0
"""Seconds that are promised for the error of a session that cannot be started."""
OLD, BIG = "old", "x" * 100_000
MUCH = 1 << 20
"""Characters of output, which are too many for a result of these servers."""
FILL = """
import os
with open('ballast', 'wb', buffering=0) as file:
    try:
        while True:
            file.write(b'x' * 4096)
    except OSError as exc:
        print(exc.strerror)
"""

every_disk = pytest.mark.parametrize("full_of", ["bytes", "names"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "data") as disk:
        yield disk


@pytest.fixture
async def full_server(disk: SmallDisk, start_server: StartServer) -> RunningServer:
    """A server whose data directory is a small disk; it is stopped before that is taken away."""
    return await start_server(data_dir=str(disk.root), max_output="100k")


def left(server: RunningServer) -> tuple[list[str], list[str]]:
    """All names in the data directory, but for those that fill it, and all containers."""
    names = [str(path.relative_to(server.data_dir)) for path in sorted(server.data_dir.rglob("*"))]
    names = [name for name in names if not name.startswith("ballast")]
    return names, containers(server.data_dir) if server.runtime == "docker" else []


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@asynccontextmanager
async def full(disk: SmallDisk, of: str) -> AsyncIterator[None]:
    await asyncio.to_thread(disk.fill, of)
    try:
        yield
    finally:
        await asyncio.to_thread(disk.free)


async def save(client: Client, filename: str, content: str, session: str = "s", **more: Any) -> Frame:
    return await client.ask(type="save_file", sessionId=session, filename=filename, content=content, **more)


def changes(full_of: str) -> list[dict[str, str]]:
    """What needs room on a disk that has none: bytes or names."""
    encoded = base64.b64encode(BIG.encode()).decode()
    needs_bytes = [
        {"type": "save_file", "filename": "kept", "content": BIG},
        {"type": "save_file", "filename": "kept", "content": encoded, "encoding": "base64"},
        {"type": "save_file", "filename": "new", "content": BIG, "mode": "create"},
        {"type": "save_file", "filename": "appended", "content": BIG, "mode": "append"},
    ]
    needs_names = [
        {"type": "save_file", "filename": "a/b", "content": "x"},
        {"type": "rename_file", "filename": "kept", "newFilename": "c/d/kept"},
        {"type": "make_directory", "filename": "e/f"},
    ]
    return needs_bytes + (needs_names if full_of == "names" else [])


@every_disk
async def test_what_does_not_fit_changes_nothing_and_leaves_nothing(
    full_server: RunningServer, disk: SmallDisk, full_of: str
) -> None:
    async with full_server.connect("u") as client:
        for name in ("kept", "appended"):
            assert (await save(client, name, OLD))["success"]
        before = left(full_server)
        async with full(disk, full_of):
            for message in changes(full_of):
                frame = await client.ask(sessionId="s", **message)
                assert (frame["success"], frame["code"]) == (False, "disk_full"), message
                assert "the disk that holds the workspace is full; delete files" in frame["message"]
            response = await fetch(full_server, "new", "PUT", data=BIG.encode())
            told = await response.json()
            assert (response.status, told["code"], told["retryable"]) == (507, "disk_full", True)
            assert "is full" in told["error"]
            assert left(full_server) == before
            assert files(root(full_server)) == {"kept": b"old", "appended": b"old"}
            # Reading and deleting take no room.
            assert (await client.ask(type="read_file", sessionId="s", filename="kept"))["content"] == OLD
        for message in changes(full_of):
            assert (await client.ask(sessionId="s", **message))["success"], message
        assert (await fetch(full_server, "uploaded", "PUT", data=BIG.encode())).status == 201
        assert files(root(full_server))["appended"] == (OLD + BIG).encode()


@every_disk
async def test_a_session_that_cannot_be_started_says_so_and_leaves_nothing(
    full_server: RunningServer, disk: SmallDisk, full_of: str
) -> None:
    async with full_server.connect("u") as client:
        assert (await save(client, "kept", OLD, session="old"))["success"]
        await client.run("1", session="old")
        await client.ask(type="close_session", sessionId="old")
        before = left(full_server)
        async with full(disk, full_of):
            for session in ("new", "old"):
                for message in (
                    {"type": "execute_code", "code": "1"},
                    {"type": "terminal_command", "command": "ls"},
                    {"type": "open_terminal"},
                    {"type": "open_session"},
                ):
                    async with asyncio.timeout(TOLD):
                        frame = await client.ask(sessionId=session, **message)
                    assert (frame["type"], frame["code"], frame["retryable"]) == ("error", "disk_full", True), frame
                    assert "the disk of the server's data directory is full; delete files" in frame["error"]
                    assert left(full_server) == before
            assert not (await save(client, "x", OLD, session="new"))["success"]
            assert (await fetch(full_server, "x", "PUT", session="new", data=b"x")).status == 507
            assert left(full_server) == before
            assert (await client.ask(type="read_file", sessionId="old", filename="kept"))["content"] == OLD
            assert (await client.ask(type="delete_file", sessionId="old", filename="kept"))["success"]
        for session in ("new", "old"):
            assert (await client.run("print(6 * 7)", session=session))["output"] == "42\n"
            assert (await client.shell("echo ok", session=session))["output"] == "ok\n"


@every_disk
async def test_what_runs_is_answered_and_says_what_is_missing(
    full_server: RunningServer, disk: SmallDisk, full_of: str
) -> None:
    async with full_server.connect("u") as client:
        await client.run("x = 41")
        await client.shell("cd /tmp")
        async with full(disk, full_of):
            assert (await client.run("print(x)"))["output"] == "41\n"
            assert (await client.shell("pwd"))["output"] == "/tmp\n"
            cell, command = await client.run(f"print('x' * {MUCH})"), await client.shell(f"yes | head -c {MUCH}")
            assert (cell["success"], command["exitCode"]) == (True, 0)
            for frame, length in ((cell, MUCH + 1), (command, MUCH)):
                assert frame["truncated"]["bytes"] + len(frame["output"]) == length
                assert frame["truncated"].get("fileComplete") is not True
            # A shell that ends is followed by another, and a command of many lines is one.
            assert (await client.shell("exit 3"))["exitCode"] == 3
            lines = "\n".join(f"echo {number}" for number in range(300))
            assert (await client.shell(lines))["output"] == "".join(f"{number}\n" for number in range(300))
            frame = await client.shell("# " + "x" * 100_000)
            if full_of == "bytes":
                assert (frame["code"], frame["retryable"]) == ("terminal_failed", True)
                assert "the disk of the server's data directory is full" in frame["error"]
            else:
                assert frame["exitCode"] == 0  # its file has a name already
            assert (await client.shell("echo on"))["output"] == "on\n"
        assert (await client.shell("# " + "x" * 100_000))["exitCode"] == 0
        truncated = (await client.run(f"print('x' * {MUCH})"))["truncated"]
        assert truncated["fileComplete"]
        assert (root(full_server) / truncated["file"]).stat().st_size == MUCH + 1


@every_disk
async def test_an_interpreter_that_cannot_be_started_is_told_and_a_terminal_opens(
    full_server: RunningServer, disk: SmallDisk, full_of: str
) -> None:
    async with full_server.connect("u") as client:
        await client.shell("true")
        async with full(disk, full_of):
            frame = await client.run("print(1)")
            assert (frame["type"], frame["code"], frame["retryable"]) == ("error", "kernel_failed", True)
            assert "the disk of the server's data directory is full" in frame["error"]
            assert str(disk.root) not in frame["error"]
            async with full_server.connect("u") as person:
                assert (await person.ask(type="open_terminal", sessionId="s"))["type"] == "terminal_opened"
        assert (await client.run("print(1)"))["output"] == "1\n"


async def test_who_has_filled_the_disk_can_empty_it_by_a_command(full_server: RunningServer) -> None:
    async with full_server.connect("u") as client:
        assert "No space left on device" in (await client.run(FILL))["output"]
        assert not (await save(client, "new", BIG))["success"]
        frame = await client.shell("rm ballast && echo gone")  # the first of its shell
        assert (frame["exitCode"], frame["output"]) == (0, "gone\n")
        assert (await save(client, "new", BIG))["success"]


@pytest.fixture
def full_workspace(tmp_path: Path) -> Iterator[SmallDisk]:
    """A session's files on a small disk of their own."""
    home = tmp_path / "data" / "workspaces" / SessionKey(Principal("u"), "s").workspace_id
    with small_disk(home / "files") as disk:
        disk.root.chmod(0o777)
        yield disk


@every_disk
async def test_a_session_whose_own_files_have_no_room_starts_all_the_same(
    full_workspace: SmallDisk, start_server: StartServer, full_of: str
) -> None:
    server = await start_server(max_output="100k")
    async with server.connect("u") as client:
        async with full(full_workspace, full_of):
            frame = await client.run("print(6 * 7)")
            assert (frame["success"], frame["output"]) == (True, "42\n")
            if server.runtime == "local" or full_of == "names":  # the image's python needs a directory, and no file
                assert "packages cannot be installed in this session" in frame["lateOutput"]
            assert (await client.shell("echo ok"))["output"] == "ok\n"
            assert (await save(client, "new", BIG))["code"] == "disk_full"
            frame = await client.run(f"print('x' * {MUCH})")
            assert frame["success"]
            assert frame["truncated"].get("fileComplete") is not True
        assert (await save(client, "new", BIG))["success"]
        assert (await client.run("print(len(open('new').read()))"))["output"] == f"{len(BIG)}\n"
        # The next container can have packages again.
        await client.ask(type="close_session", sessionId="s")
        assert (await client.run("print(1)"))["output"] == "1\n"
