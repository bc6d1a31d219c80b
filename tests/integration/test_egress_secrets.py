"""A secret that requests for a host get: from programs in a real sandbox, which never have it."""

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog.testing
import trustme
from aiohttp import web

from kernelbridge import watched_file
from kernelbridge.egress import secret_files
from kernelbridge.egress.authority import ROOTS
from kernelbridge.egress.hosts import Address
from kernelbridge.errors import ConfigError
from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve
from tests.integration.conftest import PATIENCE, Client, Frame, RunningServer, StartServer, flags_of, on_both_runtimes
from tests.integration.test_packages import wheel

RUNTIMES = ("local",)

HOST, OTHER = "api.example", "packages.example"
CANARY = "k-4f0c9b1e77a3d2"
"""The part of the secret that must be nowhere."""


@dataclass
class Api:
    """A host that answers only with its secret, and that says which other one it was given."""

    port: int
    authority: trustme.CA
    seen: list[str] = field(default_factory=list)
    """The field `Authorization` of each request."""

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    async def resolve(self, _name: str) -> Sequence[Address]:
        return [ip_address("127.0.0.1")]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert(HOST, OTHER).configure_cert(context)
    package = "kbdemo-1.0-py3-none-any.whl"

    async def serve(request: web.Request) -> web.StreamResponse:
        given = ",".join(request.headers.getall("Authorization", []))
        found.seen.append(given)
        assert not any(name.lower().startswith("proxy-") for name in request.headers)
        match request.path:
            case "/simple/kbdemo/":
                return web.Response(text=f"<a href='/{package}'>{package}</a>", content_type="text/html")
            case "/" if request.method == "POST":
                return web.Response(text=str(len(await request.read())))
            case path if path == f"/{package}":
                return web.Response(body=wheel("kbdemo", "1.0"))
        return web.Response(text="known" if CANARY in given else "stranger", status=200)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    found = Api(runner.addresses[0][1], authority)
    yield found
    await runner.cleanup()


@dataclass
class House:
    """A server with a secret for the host, and what it writes."""

    server: RunningServer
    api: Api
    secret: Path
    audit: Path
    metrics: str
    log: list[MutableMapping[str, Any]]


