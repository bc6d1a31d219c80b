"""Coming back: nothing that a session told is missing or twice, and what is gone is said to be."""

import asyncio
import itertools
import re

import pytest

from tests.integration.conftest import Client, Frame, RunningServer, StartServer, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""

TURNS = itertools.count()
COUNTING = "import time\nfor n in range(%d):\n    print(n, flush=True); time.sleep(0.02)"


async def until(client: Client, kind: str) -> list[Frame]:
    """Give the frames that come, to the first of a kind."""
    found = [await client.receive()]
    while found[-1]["type"] != kind:
        found.append(await client.receive())
    return found


def text(frames: list[Frame]) -> str:
    return "".join(frame["text"] for frame in frames if frame["type"] == "execution_output")


def numbers(frames: list[Frame]) -> list[int]:
    return [frame["seq"] for frame in frames if "seq" in frame]


@pytest.fixture
async def lasting(share_server: StartServer) -> RunningServer:
    """A server whose sessions outlive their connections."""
    return await share_server(linger="60s")


async def idle(client: Client) -> None:
    """Wait until no cell runs: the next one has its turn."""
    number = next(TURNS)
    await client.send(type="execute_code", sessionId="s", code="pass", requestId=f"turn {number}")
    assert (await client.answer_to(f"turn {number}"))["success"]


async def until_resumed(client: Client) -> int:
    """Follow the session from its latest event on; gives its number."""
    last = int((await client.ask(type="session_info", sessionId="s"))["lastSeq"])
    assert (await client.ask(type="resume", sessionId="s", after=last))["to"] == last
    return last


async def test_a_refusal_is_told_to_whoever_resumes(start_server: StartServer) -> None:
    server = await start_server(queue_limit="1", linger="60s")
    async with server.connect("u") as client:
        await idle(client)
        await client.shell("mkfifo gate")  # at which the first one waits
        for request_id in ("runs", "waits", "refused"):
            code = "open('gate').read()" if request_id == "runs" else "pass"
            await client.send(type="execute_code", sessionId="s", code=code, requestId=request_id)
        refused = await client.answer_to("refused")
        async with server.connect("u") as back:
            await back.ask(type="resume", sessionId="s", after=0)
            told = await back.answer_to("refused")
        assert told.pop("seq") > 0
        assert told == refused
        assert (refused["type"], refused["code"]) == ("error", "limit_exceeded")


async def resumed_with(client: Client, after: int, ids: list[str]) -> Frame:
    """Resume the session, and give the answer, which frames of the session may come before."""
    number = next(TURNS)
    await client.send(type="resume", sessionId="s", after=after, requestIds=ids, requestId=f"resume {number}")
    return await client.answer_to(f"resume {number}")


async def test_who_resumes_learns_which_requests_get_no_answer_any_more(start_server: StartServer) -> None:
    server = await start_server(journal_size="1k", linger="60s")  # for two answers
    async with server.connect("u") as client:
        assert (await client.shell("mkfifo gate shell_gate", requestId="received"))["exitCode"] == 0
        for _ in range(3):
            await idle(client)
        for gate, request in (("gate", "execute_code"), ("shell_gate", "terminal_command")):
            for request_id in (f"{request} runs", f"{request} waits"):
                code = {"code": f"open({gate!r}).read()"} if request == "execute_code" else {"command": f"cat {gate}"}
                await client.send(type=request, sessionId="s", requestId=request_id, **code)
        await client.send(type="ping", requestId="all arrived")
        await client.answer_to("all arrived")
    ids = [f"{request} {what}" for request in ("execute_code", "terminal_command") for what in ("runs", "waits")]
    async with server.connect("u") as back:
        asked = [*ids, "received", "never sent"]
        resumed = await resumed_with(back, 0, asked)
        assert resumed["unknownRequests"] == ["received", "never sent"]
        assert "unknownRequests" not in await resumed_with(back, 0, ids)
        await back.send(type="restart_kernel", sessionId="s", requestId="restart")
        assert (await back.answer_to("execute_code runs"))["cause"] == "kernel_restarted"
        assert (await back.answer_to("execute_code waits"))["cause"] == "kernel_restarted"
        await back.answer_to("restart")
        await back.send(type="interrupt", sessionId="s", target="terminal", queued=True, requestId="interrupt")
        await back.answer_to("terminal_command runs")
        await back.answer_to("interrupt")
        for _ in range(3):
            await idle(back)
        resumed = await resumed_with(back, 0, ids)
        assert resumed["unknownRequests"] == ids, "they were answered, and other answers came since"


async def test_an_answer_that_is_kept_is_not_unknown(lasting: RunningServer) -> None:
    async with lasting.connect("u") as client:
        await client.run("1", requestId="a")
    async with lasting.connect("u") as back:
        resumed = await resumed_with(back, 0, ["a"])
        assert "unknownRequests" not in resumed
        seq = (await back.answer_to("a"))["seq"]
        resumed = await resumed_with(back, seq, ["a"])
        assert resumed["unknownRequests"] == ["a"], "it will not follow again"


