"""`kernelbridge ps`, `kill`, `logs` and the completion of names, in this process."""

import json
import os
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
import pytest
from aiohttp import web

from kernelbridge import Client
from kernelbridge.cli import completion
from kernelbridge.cli.administrator import Administrator
from kernelbridge.cli.screen import plain_json
from kernelbridge.cli.sessions import _ago, _cells, _detail, _headers, _lines, _named, _plain, _runs
from kernelbridge.errors import ConfigError, KernelBridgeError
from kernelbridge.protocol.administration import JournalEvent, SessionRow
from tests.unit.cli.conftest import Command
from tests.unit.serving import answers_in_thread

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def row(**fields: Any) -> SessionRow:
    given = {
        "id": "0123456789abcdef",
        "user": "ada",
        "session": "work",
        "state": "active",
        "kernelState": "idle",
        "created": NOW.isoformat(),
        "connections": 1,
        "running": [],
        "queuedCells": 0,
        "queuedCommands": 0,
        "memory": None,
        "disk": None,
    }
    return msgspec.convert({**given, **fields}, SessionRow)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (86_399, "23 h"),
        (86_400, "1 d"),
    ],
)
def test_a_time_is_told_in_its_largest_unit(seconds: int, text: str) -> None:
    assert _ago(NOW.isoformat(), NOW.timestamp() + seconds) == text


def test_what_is_no_time_is_shown_as_it_is() -> None:
    assert _ago("soon", 0.0) == "soon"


def test_what_runs_is_a_cell_or_command_before_terminals() -> None:
    now = NOW.timestamp() + 61
    terminal = {"kind": "terminal"}
    cell = {"kind": "cell", "code": "\n  " + "x" * 41 + "\nmore", "since": NOW.isoformat()}
    assert _runs(row(running=[terminal, cell]), now) == f"cell 1 min {'x' * 39}…"
    assert _runs(row(running=[{**cell, "code": "x" * 40}]), now) == f"cell 1 min {'x' * 40}"
    assert _runs(row(running=[terminal]), now) == "1 terminal"
    assert _runs(row(running=[terminal, terminal]), now) == "2 terminals"
    assert _runs(row(), now) == "-"


def test_a_table_is_aligned_by_the_width_of_its_characters() -> None:
    assert list(_lines([("a", "b"), ("漢字", "c")])) == ["a     b", "漢字  c"]
    assert _cells(row(user=None, memory=2048, disk=None), NOW.timestamp())[:1] == ("-",)
    assert _cells(row(memory=1 << 20), NOW.timestamp())[4:] == ("1.0 MiB", "-", "1", "0123456789ab", "-")


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert _plain("a\x1b[31m\x9b") == "a\\x1b[31m\\x9b"
    assert plain_json(b'{"a": "\xc2\x9b"}\n') == '{"a": "\\u009b"}\n'
    event = JournalEvent(seq=1, type="t", size=2048, frame=b'{"type":"t","sessionId":"s","seq":1,"x":"\xc2\x9b"}')  # type: ignore[arg-type]
    assert _detail(event) == '{"x":"\\x9b"}'


class Listing:
    def __init__(self, *rows: SessionRow) -> None:
        self.rows = rows

    def sessions(self) -> list[SessionRow]:
        return list(self.rows)


def test_a_session_is_found_by_its_name_before_an_id() -> None:
    named, other = row(), row(id="workid", session="x", user="bob")
    assert _named(Listing(named, other), "work", None) is named  # type: ignore[arg-type]
    assert _named(Listing(named, other), "worki", None) is other  # type: ignore[arg-type]
    with pytest.raises(KernelBridgeError, match=r"no open session 'worki' of 'ada'"):
        _named(Listing(named, other), "worki", "ada")  # type: ignore[arg-type]
    twice = Listing(named, row(user="bob", id="f" * 20))
    assert _named(twice, "work", "bob") is twice.rows[1]  # type: ignore[arg-type]
    with pytest.raises(KernelBridgeError, match=r"bob \(ffffffffffff\)"):
        _named(twice, "work", None)  # type: ignore[arg-type]