@pytest.fixture
async def house(
    api: Api, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.setattr(watched_file, "REFRESH_SECONDS", 0.05)
    secret, bundle, audit = write_secret(tmp_path), tmp_path / "own.pem", tmp_path / "audit.log"
    api.authority.cert_pem.write_to_path(str(bundle))
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    with structlog.testing.capture_logs() as log:
        server = await start_server(
            resolve_name=api.resolve,
            egress_allow=f"{OTHER}:{api.port}",
            egress_allow_net="127.0.0.1/32",
            egress_secret=f"{HOST}:{api.port}=Authorization:{secret}",
            ca_bundle=str(bundle),
            audit_log=str(audit),
            audit_code=True,
            metrics_listen=metrics,
        )
        yield House(server, api, secret, audit, metrics, log)


def write_secret(directory: Path, value: str = f"Bearer {CANARY}", mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.touch()
    path.chmod(mode)
    path.write_text(f"{value}\n")
    return path


@pytest.fixture
async def client(house: House) -> AsyncIterator[Client]:
    async with house.server.connect("tester") as client:
        yield client


async def shell(client: Client, command: str) -> tuple[Frame, list[Frame]]:
    """Run a command for a client that has opened the session; return its result and what came before."""
    await client.send(type="terminal_command", sessionId="s", requestId="r", command=command)
    frames = []
    while (frame := await client.receive())["type"] != "terminal_output":
        frames.append(frame)
    return frame, frames


async def open_session(client: Client, **options: str) -> None:
    """Open the session, so that the client gets its events."""
    await client.send(type="open_session", sessionId="s", requestId="o", **options)
    assert (await client.answer_to("o"))["type"] == "session_ready"


PROGRAMS = {
    "curl": "curl -sS {url}/",
    "requests": """python3 -c 'import requests; print(requests.get("{url}/").text, end="")'""",
    "urllib": """python3 -c 'import urllib.request as u; print(u.urlopen("{url}/").read().decode(), end="")'""",
}


async def test_programs_are_known_to_the_host_without_knowing_why(client: Client, api: Api) -> None:
    for program, command in PROGRAMS.items():
        frame = await client.shell(command.format(url=api.url))
        assert (frame["output"].strip(), frame["exitCode"]) == ("known", 0), (program, frame)
    sends = f"head -c 3000000 /dev/zero | curl -sS -T - -X POST {api.url}/"
    assert (await client.shell(sends))["output"] == "3000000"
    frame = await client.shell(f"pip install --index-url {api.url}/simple kbdemo")
    assert "Successfully installed kbdemo-1.0" in frame["output"], frame
    frame = await client.shell(f"git ls-remote {api.url}/repository.git")
    assert frame["exitCode"] == 0, frame  # an empty repository
    frame = await client.shell(f"curl -sS -H 'Authorization: mine' -H 'Proxy-Authorization: x' {api.url}/")
    assert frame["output"] == "known"
    assert set(api.seen) == {f"Bearer {CANARY}"}


async def test_other_hosts_see_what_the_program_sends(client: Client, api: Api) -> None:
    frame = await client.shell(f"curl -sS -H 'Authorization: mine' https://{OTHER}:{api.port}/")
    assert frame["output"] == "stranger"
    frame = await client.shell(f"curl -sS http://{HOST}:{api.port}/")
    assert "403" not in frame["output"]
    assert "with https only, and not with http" in frame["hint"]
    assert api.seen == ["mine"]


async def test_a_sandbox_trusts_all_that_it_should(client: Client, api: Api, house: House) -> None:
    code = "import os, ssl; print(open(os.environ['SSL_CERT_FILE']).read())"
    bundle = (await client.run(code))["output"].strip()
    usual = next(path for path in ROOTS if path.is_file()).read_text().strip()
    own = api.authority.cert_pem.bytes().decode().strip()
    kept = (house.server.data_dir / secret_files.AUTHORITY).read_text()
    authority = kept[kept.index("-----BEGIN CERTIFICATE") :].strip()
    assert bundle == f"{usual}\n{own}\n{authority}"
    assert "PRIVATE KEY" in kept


REFUSED = {
    "host_header": ("-H 'Host: other.example'", 421),
    "method": ("-X TRACE", 405),
    "bad_request": ("-H 'Content-Length: 3' -H 'Transfer-Encoding: chunked' -d abc", 400),
    "upgrade": ("-H 'Connection: Upgrade' -H 'Upgrade: websocket'", 501),
}


async def test_a_refusal_is_an_answer_an_event_a_hint_an_audit_line_and_a_count(client: Client, house: House) -> None:
    await open_session(client)
    for reason, (options, status) in REFUSED.items():
        frame, frames = await shell(client, f"curl -sSi {options} {house.api.url}/")
        [event] = [each for each in frames if each["type"] == "egress_denied"]
        assert (event["host"], event["port"], event["reason"]) == (HOST, house.api.port, reason)
        assert frame["output"].count(f"HTTP/1.1 {status} {reason}: refused by the egress policy") == 1, frame
        assert event["detail"] in frame["output"]
        assert frame["hint"] == event["detail"]
    assert house.api.seen == []
    async with house.server.http.get(f"http://{house.metrics}/metrics") as answer:
        assert f'kernelbridge_egress_connections_total{{outcome="denied"}} {len(REFUSED)}.0\n' in await answer.text()
    line = f'"what":"egress {HOST}:{house.api.port}","code":"egress_denied","reason":"host_header"'
    async with asyncio.timeout(PATIENCE):
        while line not in house.audit.read_text():  # noqa: ASYNC110 - a thread writes it
            await asyncio.sleep(0.01)


SEARCH = """
import os, pathlib
needle = bytes.fromhex("{needle}")
found, read = [], 0
def look(path):
    global read
    try:
        with open(path, "rb") as file:
            content = file.read(1 << 24)
    except OSError:
        return
    read += 1
    if needle in content:
        found.append(str(path))
for process in pathlib.Path("/proc").glob("[0-9]*"):
    for name in ("environ", "cmdline", "mountinfo"):
        look(process / name)
for top in ("/etc", "/run", "/tmp", "/var", "/dev/shm", "/home", "/root", "/mnt", "/srv", "/workspace"):
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                look(path)
print(found, read > 20, needle.decode() in str(dict(os.environ)))
"""


@on_both_runtimes
async def test_the_secret_is_nowhere(client: Client, house: House, api: Api, runtime_name: str) -> None:
    await open_session(client)
    known, before = await shell(client, f"curl -sSv {api.url}/ 2>&1")
    refused, events = await shell(client, f"curl -sSv -H 'Host: other.example' {api.url}/ 2>&1")
    assert known["output"].endswith("known")
    assert "421" in refused["output"]
    await client.send(
        type="execute_code", sessionId="s", requestId="x", code=SEARCH.format(needle=CANARY.encode().hex())
    )
    searched = await client.answer_to("x")
    assert searched["output"] == "[] True False\n", searched
    assert f"Bearer {CANARY}" in api.seen
    assert CANARY not in json.dumps([known, before, refused, events, searched, client.frames])
    async with house.server.http.get(f"http://{house.metrics}/metrics") as answer:
        assert CANARY not in await answer.text()
    assert CANARY not in repr(house.log)
    assert CANARY not in house.audit.read_text()
    for path in house.server.data_dir.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    if runtime_name == "docker":
        instance = (house.server.data_dir / "instance").read_text().strip()
        running_now = subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, check=True).stdout.split()
        shown = subprocess.run(["docker", "inspect", *running_now], capture_output=True, text=True, check=False).stdout
        assert instance in shown
        assert CANARY not in shown


async def test_a_file_that_changes_counts_without_a_restart(client: Client, house: House, api: Api) -> None:
    assert (await client.shell(f"curl -sS {api.url}/"))["output"] == "known"
    house.secret.write_text("Bearer another\n")
    async with asyncio.timeout(PATIENCE):
        while api.seen[-1] != "Bearer another":
            await client.shell(f"curl -sS {api.url}/")
    house.secret.write_text("two\nlines\n")
    async with asyncio.timeout(PATIENCE):
        while not any(line["event"] == "credentials_not_reloaded" for line in house.log):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
    await client.shell(f"curl -sS {api.url}/")
    assert api.seen[-1] == "Bearer another"
    house.secret.unlink()
    async with asyncio.timeout(PATIENCE):
        while "no secret for it any more" not in (await client.shell(f"curl -sS {api.url}/"))["output"]:
            pass
    assert set(api.seen) == {f"Bearer {CANARY}", "Bearer another"}


async def test_a_session_may_do_without_it(house: House, api: Api) -> None:
    async with house.server.connect("careful") as client:
        await open_session(client, egress="none")
        frame, _ = await shell(client, f"curl -sS {api.url}/")
        assert frame["exitCode"] != 0
        assert api.seen == []


@pytest.mark.usefixtures("runtime_name")
async def test_programs_that_outlive_the_server_trust_the_next_one(
    api: Api, tmp_path: Path, workspace_image: str
) -> None:
    bundle, data = tmp_path / "own.pem", tmp_path / "data"
    api.authority.cert_pem.write_to_path(str(bundle))
    flags = {
        "egress_secret": f"{HOST}:{api.port}=Authorization:{write_secret(tmp_path)}",
        "egress_allow_net": "127.0.0.1/32",
        "ca_bundle": str(bundle),
        "linger": "60",
        "keep_sandboxes": True,
    }

    @asynccontextmanager
    async def one_after_the_other() -> AsyncIterator[Client]:
        settings = resolve(flags_of("local", data, workspace_image, flags), {})
        async with (
            running(settings, on_progress=lambda _line: None, resolve=api.resolve) as report,
            aiohttp.ClientSession() as http,
            RunningServer(report.url, data, "local", http).connect("tester") as client,
        ):
            yield client

    async with one_after_the_other() as client:
        await client.run("import os, ssl, urllib.request as u\nold, me = ssl.create_default_context(), os.getpid()")
        await client.run(f"get = lambda: u.urlopen('{api.url}/', context=old).read()")
        assert (await client.run("print(get())"))["output"] == "b'known'\n"
    async with one_after_the_other() as client:
        assert (await client.run("print(get(), os.getpid() == me)"))["output"] == "b'known' True\n"
        await client.ask(type="close_session", sessionId="s", deleteFiles=True)


@pytest.mark.usefixtures("runtime_name")
@pytest.mark.parametrize(
    ("value", "mode", "why"), [("k", 0o644, "mode 0644"), ("", 0o600, "expected one line"), ("k\0", 0o600, "one line")]
)
async def test_a_server_does_not_start_with_a_file_that_it_cannot_use(
    start_server: StartServer, tmp_path: Path, value: str, mode: int, why: str
) -> None:
    path = write_secret(tmp_path, value, mode)
    with pytest.raises(ConfigError, match=rf"(?s)--egress-secret: '{path}' cannot be used.*{why}"):
        await start_server(egress_secret=f"{HOST}=Authorization:{path}")