async def test_a_run_whose_client_left_is_told_to_whoever_resumes(lasting: RunningServer) -> None:
    async with lasting.connect("u") as client:
        await client.send(type="execute_code", sessionId="s", code=COUNTING % 60, stream=True, requestId="a")
        seen = await until(client, "execution_output")
    async with lasting.connect("u") as client:
        resumed = await client.ask(type="resume", sessionId="s", after=seen[-1]["seq"], requestId="back")
        assert (resumed["type"], resumed["requestId"]) == ("resumed", "back")
        assert "lost" not in resumed
        missed = await until(client, "execution_result")
    assert text(seen + missed) == missed[-1]["output"] == "".join(f"{n}\n" for n in range(60))
    assert numbers(seen + missed) == sorted(set(numbers(seen + missed)))
    assert resumed["from"] == seen[-1]["seq"] + 1
    assert {frame.get("requestId") for frame in missed if frame["type"].startswith("execution")} == {"a"}


@on_both_runtimes
async def test_a_result_that_nobody_was_there_for_is_delivered(lasting: RunningServer) -> None:
    """Of a plain client, which asked for no events: the whole answer is in its result."""
    async with lasting.connect("u") as client:
        await client.run("pass")
        await client.send(type="execute_code", sessionId="s", code="print('done')", requestId="a")
        await client.send(type="terminal_command", sessionId="s", command="echo too", requestId="b")
    async with lasting.connect("u") as client:
        await idle(client)
        await client.shell("true")
        await client.send(type="resume", sessionId="s")
        answers: dict[str | None, Frame] = {}
        while not {"a", "b"} <= answers.keys():
            frame = await client.receive()
            answers[frame.get("requestId")] = frame
        assert (answers["a"]["output"], answers["b"]["output"]) == ("done\n", "too\n")
        assert answers["a"]["seq"] > 0


@on_both_runtimes
async def test_two_who_resume_get_everything_each(lasting: RunningServer) -> None:
    async with lasting.connect("u") as first, lasting.connect("u") as second, lasting.connect("u") as asking:
        await asking.run("pass")
        for client in (first, second):
            await until_resumed(client)
        await asking.send(type="execute_code", sessionId="s", code=COUNTING % 20, stream=True)
        heard = [await until(client, "execution_result") for client in (asking, first, second)]
        assert heard[1] == heard[2]
        assert text(heard[0]) == text(heard[1]) == heard[1][-1]["output"]
        assert heard[0][-1] == heard[1][-1]


async def test_who_resumes_while_it_runs_goes_on_without_a_gap_or_a_duplicate(lasting: RunningServer) -> None:
    async with lasting.connect("u") as asking:
        await asking.send(type="execute_code", sessionId="s", code=COUNTING % 100, stream=True)
        await until(asking, "execution_output")
        async with lasting.connect("u") as client:
            await client.ask(type="resume", sessionId="s")
            followed = await until(client, "execution_result")
    assert text(followed) == "".join(f"{n}\n" for n in range(100))
    assert numbers(followed) == sorted(set(numbers(followed)))


async def test_who_resumed_is_answered_once_and_with_numbers(lasting: RunningServer) -> None:
    async with lasting.connect("u") as client:
        await client.run("pass")
        await until_resumed(client)
        frame = await client.run("print(1)", requestId="a")
        assert (frame["output"], frame["requestId"], frame["seq"] > 0) == ("1\n", "a", True)
        assert (await client.shell("echo 2"))["output"] == "2\n"
        assert (await client.ask(type="save_file", sessionId="s", filename="f", content=""))["seq"] > frame["seq"]
        assert (await client.ask(type="ping"))["type"] == "pong"


async def test_what_fell_out_of_the_journal_is_said_and_results_are_kept(start_server: StartServer) -> None:
    server = await start_server(linger="60s", journal_size="200k")
    async with server.connect("u") as client:
        await client.run("pass")
        await client.send(type="execute_code", sessionId="s", code="print('first' * 9000)", requestId="big")
        await client.send(
            type="execute_code",
            sessionId="s",
            code="for n in range(300):\n    print(n, 'x' * 3000, flush=True)",
            stream=True,
            requestId="many",
        )
        await until(client, "execution_started")
    async with server.connect("u") as client:
        await idle(client)
        resumed = await client.ask(type="resume", sessionId="s", after=1)
        lost = resumed["lost"]
        assert (lost["from"], lost["to"] > 3) == (2, True)
        frames = await until_request(client, "many")
        results = {frame["requestId"]: frame for frame in frames if frame["type"] == "execution_result"}
        assert results["many"]["output"].count("x" * 3000) == 300
        assert all(frame["seq"] > lost["to"] for frame in frames if frame["type"] == "execution_output")


