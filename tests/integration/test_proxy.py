"""The configuration of docs/how-to/reverse-proxy.md in a real nginx, in front of a server."""

import asyncio
import io
import os
import pwd
import re
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from kernelbridge.server.app import running
from kernelbridge.server.websocket.heartbeat import Patience
from kernelbridge.settings.settings import resolve
from tests.integration.conftest import PATIENCE, RunningServer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "reverse-proxy.md"
READ_TIMEOUT = 2


@dataclass
class Proxied(RunningServer):
    """A server as its clients see it: `url` is the proxy's."""

    origin: str = ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configuration(directory: Path, port: int, upstream: str, *, users: str) -> str:
    """Give nginx the page's own configuration, on a free port and without TLS; `users` is a password file, or empty.

    With users, also the page's line that says who the user is.
    """
    text = PAGE.read_text(encoding="utf-8")
    server, upgrade = re.findall(r"^```nginx\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (who,) = re.findall(r"^set \$args .*;$", text, re.MULTILINE)
    (directory / "users").write_text(users)
    known = f'auth_basic "users"; auth_basic_user_file {directory}/users; {who}' if users else ""
    for old, new in (
        ("location / {", f"location / {{ {known}"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port};"),
        ("http://127.0.0.1:8001", upstream),
        ("proxy_read_timeout 75s", f"proxy_read_timeout {READ_TIMEOUT}s"),
    ):
        assert old in server
        server = server.replace(old, new)
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\npid {directory}/pid;\nerror_log {directory}/error.log info;\nuser {user()};\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{upgrade}{server}}}\n"
    )


def user() -> str:
    """Whose processes nginx's workers are: whoever runs the tests, who has made the directory."""
    return pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
async def start_proxied(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Proxied]]]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert nginx is not None, "install nginx: .ci/setup does"
    async with AsyncExitStack() as stack:

        async def start(patience: Patience, *, users: str = "") -> Proxied:
            port = free_port()
            origin = f"http://app.example.org:{port}"
            data = tmp_path / "data"
            flags = {"runtime": "local", "port": "0", "data_dir": str(data), "linger": "0", "allow_origin": (origin,)}
            report = await stack.enter_async_context(
                running(resolve(flags, {}), on_progress=lambda _line: None, patience=patience)
            )
            directory = tmp_path / "nginx"
            directory.mkdir()
            upstream = report.url.replace("ws://", "http://").removesuffix("/ws")
            (directory / "conf").write_text(configuration(directory, port, upstream, users=users))
            process = await asyncio.create_subprocess_exec(
                *(nginx, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(directory / "conf"))
            )

            async def stop() -> None:
                process.terminate()
                await process.wait()

            stack.push_async_callback(stop)
            async with asyncio.timeout(PATIENCE):
                while not await accepts(port):
                    assert process.returncode is None, (directory / "error.log").read_text()
                    await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=0.05)
            http = await stack.enter_async_context(
                aiohttp.ClientSession(headers={"Host": f"app.example.org:{port}", "Origin": origin})
            )
            return Proxied(f"ws://127.0.0.1:{port}/ws", data, "local", http, origin=origin)

        yield start


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_everything_goes_through_a_proxy(start_proxied: Callable[..., Awaitable[Proxied]]) -> None:
    proxied = await start_proxied(Patience(ping=0.5, drop=60))
    base = proxied.url.replace("ws://", "http://").removesuffix("/ws")
    async with proxied.connect("u") as client:
        assert (await client.run("print('through')"))["output"] == "through\n"
        saved = await client.ask(type="save_file", sessionId="s", filename="large", content="x" * (12 << 20))
        assert (saved["success"], saved["size"]) == (True, 12 << 20)
        # Streamed events come while the cell runs, not when the proxy has a buffer full of them.
        code = "print('first', flush=True); input()"
        await client.send(type="execute_code", sessionId="s", code=code, stream=True, allowStdin=True, requestId="r")
        while (frame := await client.answer_to("r"))["type"] != "input_request":
            pass
        await client.send(type="input_reply", sessionId="s", value="")
        while (frame := await client.answer_to("r"))["type"] != "execution_result":
            pass
        assert frame["output"].startswith("first\n")

        body = os.urandom(20 << 20)
        address = f"{base}/api/sessions/s/files/sent?user_id=u"
        async with proxied.http.put(address, data=io.BytesIO(body)) as sent:
            assert (sent.status, (await sent.json())["size"]) == (201, len(body))
            assert sent.headers["Access-Control-Allow-Origin"] == proxied.origin
        async with proxied.http.get(address) as got:
            assert await got.read() == body
        async with proxied.http.get(f"{base}/readyz") as ready:
            assert (ready.status, (await ready.json())["status"]) == (200, "ready")

        # Nobody says anything for longer than the proxy waits: the server's pings go through it.
        quiet = asyncio.ensure_future(client.ws.receive())
        done, _ = await asyncio.wait({quiet}, timeout=2 * READ_TIMEOUT)
        assert not done
        await client.send(type="ping")
        assert '"pong"' in (await asyncio.wait_for(quiet, PATIENCE)).data


async def test_without_pings_the_proxy_would_close_an_idle_connection(
    start_proxied: Callable[..., Awaitable[Proxied]],
) -> None:
    """So it is they that keep it open."""
    proxied = await start_proxied(Patience(ping=600, drop=600))
    async with proxied.connect("u") as client:
        ended = await asyncio.wait_for(client.ws.receive(), PATIENCE)
        assert ended.type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE}


async def test_other_hosts_and_origins_are_refused_behind_a_proxy_too(
    start_proxied: Callable[..., Awaitable[Proxied]],
) -> None:
    proxied = await start_proxied(Patience())
    base = proxied.url.replace("ws://", "http://").removesuffix("/ws")
    for headers in (
        {"Host": "evil.example"},
        {"Host": "app.example.org"},  # without its port
        {"Origin": "https://evil.example"},
        {"Origin": "http://app.example.org"},
    ):
        async with proxied.http.get(f"{base}/healthz", headers=headers) as refused:
            assert refused.status == 403, headers


async def test_the_proxy_says_who_the_user_is(start_proxied: Callable[..., Awaitable[Proxied]]) -> None:
    proxied = await start_proxied(Patience(), users="ada:{PLAIN}secret\n")
    http = proxied.http
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await http.ws_connect(f"{proxied.url}?user_id=ada")
    ada = {"Authorization": aiohttp.encode_basic_auth("ada", "secret")}
    async with http.ws_connect(f"{proxied.url}?user_id=eve", headers=ada) as ws:
        assert (await ws.receive_json())["userId"] == "ada"
