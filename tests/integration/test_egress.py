"""What programs in a sandbox reach, and what they are refused: curl, pip, git, npm, and a host of the test's own."""

import asyncio
import base64
import hashlib
import io
import json
import socket
import ssl
import subprocess
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from kernelbridge.egress.hosts import Address
from kernelbridge.errors import ConfigError
from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve
from tests.integration.conftest import PATIENCE, Client, Frame, RunningServer, StartServer, flags_of, on_both_runtimes
from tests.integration.test_packages import wheel
from tests.unit.egress.hosts_of_the_test import host
from tests.unit.egress.test_upstream import OperatorsProxy

RUNTIMES = ("local",)

HOST, OTHER = "packages.example", "other.example"


@dataclass
class House:
    """A host with an index, a registry, a repository and a page; it is reached under both names."""

    port: int
    root: Path
    authority: trustme.CA
    asked: list[str]

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def refused(self) -> str:
        return f"https://{OTHER}:{self.port}"

    async def resolve(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        return [ip_address("127.0.0.1")]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    root = tmp_path / "served"
    root.mkdir()
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, OTHER).configure_cert(context)

    async def serve(request: web.Request) -> web.StreamResponse:
        path = root / request.path.lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            raise web.HTTPNotFound
        if path.name == "moved":
            raise web.HTTPFound(f"{path.read_text()}/page")
        kind = "text/html" if path.name == "index.html" else "application/octet-stream"
        return web.Response(body=path.read_bytes(), content_type=kind)

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    house = House(runner.addresses[0][1], root, authority, [])
    fill(house)
    yield house
    await runner.cleanup()


