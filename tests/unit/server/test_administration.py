from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kernelbridge.identity.token_file import add_token
from kernelbridge.identity.tokens import new_token, token_line
from kernelbridge.server import administration
from kernelbridge.server.websocket.heartbeat import Patience
from tests.unit.server.conftest import RunningServer, eventually, start_at
from tests.unit.server.logins import bearer, jwt_server, token_server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """It accepts the Host and the Origin of pages that a proxy serves."""
    async with AsyncExitStack() as stack:
        data = tmp_path_factory.mktemp("server") / "data"
        yield await start_at(stack, data, Patience(), {"allow_origin": "https://app.example"})


async def sessions(server: RunningServer) -> list[dict[str, Any]]:
    async with server.http.get(f"{server.origin}/api/sessions") as answer:
        assert answer.status == 200
        return (await answer.json())["sessions"]  # type: ignore[no-any-return]


async def of(server: RunningServer, user: str) -> dict[str, Any]:
    (row,) = [row for row in await sessions(server) if row["user"] == user]
    return row


async def test_the_list_has_everybodys_sessions_and_what_runs(server: RunningServer) -> None:
    async with server.connect("list-1") as one, server.connect("list-2") as two, server.connect("list-2") as three:
        await one.send(type="execute_code", sessionId="a", code="import time; time.sleep(600)", requestId="r")
        await one.send(type="execute_code", sessionId="a", code="2")
        await two.run("1", session="b")
        await three.ask(type="list_files", sessionId="b")

        async def runs() -> list[dict[str, Any]]:
            return (await of(server, "list-1"))["running"]  # type: ignore[no-any-return]

        (ran,) = await eventually(runs)
        row = await of(server, "list-1")
        assert ran["kind"] == "cell"
        assert (ran["requestId"], ran["code"]) == ("r", "import time; time.sleep(600)")
        assert (row["session"], row["state"], row["kernelState"], row["queuedCells"]) == ("a", "active", "ready", 1)
        assert (await of(server, "list-2"))["connections"] == 2
        assert row["memory"] is None or row["memory"] > 1 << 20  # a user without control groups does not know

        async def disk() -> int:
            return (await of(server, "list-1"))["disk"] or 0

        assert await eventually(disk) >= 4096  # it was looked at
        assert row["created"].endswith("Z")
        await one.send(type="close_session", sessionId="a")
        await one.until(type="close_session_reply")

    async def gone() -> bool:
        return not {"list-1", "list-2"} & {row["user"] for row in await sessions(server)}

    await eventually(gone)