async def until_request(client: Client, request_id: str) -> list[Frame]:
    frames = [await client.receive()]
    while (frames[-1]["type"], frames[-1].get("requestId")) != ("execution_result", request_id):
        frames.append(await client.receive())
    return frames


async def test_a_terminal_that_is_opened_meanwhile_costs_nothing_of_what_was_missed(start_server: StartServer) -> None:
    """Its frames overtake what the connection is still being given, and then that is lost, too."""
    lasting = await start_server(linger="60s", journal_size="16m")
    async with lasting.connect("u") as client:
        await client.send(type="open_terminal", sessionId="s", terminalId="t")
        await until(client, "terminal_opened")
        await client.send(type="execute_code", sessionId="s", code="for n in range(6000): display(n)", stream=True)
        shown = {frame["seq"] for frame in await until(client, "execution_result") if frame["type"] == "display_data"}
        assert len(shown) == 6000
    seen: list[int] = []
    after = 0
    for more in itertools.cycle((0, 2000)):  # frames that come until the connection is lost again
        async with lasting.connect("u") as client:
            await client.send(type="resume", sessionId="s", after=after)
            await client.send(type="open_terminal", sessionId="s", terminalId="t")
            frames = await until(client, "terminal_opened")
            while not (over := "execution_result" in {frame["type"] for frame in frames}) and len(frames) < more:
                frames.append(await client.receive())
        after = numbers(frames)[-1]
        seen += [frame["seq"] for frame in frames if frame["type"] == "display_data"]
        assert seen == sorted(number for number in shown if number <= after)
        if over:
            break
    assert len(seen) == len(shown)


async def test_numbers_of_a_session_that_was_closed_since_are_not_taken_for_its_own(lasting: RunningServer) -> None:
    async with lasting.connect("u") as client:
        before = (await client.ask(type="open_session", sessionId="s"))["created"]
        await client.ask(type="close_session", sessionId="s")
        assert (await client.ask(type="resume", sessionId="s"))["code"] == "unknown_session"
    async with lasting.connect("u") as client:
        await client.run("print('anew')")
        resumed = await client.ask(type="resume", sessionId="s", after=1000)
        assert (resumed["anew"], resumed["from"]) == (True, 1)
        assert resumed["created"] > before
        assert (await until(client, "execution_result"))[-1]["output"] == "anew\n"


async def test_resuming_keeps_a_session_that_was_about_to_end(start_server: StartServer) -> None:
    server = await start_server(linger="5s")
    async with server.connect("u") as client:
        await client.run("x = 1")
    async with server.connect("u") as client:
        assert (await client.ask(type="resume", sessionId="s", after=1000))["anew"]
        await until(client, "execution_result")
        await client.send(type="execute_code", sessionId="s", code="import time; time.sleep(6); print(x)")
        assert (await until(client, "execution_result"))[-1]["output"] == "1\n"


async def test_who_follows_a_flood_lazily_holds_nobody_up_and_gets_the_results(start_server: StartServer) -> None:
    """A client that reads nothing for a while is given the rest from the journal when it reads again."""
    server = await start_server(linger="60s", max_output="64m")
    async with server.connect("u") as asking, server.connect("u") as lazy:
        await asking.run("pass")
        await until_resumed(lazy)
        code = "for n in range(3000):\n    print('%06d' % n + 'y' * 6000)"
        await asking.send(type="execute_code", sessionId="s", code=code, requestId="flood")
        result = await asking.answer_to("flood")
        assert len(re.findall("y{6000}", result["output"])) == 3000
        assert (await asking.run("print('served')"))["output"] == "served\n"
        assert (await until_request(lazy, "flood"))[-1]["output"] == result["output"]
        assert (await lazy.receive())["output"] == "served\n"


async def test_a_large_result_that_a_client_did_not_take_is_there_when_it_comes_back(start_server: StartServer) -> None:
    """Larger than the journal, and on its way when the connection broke."""
    lasting = await start_server(linger="60s", max_output="64m")
    async with lasting.connect("u") as client:
        await client.run("pass")
        await client.send(type="execute_code", sessionId="s", code="print('z' * 30_000_000)", requestId="big")
        transport = client.ws._response.connection.transport  # type: ignore[union-attr]
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        async with lasting.connect("u") as other:
            assert (await other.run("print('after')"))["output"] == "after\n"
        transport.abort()
    async with lasting.connect("u") as client:
        while True:
            await client.send(type="resume", sessionId="s", after=1, requestId="r")
            resumed = await client.answer_to("r")
            found = {frame.get("requestId"): frame for frame in client.frames}
            if resumed["to"] >= 3:
                break
        while "big" not in found:
            frame = await client.receive()
            found[frame.get("requestId")] = frame
        assert found["big"]["output"] == "z" * 30_000_000 + "\n"
        await asyncio.wait_for(client.run("pass", requestId="end"), 30)
