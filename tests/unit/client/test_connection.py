"""The addresses of a server, and connections that end in unusual ways."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from yarl import URL

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
