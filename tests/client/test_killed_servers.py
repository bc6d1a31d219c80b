"""Servers that are killed, stopped, frozen and restarted, and those that want a login."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelbridge import AsyncClient, AsyncSession, Client, ConnectionLost, LoginRefused, SessionLost
from tests.client.servers import PATIENCE, ServerProcess, Wire, until, until_error
from tests.client.test_lost_links import begin, typed

FLAGS = {"linger": "60s"}


async def sessions(client: AsyncClient) -> None:
    with contextlib.suppress(ConnectionLost):  # what was asked as the connection broke
        await client.sessions()


async def is_down(client: AsyncClient) -> bool:
    return not client._core._up


@pytest.fixture
async def session(wire: Wire, user: str) -> AsyncIterator[AsyncSession]:
    async with AsyncClient(wire.url, user_id=user, reconnect=PATIENCE) as client:
        yield client.session("s")


async def test_a_run_outlives_a_server_that_is_killed(server: ServerProcess, session: AsyncSession) -> None:
    await session.run("x = 'kept'")
    run, begun = await begin(session)
    terminal = await session.terminal(name="main")
    await terminal.write("echo $((40 + 2))\r")
    while "42" not in await terminal.read(wait=PATIENCE):
        pass
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    await session.files.write("go", "")
    assert await asyncio.wait_for(run, PATIENCE) == "begun\ndone\n"
    assert begun.text.endswith("done\n")
    assert await session.files["runs"].read_text() == "x"
    assert (await session.run("x")).text == "'kept'\n"
    await until(lambda: typed(terminal, "echo $((40 + 3)); exit\r"))
    assert "43" in "".join([text async for text in terminal])


async def test_a_server_that_stops_ends_what_runs_and_says_so(server: ServerProcess, session: AsyncSession) -> None:
    run, _ = await begin(session)
    await asyncio.to_thread(server.stop)
    assert await asyncio.wait_for(run, PATIENCE) == "begun\n"
    await asyncio.to_thread(server.start)
    with pytest.raises(SessionLost, match="its files are kept"):
        await session.run("1")
    assert (await session.run("import os; os.path.exists('runs')")).text == "True\n"


async def test_a_frozen_server_is_left_and_found_again(server: ServerProcess, user: str) -> None:
    async with AsyncClient(server.url, user_id=user, heartbeat=1.0, reconnect=PATIENCE) as client:
        session = client.session()
        run, _ = await begin(session)
        server.freeze()
        try:
            await until(lambda: is_down(client))
        finally:
            server.thaw()
        await session.files.write("go", "")
        assert await asyncio.wait_for(run, PATIENCE) == "begun\ndone\n"
        assert await session.files["runs"].read_text() == "x"
        await session.close(delete_files=True)


async def test_a_token_goes_into_the_header_and_is_asked_for_again(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    token = "t" * 43
    tokens.touch(0o600)
    tokens.write_text(f"ada {token}\n")
    server = await asyncio.to_thread(ServerProcess, tmp_path / "data", auth="token", token_file=str(tokens))
    wire = Wire(server)
    try:
        with pytest.raises(LoginRefused, match="token is absent, wrong, expired or revoked") as caught:
            await AsyncClient(wire.url, token="w" * 43).connect()
        assert caught.value.status == 401
        with pytest.raises(LoginRefused, match="user_id is not the name"):
            await AsyncClient(wire.url, token=token, user_id="grace").connect()
        asked = []

        def current() -> str:
            asked.append(token)
            return token

        async with AsyncClient(wire.url, token=current) as client:
            await asyncio.to_thread(wire.cut)
            assert await client.sessions() == []
            await client.session("s").files.write("a", "b")
            assert len(asked) == 3, "for each connection, and for the file"
            token = "w" * 43
            await asyncio.to_thread(wire.cut)
            with pytest.raises(LoginRefused):
                await until_error(lambda: sessions(client))
        requests = [line for line in bytes(wire.heard).split(b"\r\n") if b" HTTP/1.1" in line]
        assert len(requests) >= 5
        assert not any(b"ttt" in line or b"www" in line for line in requests)
    finally:
        wire.close()
        await asyncio.to_thread(server.end)


def test_a_synchronous_client_survives_a_killed_server(server: ServerProcess, wire: Wire, user: str) -> None:
    with Client(wire.url, user_id=user, reconnect=PATIENCE) as client, client.session() as session:
        session.run("x = 6")
        server.kill()
        server.start()
        assert session.run("x * 7").text == "42\n"
