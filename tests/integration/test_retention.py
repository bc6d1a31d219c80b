"""Files of sessions that nobody uses, deleted by a real server; those of the others stay."""

import asyncio
from collections.abc import Callable

import pytest

from tests.integration.conftest import PATIENCE, RunningServer, StartServer
from tests.integration.test_transfers import fetch, root

pytestmark = pytest.mark.parametrize("runtime_name", ["local"])


async def until(there: Callable[[], bool], server: RunningServer) -> None:
    """Look again and again, and download a file of the session `fetched` each time."""
    async with asyncio.timeout(PATIENCE):
        while not there():
            response = await fetch(server, "file", session="fetched")
            assert (response.status, await response.read()) == (200, b"x")


async def test_files_expire_when_nobody_uses_them(start_server: StartServer) -> None:
    server = await start_server(retain="2s")
    async with server.connect("u") as client:
        assert (await client.run("x = 41", session="open"))["success"]
        for session in ("open", "fetched"):
            await client.ask(type="save_file", sessionId=session, filename="file", content="x")
        await client.ask(type="close_session", sessionId="fetched")
        async with server.connect("u") as guest:
            assert (await guest.shell("echo y > file", session="unused"))["exitCode"] == 0
            await guest.ask(type="close_session", sessionId="unused")
        unused = root(server, session="unused")
        assert unused.is_dir()
        await until(lambda: not unused.parent.exists(), server)
        frame = await client.ask(type="list_sessions")
        assert sorted(row["sessionId"] for row in frame["sessions"] if row["stored"]) == ["fetched", "open"]
        assert (await client.run("print(x, open('file').read())", session="open"))["output"] == "41 x\n"
        # Whoever comes back has an empty session.
        assert (await client.shell("ls", session="unused"))["output"] == ""
    # A file that arrives, and nothing else, is a use as well.
    assert (await fetch(server, "file", "PUT", session="sent", data=b"z")).status == 201
    await until(lambda: not root(server, session="open").parent.exists(), server)
    await until(lambda: not root(server, session="sent").parent.exists(), server)
