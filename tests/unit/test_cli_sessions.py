"""`ps`, `kill` and `logs` against a real server in a process of its own."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.benchmarks.client import WebSocketClient
from tests.unit.test_cli_process import run, serving, until


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("cli") / "data"
    with serving("--data-dir", str(data), "--linger", "0", "--stop-timeout", "0") as server:
        found = re.search(r"ws://[\d.]+:\d+", until(server, "Stop it"))
        assert found is not None
        yield found[0].replace("ws://", "http://")


def connect(url: str, user: str) -> closing[WebSocketClient]:
    return closing(WebSocketClient(f"{url.replace('http', 'ws')}/ws?user_id={user}"))


CODE = "print('hello\\x1b[31m'); display({'text/plain': '\\x9b31m'}, raw=True)"
"""What a terminal obeys."""


def test_a_session_is_seen_read_and_ended(url: str) -> None:
    with connect(url, "ada") as client, connect(url, "bob") as other:
        for each in (client, other):
            each.ask(type="execute_code", sessionId="demo", code=CODE)
        table = run("ps", "--url", url)
        assert table.returncode == 0, table.stderr
        heading, *rows = table.stdout.splitlines()
        assert heading.split() == ["USER", "SESSION", "STATE", "SINCE", "MEMORY", "DISK", "CONNECTIONS", "ID", "RUNS"]
        assert [row.split()[:3] for row in rows] == [["ada", "demo", "active"], ["bob", "demo", "active"]]
        found = json.loads(run("ps", "--json", environ={"KERNELBRIDGE_URL": url}).stdout)
        assert {row["user"] for row in found} == {"ada", "bob"}

        ambiguous = run("logs", "demo", "--url", url)
        assert ambiguous.returncode == 1
        assert "2 sessions are called 'demo'" in ambiguous.stderr
        assert "--user" in ambiguous.stderr
        printed = run("logs", "demo", "--user", "ada", "--url", url)
        assert printed.returncode == 0, printed.stderr
        lines = printed.stdout
        assert "execution_result" in lines
        assert "\x1b" not in lines
        whole = run("logs", found[0]["id"][:12], "--json", "--last", "1", "--url", url).stdout
        assert json.loads(whole)["frame"]["results"][0]["data"] == {"text/plain": "\x9b31m"}
        assert whole.rstrip("\n").isprintable()

        killed = run("kill", "demo", "--user", "bob", "--url", url)
        assert (killed.returncode, killed.stdout) == (0, "Closed session demo of bob.\n")
        assert [row.split()[0] for row in run("ps", "--url", url).stdout.splitlines()[1:]] == ["ada"]
        absent = run("kill", "demo", "--user", "bob", "--url", url)
        assert absent.returncode == 1
        assert "There is no open session 'demo'" in absent.stderr


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as bound:  # it does not listen
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = run("ps", "--url", url)
    assert done.returncode == 1
    assert f"No kernelbridge server answers at {url}" in done.stderr
    assert "--url" in done.stderr


@pytest.mark.parametrize("url", ["localhost:8001", "ws://localhost:8001", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    done = run("ps", "--url", url)
    assert done.returncode == 2
    assert "is not the address of a server" in done.stderr


def test_the_variables_of_these_commands_are_no_wrong_settings_of_a_server() -> None:
    done = run("doctor", "--runtime", "local", "--port", "70000", environ={"KERNELBRIDGE_URL": "http://x"})
    assert "KERNELBRIDGE_URL" not in done.stderr
    assert "--port" in done.stderr


def test_an_administrator_goes_past_the_proxy(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    proxied = ("--auth", "proxy", "--listen", f"unix:{path}", "--trusted-proxy", "unix", "--admin", "ada")
    with serving("--data-dir", str(tmp_path / "data"), *proxied) as server:
        until(server, "Stop it")
        named = ("--url", f"unix:{path}", "--header")
        table = run("ps", *named, "X-Forwarded-User: ada")
        assert (table.returncode, table.stdout.split()[0]) == (0, "USER"), table.stderr
        assert "only an administrator" in run("ps", *named, "X-Forwarded-User: bob").stderr
        assert "expected NAME:VALUE" in run("ps", *named, "ada").stderr
