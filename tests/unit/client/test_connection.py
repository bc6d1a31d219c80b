"""The addresses of a server, and connections that end in unusual ways."""

import asyncio
import threading
from collections.abc import Awaitable, Iterable
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import pytest
from yarl import URL

from kernelbridge import AsyncClient, Closed, LoginRefused
from kernelbridge.client import connection
from kernelbridge.client.connection import Link, Target
from kernelbridge.client.core import Core, Effect, Kind, Settled
from kernelbridge.client.errors import ConnectionLost, RequestRefused

PATIENCE = 10.0

TARGET = Target("ws://host:1/below", user_id="ada")


@pytest.mark.parametrize(
    ("session_id", "path"),
    [
        ("mine", "../../other/files/secret"),
        ("mine", "a/../../../other/files/secret"),
        ("mine", "./../x"),
        ("mine", "a/./b"),
        ("mine", ".."),
        ("mine", "."),
        ("mine", "./"),
        ("mine", ""),
        ("mine", "/etc/passwd"),
        ("..", "x"),
        (".", "x"),
        ("", "x"),
        ("victim/files/a?/..", "x"),
        ("a b", "x"),
    ],
)
def test_no_address_of_a_file_leads_out_of_its_session(session_id: str, path: str) -> None:
    with pytest.raises(RequestRefused, match="The file name cannot be used") as caught:
        TARGET.file(session_id, path)
    assert caught.value.code == "invalid_field"


@pytest.mark.parametrize(
    ("path", "written"),
    [("./a", "a"), (".//./a", "a"), ("a..b/.c", "a..b/.c"), ("..%2Fa", "..%252Fa"), ("a b/ä?#", "a%20b/%C3%A4%3F%23")],
)
def test_an_address_keeps_the_path(path: str, written: str) -> None:
    address = URL(TARGET.file("mine", path))
    assert address.raw_path == f"/below/api/sessions/mine/files/{written}"
    assert address.query_string == "user_id=ada"


class DeafSocket:
    """A connection that takes nothing, and from which one frame comes that is none."""

    close_code = 1000

    async def receive(self) -> Any:
        await asyncio.sleep(0)
        return SimpleNamespace(type=aiohttp.WSMsgType.TEXT, data='["no", "object"]')

    async def send_str(self, _text: str) -> None:
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        pass


async def test_nothing_that_failed_with_a_frame_that_is_none_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    core, ended = Core("me"), asyncio.Event()
    outcomes: dict[str, Any] = {}

    def deliver(effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Settled):
                outcomes[effect.request.id] = effect.outcome
                ended.set()

    async def dial() -> DeafSocket:
        return DeafSocket()

    core.use("s", {}, own_linger=True)
    run = core.submit({"type": "execute_code", "sessionId": "s"}, Kind.RUN)
    deletion = core.submit({"type": "close_session", "sessionId": "another"}, Kind.CHANGE)
    link = Link(TARGET, core, deliver, heartbeat=20, reconnect=None)
    monkeypatch.setattr(link, "_dial", dial)
    await link.connect()
    await asyncio.wait_for(ended.wait(), PATIENCE)
    await link.close()
    assert {each: type(error) for each, error in outcomes.items()} == dict.fromkeys(
        [run.id, deletion.id], ConnectionLost
    )
    assert not core.ready
    core.submit({"type": "execute_code", "sessionId": "s"}, Kind.RUN)
    core.link_up()
    assert [core.take()["type"], core.take()] == ["open_session", None]  # type: ignore[index]


class ShortSocket:
    """A connection that is there, and ends at once; or when it is told to."""

    close_code = 1013

    def __init__(self, ends: asyncio.Event | None = None) -> None:
        self.ends = ends
        self.served = asyncio.Event()
        self.frames = ['{"type": "connected"}']

    async def receive(self) -> Any:
        if self.frames:
            return SimpleNamespace(type=aiohttp.WSMsgType.TEXT, data=self.frames.pop())
        self.served.set()
        if self.ends is not None:
            await self.ends.wait()
        return SimpleNamespace(type=aiohttp.WSMsgType.CLOSE, extra="")

    async def close(self) -> None:
        pass


async def test_pauses_grow_until_a_connection_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.001)
    link = Link(TARGET, Core("me"), lambda _: None, heartbeat=20, reconnect=None)
    ends = asyncio.Event()
    sockets = [*(ShortSocket() for _ in range(5)), ShortSocket(ends), ShortSocket(asyncio.Event())]
    pauses: list[float] = []

    async def connect(*_: object, **__: object) -> ShortSocket:
        pauses.append(link._pause)
        return sockets[len(pauses) - 1]

    monkeypatch.setattr(link.http, "ws_connect", connect)
    await link.connect()
    await asyncio.wait_for(sockets[5].served.wait(), PATIENCE)
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032]
    link._served_at -= connection.LASTED  # as if it had
    ends.set()
    await asyncio.wait_for(sockets[6].served.wait(), PATIENCE)
    assert pauses[-1] == 0.002
    await link.close()


async def test_a_function_for_the_token_that_fails_in_an_outage_is_called_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = asyncio.Event()
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise RuntimeError("no network")
        return "secret"

    async def connect(*_: object, **__: object) -> ShortSocket:
        if asked > 2:
            again.set()
        return ShortSocket(asyncio.Event() if asked > 2 else None)

    link = Link(Target("ws://host", token), Core("me"), lambda _: None, heartbeat=20, reconnect=None)
    monkeypatch.setattr(link.http, "ws_connect", connect)
    await link.connect()
    await asyncio.wait_for(again.wait(), PATIENCE)
    assert asked == 3
    await link.close()


