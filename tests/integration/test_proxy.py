"""The configurations of docs/how-to/reverse-proxy.md, in a real nginx and a real Caddy, in front of a server."""

import asyncio
import io
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelbridge.server.app import running
from kernelbridge.server.websocket.heartbeat import Patience
from kernelbridge.settings.settings import resolve
from tests.integration.conftest import PATIENCE, RunningServer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "reverse-proxy.md"
READ_TIMEOUT = 2
SOCKET = "/run/kernelbridge/socket"
ADA = {"Authorization": aiohttp.encode_basic_auth("ada", "secret")}


@dataclass
class Proxied(RunningServer):
    """A server as its clients see it: `url` is the proxy's."""

    origin: str = ""

    @property
    def base(self) -> str:
        return self.url.replace("ws://", "http://").removesuffix("/ws")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def changed(text: str, *changes: tuple[str, str]) -> str:
    """Return the page's own configuration with the places of this machine."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(directory: Path, port: int, upstream: Path) -> list[str]:
    """Write the configuration; returns the command."""
    server, upgrade = blocks("nginx")
    (directory / "users").write_text("ada:{PLAIN}secret\neve:{PLAIN}secret\n")
    server = changed(
        server,
        ("listen 443 ssl;", f"listen 127.0.0.1:{port};"),
        ("/etc/nginx/kernelbridge.users", f"{directory}/users"),
        (SOCKET, str(upstream)),
        ("proxy_read_timeout 75s", f"proxy_read_timeout {READ_TIMEOUT}s"),
    )
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Its workers are those of whoever runs the tests, who has made the directory.
    user = pwd.getpwuid(os.geteuid()).pw_name
    (directory / "conf").write_text(
        f"daemon off;\npid {directory}/pid;\nerror_log {directory}/error.log info;\nuser {user};\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{upgrade}{server}}}\n"
    )
    return [program("nginx"), "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(directory / "conf")]


def caddy(directory: Path, port: int, upstream: Path) -> list[str]:
    """Write the configuration; returns the command."""
    hashed = subprocess.run(
        [program("caddy"), "hash-password", "--plaintext", "secret"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (text,) = blocks("caddyfile")
    text = changed(
        text,
        ("app.example.org {", f"http://app.example.org:{port} {{\n    bind 127.0.0.1"),
        ("ada $2a$14$…", f"ada {hashed}\n        eve {hashed}"),
        (SOCKET, str(upstream)),
    )
    (directory / "conf").write_text(f"{{\n    admin off\n    auto_https off\n}}\n{text}")
    return [program("caddy"), "run", "--config", str(directory / "conf"), "--adapter", "caddyfile"]


PROXIES: dict[str, Callable[[Path, int, Path], list[str]]] = {"nginx": nginx, "caddy": caddy}


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found is not None, f"install {name}: .ci/setup does"
    return found


@pytest.fixture
async def start_proxied(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Proxied]]]:
    async with AsyncExitStack() as stack:

        async def start(name: str, patience: Patience = Patience()) -> Proxied:  # noqa: B008 - frozen
            port = free_port()
            origin = f"http://app.example.org:{port}"
            # Not pytest's own directory: the paths of UNIX sockets are short.
            upstream = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kb-proxy-", dir="/tmp"))) / "socket"
            flags: dict[str, Any] = {
                "runtime": "local",
                "listen": f"unix:{upstream}",
                "auth": "proxy",
                "trusted_proxy": ("unix",),
                "data_dir": str(tmp_path / "data"),
                "linger": "0",
                "allow_origin": (origin,),
            }
            await stack.enter_async_context(
                running(resolve(flags, {}), on_progress=lambda _line: None, patience=patience)
            )
            directory = tmp_path / name
            directory.mkdir()
            command = await asyncio.to_thread(PROXIES[name], directory, port, upstream)
            with (directory / "output").open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *command, stdout=output, stderr=output, env={**os.environ, "HOME": str(directory)}
                )

            async def stop() -> None:
                process.terminate()
                await process.wait()

            stack.push_async_callback(stop)
            async with asyncio.timeout(PATIENCE):
                while not await accepts(port):
                    assert process.returncode is None, (directory / "output").read_text()
                    await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=0.05)
            http = await stack.enter_async_context(
                aiohttp.ClientSession(headers={"Host": f"app.example.org:{port}", "Origin": origin})
            )
            return Proxied(f"ws://127.0.0.1:{port}/ws", tmp_path / "data", "local", http, origin=origin)

        yield start


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("proxy", PROXIES)
async def test_everything_goes_through_a_proxy(start_proxied: Callable[..., Awaitable[Proxied]], proxy: str) -> None:
    proxied = await start_proxied(proxy, Patience(ping=0.5, drop=60))
    async with proxied.connect("ada", headers=ADA) as client:
        assert client.connected["userId"] == "ada"
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
        address = f"{proxied.base}/api/sessions/s/files/sent"
        async with proxied.http.put(address, data=io.BytesIO(body), headers=ADA) as sent:
            assert (sent.status, (await sent.json())["size"]) == (201, len(body))
            assert sent.headers["Access-Control-Allow-Origin"] == proxied.origin
        async with proxied.http.get(address, headers=ADA) as got:
            assert await got.read() == body
        async with proxied.http.get(f"{proxied.base}/readyz", headers=ADA) as ready:
            assert (ready.status, (await ready.json())["status"]) == (200, "ready")

        # Nobody says anything for longer than nginx waits: the server's pings go through it.
        quiet = asyncio.ensure_future(client.ws.receive())
        done, _ = await asyncio.wait({quiet}, timeout=2 * READ_TIMEOUT)
        assert not done
        await client.send(type="ping")
        assert '"pong"' in (await asyncio.wait_for(quiet, PATIENCE)).data


async def test_without_pings_the_proxy_would_close_an_idle_connection(
    start_proxied: Callable[..., Awaitable[Proxied]],
) -> None:
    """So it is they that keep it open."""
    proxied = await start_proxied("nginx", Patience(ping=600, drop=600))
    async with proxied.connect(headers=ADA) as client:
        ended = await asyncio.wait_for(client.ws.receive(), PATIENCE)
        assert ended.type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE}


async def test_other_hosts_and_origins_are_refused_behind_a_proxy_too(
    start_proxied: Callable[..., Awaitable[Proxied]],
) -> None:
    proxied = await start_proxied("nginx")
    for headers in (
        {"Host": "evil.example"},
        {"Host": "app.example.org"},  # without its port
        {"Origin": "https://evil.example"},
        {"Origin": "http://app.example.org"},
    ):
        async with proxied.http.get(f"{proxied.base}/healthz", headers=ADA | headers) as refused:
            assert refused.status == 403, headers


@pytest.mark.parametrize("proxy", PROXIES)
async def test_the_proxy_says_who_the_user_is(start_proxied: Callable[..., Awaitable[Proxied]], proxy: str) -> None:
    """Whatever the client says."""
    proxied = await start_proxied(proxy)
    for headers in ({}, {"X-Forwarded-User": "ada"}, {"Authorization": "Bearer ada"}):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await proxied.http.ws_connect(proxied.url, headers=headers)
    for headers in (
        {"X-Forwarded-User": "eve"},
        {"x-forwarded-user": "eve", "X-Forwarded-For": "127.0.0.1"},
        {"Connection": "X-Forwarded-User, Upgrade", "X-Forwarded-User": "eve"},
    ):
        async with proxied.http.ws_connect(proxied.url, headers=ADA | headers) as ws:
            assert (await ws.receive_json())["userId"] == "ada"
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await proxied.http.ws_connect(f"{proxied.url}?user_id=eve", headers=ADA)
    async with proxied.http.get(f"{proxied.base}/readyz", headers=ADA | {"X_Forwarded_User": "eve"}) as answer:
        # nginx drops such names by itself, and Caddy passes them on.
        assert answer.status == {"nginx": 200, "caddy": 400}[proxy]
    async with proxied.connect(headers=ADA) as client:
        await client.ask(type="save_file", sessionId="s", filename="f", content="ada's")
    eve = {"Authorization": aiohttp.encode_basic_auth("eve", "secret")}
    async with proxied.http.get(f"{proxied.base}/api/sessions/s/files/f", headers=eve) as answer:
        assert answer.status == 404