async def test_a_runtime_that_does_not_answer_delays_the_list_a_little(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[object] = []

    async def never_answered(workspace: object) -> int | None:
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            given_up.append(workspace)
            raise

    monkeypatch.setattr(administration, "_memory", never_answered)
    monkeypatch.setattr(administration, "PATIENCE", 0.05)
    async with server.connect("slow") as client:
        await client.ask(type="list_files", sessionId="s")
        assert (await of(server, "slow"))["memory"] is None
        assert given_up


async def test_a_session_is_killed_and_its_client_is_told(server: RunningServer) -> None:
    async with server.connect("killed") as client, server.connect("spared") as other:
        await client.run("open('kept', 'w').write('x'); x = 1")
        await other.run("y = 2")
        await client.send(type="execute_code", sessionId="s", code="import time; time.sleep(600)", requestId="r")
        row = await of(server, "killed")
        async with server.http.delete(f"{server.origin}/api/workspaces/{row['id']}") as answer:
            assert (answer.status, await answer.json()) == (200, {"closed": True})
        result = await client.until(requestId="r")
        assert result["cause"] == "session_closed"
        assert "killed" not in {row["user"] for row in await sessions(server)}
        again = await client.run("open('kept').read()")
        assert "an administrator closed it" in json.dumps([*client.frames, again])
        assert again["success"]
        assert (await other.run("print(y)"))["output"] == "2\n"
        async with server.http.delete(f"{server.origin}/api/workspaces/{'0' * 24}") as answer:
            assert answer.status == 404


async def test_the_latest_events_of_a_session_are_sent(server: RunningServer) -> None:
    async with server.connect("events") as client:
        await client.run("print('hello')")
        await client.run("print('x' * 100_000)")
        row = await of(server, "events")
        url = f"{server.origin}/api/workspaces/{row['id']}/events"
        async with server.http.get(url) as answer:
            *_, first, second = (await answer.json())["events"]
        assert (first["type"], first["frame"]["output"]) == ("execution_result", "hello\n")
        assert first["seq"] < second["seq"]
        assert (second["type"], second["frame"]) == ("execution_result", None)
        assert second["size"] > 100_000
        async with server.http.get(f"{url}?last=1") as answer:
            assert (await answer.json())["events"] == [second]
        for wrong in ("0", "-1", "x", "10001", "", "1" * 5000, "000000001" + "0" * 5000, "٣"):
            async with server.http.get(url, params={"last": wrong}) as answer:
                assert answer.status == 400, wrong


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "app.example"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
        {"X-Real-IP": "203.0.113.7"},
        {"Via": "1.1 proxy"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "https://app.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids="-".join,
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/sessions"), ("DELETE", "/api/workspaces/{id}"), ("GET", "/api/workspaces/{id}/events")],
)
async def test_a_proxy_or_a_page_makes_nobody_an_administrator(
    server: RunningServer, method: str, path: str, headers: dict[str, str]
) -> None:
    async with server.connect("victim") as client:
        await client.ask(type="list_files", sessionId="s")
        url = server.origin + path.format(id=(await of(server, "victim"))["id"])
        async with server.http.request(method, url, headers=headers) as answer:
            assert answer.status == 403
            assert "only an administrator" in (await answer.json())["reason"]
        assert await of(server, "victim")


async def test_a_name_is_no_administrators(server: RunningServer) -> None:
    async with server.http.get(f"{server.origin}/api/sessions?user_id=admin", headers={"Via": "x"}) as answer:
        assert answer.status == 403


async def test_with_authentication_only_an_administrators_token_is_taken(tmp_path: Path) -> None:
    audit, token = tmp_path / "audit.log", new_token()
    async with token_server(tmp_path / "server", audit_log=str(audit)) as guarded:
        add_token(guarded.tokens, token_line("root", token, admin=True))
        await guarded.loaded(token)
        async with guarded.logged_in() as client:
            await client.ask(type="list_files", sessionId="s")
            # Behind a proxy, too: the token says who it is.
            admin = {**bearer(token), "X-Forwarded-For": "203.0.113.7"}
            async with guarded.server.http.get(f"{guarded.server.origin}/api/sessions", headers=admin) as answer:
                (row,) = (await answer.json())["sessions"]
            assert row["user"] == "ada"
            url = f"{guarded.server.origin}/api/workspaces/{row['id']}"
            for method, path in (("GET", "/api/sessions"), ("DELETE", ""), ("GET", "/events")):
                address = guarded.server.origin + path if path.startswith("/api") else url + path
                async with guarded.server.http.request(method, address, headers=bearer(guarded.token)) as answer:
                    assert answer.status == 403, path
                async with guarded.server.http.request(method, address) as answer:
                    assert answer.status == 401, path
            async with guarded.server.http.delete(url, headers=admin) as answer:
                assert (await answer.json()) == {"closed": True}

    found = [json.loads(line) for line in audit.read_text(encoding="ascii").splitlines()]
    killed = [entry for entry in found if entry["event"] == "administered" and entry["action"] == "kill"]
    assert [(entry["user"], entry["owner"], entry["session"]) for entry in killed] == [("root", "ada", "s")]
    logins = {(entry["user"], entry["carried_by"]) for entry in found if entry["event"] == "authenticated"}
    assert logins == {("ada", "header"), ("root", "header")}
    assert token not in audit.read_text(encoding="ascii")
    assert "authentication_failed" in {entry["event"] for entry in found}  # before the token was loaded


async def asked(server: RunningServer, headers: dict[str, str]) -> int:
    async with server.http.get(f"{server.origin}/api/sessions", headers=headers) as answer:
        return answer.status


async def test_the_operator_names_administrators_in_each_mode(tmp_path: Path) -> None:
    async with token_server(tmp_path / "token", admin=("root",)) as guarded:
        more = guarded.more("root")
        await guarded.loaded(more)
        assert await asked(guarded.server, bearer(more)) == 200
        assert await asked(guarded.server, bearer(guarded.token)) == 403
    async with jwt_server(tmp_path / "jwt", admin=("root", "other")) as guarded:
        assert await asked(guarded.server, bearer(guarded.signed("root"))) == 200
        for claims in ({}, {"admin": True}, {"roles": ["admin"]}):
            assert await asked(guarded.server, bearer(guarded.signed("ada", **claims))) == 403
        assert await asked(guarded.server, bearer(guarded.signed("Root"))) == 403
    async with AsyncExitStack() as stack:
        flags = {"auth": "proxy", "trusted_proxy": ("127.0.0.1",), "admin": ("root",)}
        server = await start_at(stack, tmp_path / "proxy", Patience(), flags)
        root = {"X-Forwarded-User": "root", "X-Forwarded-For": "203.0.113.7"}
        assert await asked(server, root) == 200
        assert await asked(server, {"X-Forwarded-User": "ada"}) == 403
        assert await asked(server, {}) == 401
        # Browsers send the proxy's cookies along with whatever a page of another site embeds.
        assert await asked(server, {**root, "Sec-Fetch-Site": "cross-site"}) == 403
        assert await asked(server, {**root, "Origin": server.origin, "Sec-Fetch-Site": "same-origin"}) == 200
