from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import aiohttp
import pytest

from kernelbridge.errors import ConfigError
from kernelbridge.identity.tokens import new_token, token_line
from kernelbridge.server import files_api
from tests.unit.server.conftest import PATIENCE, Client, RunningServer, StartServer, eventually
from tests.unit.test_cli_process import environment

HOSTILE = "a\r\nb\x85c\x1b[31md"


async def entries(path: Path, *, until: str) -> list[dict[str, Any]]:
    """Return the lines once there is one of the event `until`: a thread writes them."""

    async def there() -> list[dict[str, Any]]:
        found = read(path) if path.exists() else []
        return found if until in {entry["event"] for entry in found} else []

    return await eventually(there)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def named(found: list[dict[str, Any]], event: str) -> dict[str, Any]:
    """Return the only entry of an event."""
    (entry,) = [each for each in found if each["event"] == event]
    return entry


async def test_each_thing_that_a_client_does_has_a_line(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    server = await start_server(audit_log=str(path))
    code = "print('é')"
    async with server.connect("ada") as client:
        await client.run(code, requestId="r1")
        await client.shell("echo hi", requestId="r2")
        await client.ask(type="save_file", sessionId="s", filename="a.txt", content="12345", requestId="r3")
        await client.ask(type="read_file", sessionId="s", filename="a.txt", requestId="r4")
        await client.ask(type="read_file", sessionId="s", filename="../b", requestId="r5")
        await client.ask(type="interrupt", sessionId="s", requestId="r6")
        await client.ask(type="close_session", sessionId="s", requestId="r7")
    found = await entries(path, until="disconnected")
    connection = named(found, "connected")["connection"]
    by = {"user": "ada", "session": "s", "connection": connection}
    size, digest = len(code.encode()), hashlib.sha256(code.encode()).hexdigest()
    expected = [
        {"event": "connected", "user": "ada", "connection": connection, "address": "127.0.0.1"},
        {"event": "open", **by, "adopted": False},
        {"event": "cell", **by, "request": "r1", "sha256": digest, "size": size},
        {"event": "command", **by, "request": "r2", "sha256": hashlib.sha256(b"echo hi").hexdigest(), "size": 7},
        {"event": "save", **by, "request": "r3", "path": "a.txt", "size": 5},
        {"event": "download", **by, "request": "r4", "path": "a.txt"},
        {"event": "download", **by, "request": "r5", "path": "../b"},
        {"event": "refused", **by, "request": "r5", "what": "read_file", "code": "invalid_field", "reason": ANY},
        {"event": "interrupt", **by, "request": "r6", "target": "execution"},
        {"event": "destroy", **by, "reason": "a client closed it", "files_deleted": False},
        {"event": "disconnected", "user": "ada", "connection": connection, "code": 1000},
    ]
    for entry, wanted in zip(found, expected, strict=True):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
        assert entry == wanted


async def test_transfers_by_http_and_what_the_server_ends_itself(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    server = await start_server(audit_log=str(path))
    async with server.http.put(server.file("a%1Bb.txt", user="ada"), data=b"123") as answer:
        assert answer.status == 201
    async with server.http.get(server.file("absent", user="ada")) as answer:
        assert answer.status == 404
    async with server.connect("ada") as client:
        await client.shell("true")
    found = await entries(path, until="destroy")
    save, (one, *_), refused = named(found, "save"), [e for e in found if e["event"] == "download"], found[2]
    assert (save["path"], save["size"], save["address"]) == ("a\x1bb.txt", 3, "127.0.0.1")
    assert one["path"] == "absent"
    assert (refused["event"], refused["code"]) == ("refused", "not_found")
    assert refused["what"] == "GET /api/sessions/s/files/absent"
    assert named(found, "destroy")["reason"] == "no client returned within 0 s"


async def test_what_is_asked_without_end_fills_no_log(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of transfers beyond the limit only some refusals are noted, and of logins one in a second."""
    monkeypatch.setattr(files_api, "_AT_ONCE", 0)
    path, tokens, token = tmp_path / "audit.log", tmp_path / "tokens", new_token()
    tokens.write_text(token_line("ada", token) + "\n")
    tokens.chmod(0o600)
    server = await start_server(audit_log=str(path), auth="token", token_file=str(tokens))
    bearer = {"Authorization": f"Bearer {token}"}
    url, began = server.file("a" * 4000, user="ada"), time.monotonic()
    for _ in range(1000):
        async with server.http.get(url, headers=bearer) as answer:
            assert answer.status == 429

    async def all_are_counted() -> bool:
        counts = (entry.get("count", 1) for entry in read(path) if entry["event"] in {"refused", "refusals"})
        return bool(sum(counts) == 1000)

    await eventually(all_are_counted)
    async with server.http.ws_connect(server.url, headers=bearer):
        found = await entries(path, until="connected")
    seconds = int(time.monotonic() - began) + 2
    noted = Counter(entry["event"] for entry in found)
    assert set(noted) <= {"authenticated", "refused", "refusals", "connected"}
    assert noted["authenticated"] <= seconds
    assert noted["refused"] <= 100 * seconds
    assert path.stat().st_size < 100_000 * seconds


async def test_refused_requests_name_who_and_what_in_one_line(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    server = await start_server(audit_log=str(path), max_connections_per_user="1")
    host = {"Host": "evil.example"}
    async with server.http.get(f"{server.origin}/a%0d%0ab%C2%85%1b", headers=host) as answer:
        assert answer.status == 403
    async with server.connect("ada"), server.http.ws_connect(f"{server.url}?user_id=ada") as second:
        await second.receive()
    found = await entries(path, until="disconnected")
    raw = path.read_text(encoding="ascii")
    assert raw.splitlines(keepends=True) == [json.dumps(e, separators=(",", ":")) + "\n" for e in found]
    guard, limit = (entry for entry in found if entry["event"] == "refused")
    assert (guard["code"], guard["address"]) == ("forbidden", "127.0.0.1")
    assert guard["what"] == "GET /a\r\nb\x85\x1b"
    assert (limit["code"], limit["user"], limit["what"]) == ("limit_exceeded", "ada", "GET /ws")


async def test_what_a_client_names_stays_on_its_line(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    server = await start_server(audit_log=str(path))
    async with server.connect("ada") as client:
        await client.ask(type="save_file", sessionId="s", filename=HOSTILE, content="", requestId=HOSTILE)
    found = await entries(path, until="disconnected")
    assert named(found, "save")["path"] == HOSTILE
    assert all(line.decode("ascii").isprintable() for line in path.read_bytes().removesuffix(b"\n").split(b"\n"))


async def test_code_is_written_if_the_operator_asks_for_it(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    server = await start_server(audit_log=str(path), audit_code=True)
    async with server.connect("ada") as client:
        await client.shell("echo hi")
    assert named(await entries(path, until="disconnected"), "command")["code"] == "echo hi"


async def test_a_log_that_cannot_be_opened_ends_the_start(start_server: StartServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be opened: No such file or directory; .*--audit-log"):
        await start_server(audit_log=str(tmp_path / "absent" / "audit.log"))


async def test_code_without_a_log_is_refused(start_server: StartServer) -> None:
    with pytest.raises(ConfigError, match="--audit-code is only valid with --audit-log"):
        await start_server(audit_code=True)


async def test_a_disk_that_is_full_delays_no_cell(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    server = await start_server(audit_log=str(path), metrics_listen="127.0.0.1:0")
    async with server.connect("ada") as client:
        assert (await client.run("1+1"))["success"]
        lost = await eventually(functools.partial(lost_lines, server))
        path.unlink()
        assert (await client.run("2+2"))["success"]
    found = await entries(path, until="disconnected")
    assert found[0]["event"] == "gap"
    assert found[0]["lost"] == await lost_lines(server) >= lost
    assert found[0]["reason"] == "No space left on device"
    assert found[1]["event"] == "cell"


async def lost_lines(server: RunningServer) -> int:
    assert server.metrics is not None
    async with server.http.get(server.metrics) as answer:
        found = re.search(r"^kernelbridge_audit_lines_lost_total (\S+)$", await answer.text(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


CANARY = "canary-7f3a91"


@asynccontextmanager
async def serving(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server in a process of its own; it has ended when this returns."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "kernelbridge", "serve", "--runtime", "local", "--no-isolation", "--port", "0", "--linger", "0"),
        *arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_secrets_are_in_no_log(tmp_path: Path) -> None:
    """A process of its own, with the most talkative log: what it writes is all that an operator keeps."""
    audit = tmp_path / "audit.log"
    log: list[bytes] = []
    loud = ("--log-format", "json", "--log-level", "debug")
    async with (
        serving(*loud, "--data-dir", str(tmp_path / "data"), "--audit-log", str(audit)) as process,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {CANARY}"}) as http,
        asyncio.timeout(PATIENCE),
    ):
        assert process.stderr is not None
        while b'"started"' not in (line := await process.stderr.readline()):
            log.append(line)
        rest = asyncio.create_task(process.stderr.read())
        server = RunningServer(json.loads(line)["url"], tmp_path / "data", http)
        async with http.get(f"{server.origin}/nowhere?token={CANARY}", headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
        for query, offered in ((f"token={CANARY}", ()), ("", (f"kernelbridge.bearer.{CANARY}",))):
            with contextlib.suppress(aiohttp.WSServerHandshakeError):  # a token does not belong there
                async with server.connect("u", query, protocols=offered):
                    pass
        async with server.connect("u") as client:
            await tell_all(client)
            async with http.put(server.file("g"), data=CANARY) as answer:
                assert answer.status == 201
        await entries(audit, until="destroy")
        process.terminate()
        log.append(await rest)
    assert CANARY.encode() not in audit.read_bytes()
    assert CANARY.encode() not in b"".join(log)
    assert len(audit.read_bytes().splitlines()) > 10


async def tell_all(client: Client) -> None:
    """Put the secret wherever a client can."""
    opened = await client.ask(type="open_session", sessionId="s", env={"SECRET": CANARY, "ODD": f"{CANARY}\n"})
    assert opened["type"] == "session_ready", opened
    await client.send(type="open_session", sessionId="t", env={f"{CANARY}=": CANARY})
    await client.until(type="error")
    for code in (f"import os; assert os.environ['SECRET'] == {CANARY!r}", f"raise ValueError({CANARY!r})"):
        await client.send(type="execute_code", sessionId="s", code=code)
        await client.until(type="execution_result")
    await client.send(type="terminal_command", sessionId="s", command=f"echo {CANARY}; exit 3")
    await client.until(type="terminal_output")
    await client.send(type="save_file", sessionId="s", filename="f", content=CANARY)
    await client.until(type="save_result")
    await client.send(type="execute_code", sessionId="s", code="import getpass; getpass.getpass()", allowStdin=True)
    asked = await client.until(type="input_request")
    await client.send(type="input_reply", sessionId="s", value=CANARY, inputId=asked["inputId"])
    await client.until(type="execution_result")
    await client.send(type="open_terminal", sessionId="s", terminalId="t")
    await client.until(type="terminal_opened")
    await client.send(type="terminal_input", sessionId="s", terminalId="t", data=f"{CANARY}\n")
    await client.send(type="execute_code", sessionId="s", code=CANARY, timeout=CANARY)
    await client.until(type="error")
    await client.ws.send_str(f'{{"type": "{CANARY}')
    await client.until(type="error")