def fill(house: House) -> None:
    (house.root / "page").write_text("reached\n")
    simple = house.root / "simple/kbdemo"
    simple.mkdir(parents=True)
    name = "kbdemo-1.0-py3-none-any.whl"
    (simple / name).write_bytes(wheel("kbdemo", "1.0"))
    (simple / "index.html").write_text(f"<a href='{name}'>{name}</a>")
    repository = house.root / "repository.git"
    work = house.root.parent / "work"
    for command in (
        f"git init -q {work}",
        f"git -C {work} -c user.name=t -c user.email=t@t commit -q --allow-empty -m cloned",
        f"git clone -q --bare {work} {repository}",
        f"git -C {repository} update-server-info",
    ):
        subprocess.run(command.split(), check=True)
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        content = json.dumps({"name": "kbdemo", "version": "1.0.0"}).encode()
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    npm = house.root / "npm"
    npm.mkdir()
    (npm / "kbdemo.tgz").write_bytes(package.getvalue())
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(package.getvalue()).digest()).decode()
    dist = {"tarball": f"{house.url}/npm/kbdemo.tgz", "integrity": integrity}
    version = {"name": "kbdemo", "version": "1.0.0", "dist": dist}
    listing = {"name": "kbdemo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    (npm / "kbdemo").write_text(json.dumps(listing))


@pytest.fixture
async def server(
    house: House, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunningServer:
    """A server whose operator uses an index and a registry of the house, with certificates of its own."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{house.url}/simple")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{house.url}/npm/")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "npm_config_registry"):
        monkeypatch.delenv(name, raising=False)
    bundle = tmp_path / "own.pem"
    house.authority.cert_pem.write_to_path(str(bundle))
    return await start_server(
        resolve_name=house.resolve, egress="packages", egress_allow_net="127.0.0.1/32", ca_bundle=str(bundle)
    )


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    """A client that gets the events of its session."""
    async with server.connect("tester") as client:
        ready = await client.ask(type="open_session", sessionId="s", requestId="open")
        while ready["type"] != "session_ready":
            ready = await client.receive()
        assert ready["egress"] == "packages"
        yield client


async def outcome(client: Client, **request: Any) -> tuple[Frame, list[Frame]]:
    """Run something, and return its result and the refusals that were reported meanwhile."""
    client.frames.clear()
    await client.send(sessionId="s", requestId="r", **request)
    frames = []
    while (frame := await client.receive())["type"] not in {"execution_result", "terminal_output", "error"}:
        frames.append(frame)
    return frame, [each for each in frames if each["type"] == "egress_denied"]


async def shell(client: Client, command: str) -> tuple[Frame, list[Frame]]:
    return await outcome(client, type="terminal_command", command=command)


async def test_what_is_allowed_is_reached_by_all_programs(client: Client, house: House) -> None:
    frame, denied = await shell(client, f"curl -sS {house.url}/page")
    assert (frame["output"], frame["exitCode"], denied) == ("reached\n", 0, []), frame
    frame, _ = await shell(client, "pip install kbdemo")
    assert "Successfully installed kbdemo-1.0" in frame["output"], frame
    frame, _ = await outcome(client, type="execute_code", code="import kbdemo; print(kbdemo.__file__)")
    assert frame["output"].startswith("/workspace/.local/"), frame
    frame, _ = await shell(client, f"git clone -q {house.url}/repository.git && git -C repository log --format=%s")
    assert frame["output"] == "cloned\n", frame
    frame, _ = await shell(client, "npm install --no-audit kbdemo && ls node_modules")
    assert frame["output"].endswith("kbdemo\n"), frame
    reads = f"import urllib.request as u; print(u.urlopen('{house.url}/page').read())"
    frame, denied = await outcome(client, type="execute_code", code=reads)
    assert frame["output"] == "b'reached\\n'\n", frame
    assert set(house.asked) == {HOST}
    assert "hint" not in frame


@on_both_runtimes
async def test_pip_in_a_cell(client: Client, runtime_name: str) -> None:
    install = "!pip install kbdemo" if runtime_name == "docker" else "%pip install kbdemo"
    frame, _ = await outcome(client, type="execute_code", code=f"{install}\nimport kbdemo\nprint(kbdemo.VERSION)")
    assert frame["success"], frame
    assert "Successfully installed kbdemo-1.0" in frame["output"]
    assert frame["output"].endswith("1.0\n")


REFUSED = {
    "curl": "curl -sS {url}/page",
    "pip": "pip install --index-url {url}/simple kbdemo",
    "git": "git clone {url}/repository.git",
    "npm": "npm install --registry {url}/npm/ kbdemo",
}


async def test_what_is_not_allowed_is_refused_at_once_with_one_event_and_a_hint(client: Client, house: House) -> None:
    for port, program in enumerate(REFUSED, 20_001):  # another port each: of one there is one event a minute
        command = REFUSED[program].format(url=f"https://{OTHER}:{port}")
        async with asyncio.timeout(60):
            frame, denied = await shell(client, command)
        assert frame["exitCode"] != 0, frame
        [event] = denied
        assert (event["host"], event["port"], event["reason"]) == (OTHER, port, "host")
        assert event["requestId"] == "r"
        assert frame["hint"] == event["detail"]
        assert f"refuses {OTHER}:{port}" in frame["hint"]
    code = f"import urllib.request as u\nu.urlopen('{house.refused}')"
    frame, denied = await outcome(client, type="execute_code", code=code)
    assert "403 host: refused by the egress policy" in frame["error"]
    assert frame["hint"] == denied[0]["detail"]
    frame, denied = await outcome(client, type="execute_code", code="1/0")
    assert (denied, frame.get("hint")) == ([], None)
    assert house.asked == []


async def test_a_redirect_to_another_host_is_judged_again(client: Client, house: House) -> None:
    (house.root / "moved").write_text(house.refused)
    frame, denied = await shell(client, f"curl -sSL {house.url}/moved")
    assert frame["exitCode"] != 0
    assert [event["host"] for event in denied] == [OTHER]
    (house.root / "simple/elsewhere").mkdir()
    name = "elsewhere-1.0-py3-none-any.whl"
    (house.root / "simple/elsewhere/index.html").write_text(f"<a href='{house.refused}/{name}'>{name}</a>")
    frame, _ = await shell(client, "pip install elsewhere")
    assert frame["exitCode"] != 0
    assert f"refuses {OTHER}" in frame["hint"]


async def test_no_way_leads_past_the_proxy(client: Client, house: House) -> None:
    direct = f"curl -sS --noproxy '*' -m 5 {house.url}/page"
    for command in (
        direct,
        f"curl -sS --noproxy '*' -m 5 --resolve {HOST}:{house.port}:127.0.0.1 {house.url}/page",
        "python3 -c 'import socket; socket.create_connection((\"192.0.2.2\", 80), 3)'",
        "getent hosts packages.example",
    ):
        frame, _ = await shell(client, command)
        assert frame["exitCode"] != 0, (command, frame)
    frame, _ = await shell(client, direct)
    assert frame["hint"].startswith("a workspace has no network of its own")
    assert house.asked == []


async def test_a_session_may_ask_for_less(server: RunningServer, house: House) -> None:
    async with server.connect("careful") as client:
        refused = await client.ask(type="open_session", sessionId="s", egress="open")
        assert (refused["type"], refused["code"]) == ("error", "invalid_field"), refused
        await client.send(type="open_session", sessionId="s", egress="none", requestId="o")
        ready = await client.answer_to("o")
        assert ready["egress"] == "none"
        frame, denied = await shell(client, f"curl -sS {house.url}/page")
        assert frame["exitCode"] != 0
        assert [event["reason"] for event in denied] == ["host"]
        info = await client.ask(type="session_info", sessionId="s")
        assert info["egress"] == "none"
        conflict = await client.ask(type="open_session", sessionId="s", egress="packages")
        assert conflict["code"] == "session_conflict", conflict


async def test_the_server_itself_is_out_of_reach(house: House, start_server: StartServer) -> None:
    server = await start_server(resolve_name=house.resolve, egress="open", egress_allow_net="127.0.0.1/32")
    port = server.url.rpartition(":")[2].partition("/")[0]
    async with server.connect("tester") as client:
        frame = await client.shell(f"curl -sS https://any.example:{port}/")
        assert "the server itself listens at this port" in frame["hint"]
        assert house.asked == []


async def test_all_hosts_are_reached_through_the_operators_proxy(
    house: House, start_server: StartServer, tmp_path: Path
) -> None:
    bundle, theirs = tmp_path / "own.pem", OperatorsProxy(house.port)
    house.authority.cert_pem.write_to_path(str(bundle))
    async with host(theirs) as upstream:
        server = await start_server(
            resolve_name=house.resolve,
            egress_allow=f"{HOST}:{house.port}",
            egress_proxy=f"http://127.0.0.1:{upstream}",
            ca_bundle=str(bundle),
        )
        async with server.connect("tester") as client:
            assert (await client.shell(f"curl -sS {house.url}/page"))["output"] == "reached\n"
            assert "hint" in await client.shell(f"curl -sS {house.refused}/page")
    assert (len(theirs.asked), house.asked) == (1, [])


@pytest.mark.usefixtures("runtime_name")
async def test_a_certificate_that_would_spoil_all_others_ends_the_start(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Programs read the file in place of the usual authorities, and one that cannot be read keeps them from all."""
    bundle = tmp_path / "own.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match=rf"certificate authorities cannot be read.*{bundle}: .*PEM"):
        await start_server(ca_bundle=str(bundle))


@asynccontextmanager
async def one_after_the_other(house: House, data: Path, bundle: Path, image: str) -> AsyncIterator[RunningServer]:
    """A server that leaves its sandboxes to the next one over the same data."""
    flags = {
        "egress_allow": f"{HOST}:{house.port}",
        "egress_allow_net": "127.0.0.1/32",
        "ca_bundle": str(bundle),
        "linger": "60",
        "keep_sandboxes": True,
    }
    settings = resolve(flags_of("local", data, image, flags), {})
    async with (
        running(settings, on_progress=lambda _line: None, resolve=house.resolve) as report,
        aiohttp.ClientSession() as http,
    ):
        yield RunningServer(report.url, data, "local", http)


@pytest.mark.usefixtures("runtime_name")
async def test_the_next_server_goes_on_with_the_network_of_a_session(
    house: House, tmp_path: Path, workspace_image: str
) -> None:
    bundle, data = tmp_path / "own.pem", tmp_path / "data"
    house.authority.cert_pem.write_to_path(str(bundle))
    async with (
        one_after_the_other(house, data, bundle, workspace_image) as first,
        first.connect("tester") as client,
    ):
        await client.run(f"import os, subprocess; get = 'curl -sS {house.url}/page'; me = os.getpid()")
        assert (await client.run("print(subprocess.getoutput(get))"))["output"] == "reached\n"
    async with (
        one_after_the_other(house, data, bundle, workspace_image) as second,
        second.connect("tester") as client,
    ):
        after = await client.run("print(os.getpid() == me, subprocess.getoutput(get))")
        assert after["output"] == "True reached\n"
        await client.ask(type="close_session", sessionId="s", deleteFiles=True)


async def test_an_operator_sees_it_and_nobody_reaches_the_metrics(
    house: House, start_server: StartServer, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bundle, audit = tmp_path / "own.pem", tmp_path / "audit.log"
    house.authority.cert_pem.write_to_path(str(bundle))
    server = await start_server(
        resolve_name=house.resolve,
        egress_allow=f"{HOST}:{house.port},{HOST}:{port}",
        egress_allow_net="127.0.0.1/32",
        ca_bundle=str(bundle),
        metrics_listen=f"127.0.0.1:{port}",
        audit_log=str(audit),
    )
    async with server.connect("tester") as client:
        frame = await client.shell(f"curl -sS {house.url}/page")
        assert frame["output"] == "reached\n", frame
        frame = await client.shell(f"curl -sS https://{HOST}:{port}/metrics")
        assert "403" in frame["output"], frame
        async with server.http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            text = await answer.text()
    assert 'kernelbridge_egress_connections_total{outcome="allowed"} 1.0\n' in text
    assert 'kernelbridge_egress_connections_total{outcome="denied"} 1.0\n' in text
    async with asyncio.timeout(PATIENCE):
        while "disconnected" not in audit.read_text():  # noqa: ASYNC110 - a thread writes it
            await asyncio.sleep(0.01)
    assert f'"user":"tester","session":"s","what":"egress {HOST}:{port}","code":"egress_denied"' in audit.read_text()