def test_headers_are_read() -> None:
    context, parameter = click.Context(click.Command("c")), click.Option(["--header"])
    assert _headers(context, parameter, ["A: b:c ", "D:"]) == {"A": "b:c", "D": ""}
    for wrong in ("A", ":b", " :b"):
        with pytest.raises(click.BadParameter):
            _headers(context, parameter, [wrong])


# -- a server --------------------------------------------------------------------------


def http(url: str) -> str:
    return url.replace("ws://", "http://").removesuffix("/ws")


def test_open_sessions_are_listed_read_completed_and_closed(url: str, command: Command) -> None:
    with Client(url, user_id="ada") as client:
        client.session("first", linger=600).sh("echo hi")
        client.session("second", linger=600).sh("true")
    at = ("--url", http(url))
    heading, *rows = command("ps", *at).out.splitlines()
    assert (heading.split()[:2], [each.split()[1] for each in rows]) == (["USER", "SESSION"], ["first", "second"])
    assert command("logs", "first", *at, "--last", "1").out.split()[1] == "terminal_output"
    assert json.loads(command("logs", "first", *at, "--last", "1", "--json").out)["frame"]["output"] == "hi\n"

    context = click.Context(click.Command("c"))
    context.params = {"url": url, "user": "ada"}
    parameter = click.Argument(["session"])
    assert [item.value for item in completion.own_sessions(context, parameter, "fi")] == ["first"]
    assert [item.value for item in completion.places(context, parameter, "")] == ["first:", "second:"]
    assert [item.type for item in completion.places(context, parameter, "./f")] == ["file"]
    assert [(item.value, item.type) for item in completion.places(context, parameter, "zz")] == [("zz", "file")]
    context.params = {"url": url, "user": "bob"}
    assert completion.own_sessions(context, parameter, "") == []
    context.params = {"url": http(url)}
    assert [item.value for item in completion.all_sessions(context, parameter, "")] == ["first", "second"]
    context.params = {"url": "http://127.0.0.1:1"}
    assert completion.all_sessions(context, parameter, "") == []

    assert command("kill", "first", *at, "--user", "ada").out == "Closed session first of ada.\n"
    assert [each.split()[1] for each in command("ps", *at).out.splitlines()[1:]] == ["second"]
    assert "is being closed" not in command("kill", "second", *at).out


def test_a_token_is_only_sent_to_a_server_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization"))
        return web.Response(status=401)

    with answers_in_thread(note) as address:
        monkeypatch.setattr(completion, "USUAL", address)
        context, parameter = click.Context(click.Command("c")), click.Argument(["session"])
        for params in ({"token": "t"}, {"token": "t", "url": address}):
            context.params = params
            assert completion.own_sessions(context, parameter, "") == []
    assert asked == [None, "Bearer t"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, '{"reason": "no token"}', "no token; put the token of an administrator into KERNELBRIDGE_TOKEN"),
        (403, '{"message": "not you"}', "not you; it is for administrators"),
        (200, "[]", "it sent what kernelbridge does not send"),
        (500, "\x1bodd", "it answered with status 500:  odd"),
        (500, "", "it does not say why"),
        (302, "", "it answered with status 302"),
    ],
)
def test_an_answer_that_is_of_no_use_is_explained(status: int, body: str, said: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={"Location": "/"})

    with answers_in_thread(answer) as address, pytest.raises(KernelBridgeError) as failed:
        Administrator(address, {}).sessions()
    assert said in failed.value.reason


def test_what_is_no_server_is_named() -> None:
    with pytest.raises(KernelBridgeError, match="No kernelbridge server answers at"):
        Administrator("http://127.0.0.1:1", {}).sessions()
    with pytest.raises(ConfigError, match="is not the address of a server"):
        Administrator("ws://x", {}).sessions()
    with pytest.raises(KernelBridgeError, match="No kernelbridge server answers at"):
        Administrator(f"unix:{os.devnull}", {}).sessions()


def test_the_headers_of_an_administrator_are_sent() -> None:
    async def show(request: web.Request) -> web.Response:
        row_ = {"id": request.headers["Authorization"], "session": request.headers["X-A"]}
        return web.json_response({"sessions": [{**msgspec.to_builtins(row()), **row_}]})

    with answers_in_thread(show) as address:
        (found,) = Administrator.with_token(address + "/", "t", {"X-A": "b"}).sessions()
    assert (found.id, found.session) == ("Bearer t", "b")