async def test_a_function_for_the_token_may_block_and_the_loop_goes_on() -> None:
    may_return = threading.Event()

    def blocks() -> str:
        assert may_return.wait(PATIENCE)
        return "secret"

    login = asyncio.create_task(Target("ws://host", blocks).login())
    await asyncio.sleep(0)  # it is called
    may_return.set()  # nothing gets here while the loop is blocked
    assert await login == {"Authorization": "Bearer secret"}


async def test_a_function_for_the_token_may_be_a_coroutine_function() -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return "secret"

    def returns() -> Awaitable[str]:
        return token()

    for function in (token, returns):
        assert await Target("ws://host", function).login() == {"Authorization": "Bearer secret"}


async def test_a_function_for_the_token_that_does_not_return_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE", 0.01)
    may_return = threading.Event()

    def blocks() -> str:
        may_return.wait(PATIENCE)
        return "late"

    with pytest.raises(ConnectionLost, match="took more than"):
        await Target("ws://host", blocks).login()
    may_return.set()


async def test_a_function_for_the_token_that_fails_is_an_error_of_the_connection_and_its_own_refusal_stays() -> None:
    def fails() -> str:
        raise OSError("no network")

    def stops() -> str:
        raise StopIteration

    def refuses() -> str:
        raise LoginRefused("You are logged out", "log in again")

    with pytest.raises(ConnectionLost, match="no network"):
        await Target("ws://host", fails).login()
    with pytest.raises(ConnectionLost, match="StopIteration"):
        await Target("ws://host", stops).login()
    with pytest.raises(LoginRefused, match="You are logged out"):
        await Target("ws://host", refuses).login()


@pytest.mark.parametrize("token", ["kb_SECRET\n# comment", "kb_SECRET ", "kb_SECRÉT", "kb_SECR\0ET"])
async def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(LoginRefused, match="The token cannot be sent") as caught:
        await Target("ws://host", lambda: token).login()
    assert "SECR" not in str(caught.value)


@pytest.mark.parametrize("url", ["wsx://ada:SECRET@host", "host?token=SECRET", "ws://ada:SECRET@host"])
def test_an_address_that_is_refused_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        Target(url)
    assert "SECRET" not in str(caught.value)


async def nobody_listens() -> str:
    """Return the address of a port on which nothing listens."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"ws://127.0.0.1:{port}"


async def test_all_tasks_learn_that_there_is_no_server() -> None:
    client = AsyncClient(await nobody_listens())
    runs = (client.session(f"s{number}").run("1") for number in range(3))
    errors = await asyncio.gather(*runs, return_exceptions=True)
    assert [type(error) for error in errors] == [ConnectionLost] * 3
    with pytest.raises(ConnectionLost):
        await client.sessions()
    await client.close()


class Silent:
    """A server that accepts connections and answers nothing."""

    def __init__(self) -> None:
        self.accepted = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        self.refuses = False

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def accept(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.accepted.set()
        if self.refuses:
            writer.transport.abort()

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()
        self.server.close()

    def hang_up(self) -> None:
        self.refuses = True  # also the second attempt of the HTTP client
        for writer in self.writers:
            writer.transport.abort()

    async def answer(self, text: bytes) -> None:
        self.writers[-1].write(text)
        await self.writers[-1].drain()


async def test_a_task_that_is_cancelled_as_it_connects_does_not_disturb_the_others() -> None:
    async with Silent() as server:
        client = AsyncClient(server.url)
        first, *others = (asyncio.create_task(client.sessions()) for _ in range(3))
        await server.accepted.wait()
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        server.hang_up()
        errors = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), PATIENCE)
        assert [type(error) for error in errors] == [ConnectionLost] * 2
        await client.close()


async def test_the_next_task_connects_anew_when_all_were_cancelled() -> None:
    async with Silent() as server:
        client = AsyncClient(server.url)
        first = asyncio.create_task(client.sessions())
        await server.accepted.wait()
        server.accepted.clear()
        first.cancel()
        await asyncio.wait([first])
        again = asyncio.create_task(client.sessions())
        await asyncio.wait_for(server.accepted.wait(), PATIENCE)
        await client.close()
        with pytest.raises(Closed):
            await asyncio.wait_for(again, PATIENCE)


async def test_an_error_of_the_login_does_not_hold_the_token() -> None:
    async with Silent() as server:
        client = AsyncClient(server.url, token="secret-token")
        connecting = asyncio.create_task(client.connect())
        await server.accepted.wait()
        await server.answer(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(LoginRefused) as caught:
            await asyncio.wait_for(connecting, PATIENCE)
        found: BaseException | None = caught.value
        while found is not None:
            assert "secret-token" not in repr(found)
            found = found.__cause__ or found.__context__


async def test_a_client_whose_loop_has_ended_connects_again() -> None:
    client = AsyncClient("ws://127.0.0.1:1")
    ended = asyncio.new_event_loop()
    ended.close()
    client._link = SimpleNamespace(loop=ended, usable=True)  # type: ignore[assignment]
    link = await client._linked()
    assert link.loop is asyncio.get_running_loop()
    assert await client._linked() is link
    await client.close()
