"""Every kind of request, over a kernel, a shell and files of this host: what is asked is answered, and in its form."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import pytest_asyncio

from kernelbridge.aio.turns import TURN, turns
from kernelbridge.protocol import codec
from kernelbridge.protocol.sessions import ListSessions, SessionInfo
from kernelbridge.server.websocket import connection
from kernelbridge.server.websocket.handlers import PRINCIPAL_HANDLERS
from tests.unit.server.conftest import Client, RunningServer, masked, text

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[Client]:
    """One session for all: its kernel is started once."""
    async with server.connect("u") as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _stays(server: RunningServer) -> AsyncIterator[None]:
    async with server.connect("u") as client:
        assert (await client.run("x = 1"))["success"]
        yield


async def test_a_cell_with_output_results_and_an_error(client: Client) -> None:
    result = await client.run("print('a'); import sys; print('b', file=sys.stderr); x + 1", requestId="r")
    assert (result["output"], result["success"], result["error"], result["requestId"]) == ("a\nb\n2\n", True, None, "r")
    assert result["stderr"] == "b\n"
    assert result["results"][0]["data"]["text/plain"] == "2"
    failed = await client.run("1/0")
    assert (failed["success"], failed["error"]) == (False, "ZeroDivisionError: division by zero")
    assert "1/0" in failed["traceback"]


async def test_a_streamed_cell(client: Client) -> None:
    code = (
        "from IPython.display import display, clear_output\nprint('one')\n"
        "h = display('shown', display_id=True)\nh.update('again')\nclear_output()"
    )
    await client.send(type="execute_code", sessionId="s", code=code, stream=True, requestId="r")
    result = await client.until(type="execution_result")
    # Output may come in several pieces.
    kinds = [kind for kind, _ in itertools.groupby(frame["type"] for frame in client.frames)]
    assert kinds == ["execution_started", "execution_output", "display_data", "update_display_data", "clear_output"]
    numbers = [frame["seq"] for frame in [*client.frames, result]]
    assert numbers == sorted(set(numbers))
    assert {frame["requestId"] for frame in client.frames} == {"r"}


async def test_input_is_asked_for_and_given(client: Client) -> None:
    await client.send(type="execute_code", sessionId="s", code="input('who? ')", allowStdin=True, requestId="r")
    asked = await client.until(type="input_request")
    assert (asked["prompt"], asked["password"]) == ("who? ", False)
    await client.send(type="input_reply", sessionId="s", value="me")
    assert (await client.until(type="execution_result"))["results"][0]["data"]["text/plain"] == "'me'"
    assert (await client.ask(type="input_reply", sessionId="s", value="x"))["code"] == "no_input_waiting"


async def test_an_interrupt_ends_a_cell_and_is_answered(client: Client) -> None:
    await client.send(type="execute_code", sessionId="s", code="print('on', flush=True)\nimport time\ntime.sleep(99)",
                      stream=True, requestId="r")  # fmt: skip
    await client.until(type="execution_output")
    await client.send(type="interrupt", sessionId="s", requestId="i")
    result = await client.until(type="execution_result")
    assert (result["cause"], result["success"]) == ("interrupted", False)
    told = [*client.frames, *([] if any(f.get("done") for f in client.frames) else [await client.until(done=True)])]
    assert any(frame["type"] == "interrupted" and frame["requestId"] == "i" for frame in told)


async def test_help(client: Client) -> None:
    complete = {"type": "complete", "sessionId": "s", "code": "impor", "cursor": 5}
    while (completed := await client.ask(**complete))["type"] == "error":
        assert (
            completed["code"] == "busy"
        )  # a loaded machine loads its completer for longer than a client is kept waiting
    assert (completed["type"], "import" in completed["matches"]) == ("complete_reply", True)
    inspected = await client.ask(type="inspect", sessionId="s", code="len", cursor=3)
    assert (inspected["type"], inspected["found"]) == ("inspect_reply", True)
    judged = await client.ask(type="is_complete", sessionId="s", code="for x in y:")
    assert (judged["type"], judged["status"]) == ("is_complete_reply", "incomplete")


async def test_a_command_plain_and_streamed(client: Client) -> None:
    done = await client.shell("echo out; echo err >&2; exit_code() { return 3; }; exit_code", requestId="r")
    assert (done["type"], done["output"], done["exitCode"]) == ("terminal_output", "out\nerr\n", 3)
    await client.send(type="terminal_command", sessionId="s", command="echo one; sleep 0.1; echo two", stream=True)
    done = await client.until(type="terminal_output")
    chunks = [frame["output"] if "output" in frame else frame["text"] for frame in client.frames]
    assert "".join(chunks) == "one\ntwo\n"


async def test_files(client: Client) -> None:
    saved = await client.ask(type="save_file", sessionId="s", filename="d/f", content="é")
    assert (saved["type"], saved["success"], saved["message"], saved["size"]) == (
        *("save_result", True, "File saved successfully"),
        2,
    )
    refused = await client.ask(type="save_file", sessionId="s", filename="../f", content="")
    assert (refused["type"], refused["success"], refused["code"]) == ("save_result", False, "invalid_field")
    read = await client.ask(type="read_file", sessionId="s", filename="d/f")
    assert (read["type"], read["content"]) == ("file_content", "é")
    listed = await client.ask(type="list_files", sessionId="s", path="d")
    assert [entry["path"] for entry in listed["files"]] == ["d/f"]
    for request in (
        {"type": "make_directory", "filename": "made"},
        {"type": "rename_file", "filename": "d/f", "newFilename": "made/g"},
        {"type": "delete_file", "filename": "made", "recursive": True},
    ):
        result = await client.ask(sessionId="s", **request)
        assert (result["type"], result["success"]) == ("file_result", True), result
    missing = await client.ask(type="read_file", sessionId="s", filename="none")
    assert (missing["type"], missing["code"]) == ("file_result", "not_found")


async def test_a_watch_tells_what_changes(client: Client) -> None:
    await client.ask(type="list_files", sessionId="s", watch=True)
    await client.ask(type="save_file", sessionId="s", filename="watched", content="x")
    if not any(frame["type"] == "file_changed" for frame in client.frames):
        await client.until(type="file_changed")


async def test_an_interactive_terminal(client: Client) -> None:
    opened = await client.ask(type="open_terminal", sessionId="s", terminalId="t", rows=24, cols=80)
    assert opened["type"] == "terminal_opened"
    await client.send(type="terminal_input", sessionId="s", terminalId="t", data="echo $((6*7))x\r")
    while "42x" not in "".join(str(frame.get("data", "")) for frame in client.frames):
        client.frames.append(await client.receive())
    await client.send(type="terminal_resize", sessionId="s", terminalId="t", rows=30, cols=90)
    await client.send(type="close_terminal", sessionId="s", terminalId="t")
    assert (await client.until(type="terminal_closed"))["terminalId"] == "t"
    unknown = await client.ask(type="terminal_input", sessionId="s", terminalId="t", data="x")
    assert unknown["code"] == "unknown_terminal"


async def test_sessions(server: RunningServer) -> None:
    async with server.connect("sessions") as client, server.connect("sessions", "stream=true") as follower:
        assert (await client.ask(type="session_info", sessionId="a"))["state"] == "absent"
        ready = await client.ask(type="open_session", sessionId="a", env={"KIND": "test"}, requestId="o")
        assert (ready["type"], ready["fresh"], ready["requestId"]) == ("session_ready", True, "o")
        conflict = await client.ask(type="open_session", sessionId="a", env={"KIND": "other"})
        assert conflict["code"] == "session_conflict"
        info = await client.ask(type="session_info", sessionId="a")
        assert (info["type"], info["state"]) == ("session_info_reply", "active")
        sessions = (await client.ask(type="list_sessions"))["sessions"]
        assert [entry["sessionId"] for entry in sessions] == ["a"]
        resumed = await follower.ask(type="resume", sessionId="a")
        assert resumed["type"] == "resumed"
        result = await client.run("import os; os.environ['KIND']", session="a")
        assert result["results"][0]["data"]["text/plain"] == "'test'"
        await client.send(type="close_session", sessionId="a", deleteFiles=True, requestId="c")
        closed = await client.until(type="close_session_reply")
        assert (closed["closed"], closed["filesDeleted"]) == (True, True)
        assert (await client.ask(type="resume", sessionId="a"))["code"] == "unknown_session"


async def test_what_cannot_be_read_is_told_and_costs_nothing(client: Client) -> None:
    for frame, code in (
        ("{", "invalid_json"),
        ("[]", "invalid_message"),
        ("{}", "missing_field"),
        ('{"type": "nothing"}', "unknown_type"),
        ('{"type": "execute_code", "sessionId": "s", "code": 1, "requestId": "r"}', "invalid_field"),
    ):
        await client.ws.send_str(frame)
        refused = await client.receive()
        assert (refused["type"], refused["code"]) == ("error", code)
    assert (refused["sessionId"], refused["requestId"]) == ("s", "r")
    await client.ws.send_bytes(b"{}")
    assert (await client.receive())["code"] == "binary_frame"
    assert (await client.ask(type="ping", requestId="p"))["requestId"] == "p"


async def test_a_restart_loses_variables_and_says_so(client: Client) -> None:
    restarted = await client.ask(type="restart_kernel", sessionId="s", requestId="k")
    assert (restarted["type"], restarted["requestId"]) == ("kernel_restarted", "k")
    result = await client.run("x")
    assert (result["success"], result["error"].split(":")[0]) == (False, "NameError")
    assert (await client.run("x = 1"))["success"]


@pytest.mark.parametrize("query", ["stream=maybe", "user_id=a&user_id=b", "user_id=%ff", f"user_id={'x' * 257}"])
async def test_a_query_that_means_nothing_is_refused(server: RunningServer, query: str) -> None:
    address = server.url.replace("ws://", "http://")
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    async with server.http.get(f"{address}?{query}", headers=headers) as answer:
        assert answer.status == 400


async def test_health_and_schema(server: RunningServer) -> None:
    async with server.http.get(f"{server.origin}/healthz") as answer:
        assert (await answer.json())["status"] == "ok"
    async with server.http.get(f"{server.origin}/readyz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ready")
    async with server.http.get(f"{server.origin}/api/schema") as answer:
        assert "execute_code" in await answer.text()
    async with server.http.get(f"{server.origin}/nothing") as answer:
        assert answer.status == 404


async def test_a_message_in_pieces_is_one_message(server: RunningServer) -> None:
    async with server.upgraded("u") as wire:
        whole = json.dumps({"type": "execute_code", "sessionId": "s", "code": "print('whole')"}).encode()
        wire.write(masked(1, whole[:10], fin=False), masked(0, whole[10:20], fin=False), masked(9, b"p"))
        wire.write(masked(0, whole[20:]), text(type="ping"))
        frames = [await wire.frame() for _ in range(3)]
        assert any(b'"whole\\n"' in payload for _, payload in frames)
        assert (10, b"p") in frames


async def test_an_error_of_the_server_costs_one_message(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def faulty_handler(*_: object) -> None:
        await asyncio.sleep(0)
        raise ArithmeticError

    with monkeypatch.context() as patched:
        handlers = {**PRINCIPAL_HANDLERS, ListSessions: faulty_handler, SessionInfo: faulty_handler}
        patched.setattr(connection, "PRINCIPAL_HANDLERS", handlers)
        failed = await client.ask(type="list_sessions", requestId="l")
        assert (failed["code"], failed["requestId"]) == ("internal_error", "l")
    assert (await client.ask(type="ping"))["type"] == "pong"


async def test_a_large_frame_is_read_in_turns_and_answered_before_the_next(client: Client) -> None:
    seen: set[int] = set()

    async def watch() -> None:
        while True:
            seen.add(len(turns()))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await client.send(type="nope", requestId="1", padding="x" * codec.LARGE)
    await client.send(type="ping", requestId="2")
    refused, pong = await client.receive(), await client.receive()
    watching.cancel()
    assert (refused["code"], refused["requestId"]) == ("unknown_type", "1")
    assert (pong["type"], pong["requestId"]) == ("pong", "2")
    assert seen == {0, 1}


async def test_a_client_that_sends_many_requests_leaves_turns_to_others(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled, most = [0, 0], 0
    clock = itertools.count(0, TURN / 4)

    def read(frame: bytes, *, strict: bool) -> object:
        handled[1] += 1
        return codec.read(frame, strict=strict)

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, handled[1] - handled[0])
            handled[0] = handled[1]
            await asyncio.sleep(0)

    monkeypatch.setattr(connection, "read", read)
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    async with server.upgraded() as wire:
        watching = asyncio.create_task(watch())
        wire.write(text(type="ping") * 400)
        for _ in range(400):
            assert b"pong" in (await wire.frame())[1]
        watching.cancel()
    assert handled[1] == 400
    assert most < 10
