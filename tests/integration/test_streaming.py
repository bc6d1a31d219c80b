"""Cells that are watched: what they write and show arrives while they run, in order, and before their result."""

import asyncio
import hashlib
from typing import Any

import pytest

from tests.integration.conftest import Client, Frame, RunningServer, StartServer, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""

DOCUMENTED = {"success", "output", "error", "timestamp", "sessionId"}


async def watch(client: Client, code: str, *, session: str = "s", **more: Any) -> list[Frame]:
    """Run a cell; give its events, the result last."""
    await client.send(type="execute_code", sessionId=session, code=code, **more)
    return await rest(client)


async def rest(client: Client) -> list[Frame]:
    """Give what comes until the result, but for what is told of the session itself."""
    frames: list[Frame] = []
    while not frames or frames[-1]["type"] not in {"execution_result", "error"}:
        frame = await client.receive()
        if frame["type"] != "session_status":
            frames.append(frame)
    return frames


def text_of(frames: list[Frame], *streams: str) -> str:
    """Join the text of the events on these streams, or on both."""
    return "".join(
        frame["text"]
        for frame in frames
        if frame["type"] == "execution_output" and frame["stream"] in (streams or ("stdout", "stderr"))
    )


@on_both_runtimes
async def test_events_come_in_order_and_the_result_is_the_last(client: Client) -> None:
    code = (
        "import sys\nprint('one')\nprint('two', file=sys.stderr)\n"
        "from IPython.display import HTML, clear_output, display\n"
        "handle = display(HTML('<b>x</b>'), display_id='d')\nhandle.update(HTML('<b>y</b>'))\n"
        "clear_output(wait=True)\nprint('three')\n6 * 7"
    )
    frames = await watch(client, code, stream=True, requestId="a")
    kinds = [frame["type"] for frame in frames]
    assert kinds[0] == "execution_started"
    shown = ["display_data", "update_display_data", "clear_output", "display_data", "execution_result"]
    assert [kind for kind in kinds[1:] if kind != "execution_output"] == shown
    assert {frame["requestId"] for frame in frames} == {"a"}
    numbers = [frame["seq"] for frame in frames]
    assert numbers == sorted(set(numbers))
    assert frames[0]["executionCount"] == frames[-1]["executionCount"]
    assert (text_of(frames, "stdout"), text_of(frames, "stderr")) == ("one\nthree\n", "two\n")
    first, update, clear, value = (frame for frame in frames[1:-1] if frame["type"] != "execution_output")
    assert (first["data"]["text/html"], first["displayId"]) == ("<b>x</b>", "d")
    assert "result" not in first
    assert (update["data"]["text/html"], update["displayId"]) == ("<b>y</b>", "d")
    assert clear["wait"] is True
    assert (value["data"], value["result"]) == ({"text/plain": "42"}, True)
    assert frames[-1]["output"] == "three\n42\n"


async def test_who_does_not_ask_sees_only_the_documented_messages(client: Client) -> None:
    frames = await watch(client, "print('x')\n1")
    assert [frame["type"] for frame in frames] == ["execution_result"]
    assert frames[0].keys() >= DOCUMENTED
    assert "seq" not in frames[0]


async def test_a_connection_may_ask_for_all_and_a_request_refuse(server: RunningServer) -> None:
    async with server.connect("tester&stream=true") as client:
        assert (await watch(client, "print('x')"))[0]["type"] == "execution_started"
        (only,) = await watch(client, "print('x')", stream=False)
        assert only["output"] == "x\n"
        assert (await watch(client, "print('x')"))[0]["type"] == "execution_started"


async def test_a_line_arrives_while_the_cell_is_blocked(client: Client) -> None:
    """The cell waits for what the test only writes when it has seen the line, which nothing flushed."""
    code = "import os\nos.mkfifo('go')\nprint('waiting')\nprint('and', open('go').read())"
    await client.send(type="execute_code", sessionId="s", code=code, stream=True, requestId="cell")
    frames: list[Frame] = []
    while text_of(frames) != "waiting\n":
        frames.append(await client.receive())
    await client.send(type="terminal_command", sessionId="s", command="printf gone > go", requestId="shell")
    frames.append(await client.answer_to("cell"))
    while frames[-1]["type"] != "execution_result":
        frames.append(await client.answer_to("cell"))
    assert text_of(frames) == frames[-1]["output"] == "waiting\nand gone\n"
    assert (await client.answer_to("shell"))["exitCode"] == 0


@on_both_runtimes
async def test_output_of_a_subprocess_arrives_while_it_is_blocked(client: Client) -> None:
    code = "import subprocess\n_ = subprocess.run('mkfifo go2; echo waiting; cat go2', shell=True)"
    await client.send(type="execute_code", sessionId="s", code=code, stream=True, requestId="cell")
    frames: list[Frame] = []
    while text_of(frames) != "waiting\n":
        frames.append(await client.receive())
    await client.send(type="terminal_command", sessionId="s", command="echo gone > go2", requestId="shell")
    while not frames or frames[-1]["type"] != "execution_result":
        frames.append(await client.answer_to("cell"))
    assert text_of(frames) == "waiting\ngone\n"


async def test_the_streams_are_never_reordered(client: Client) -> None:
    code = "import sys\nfor i in range(300):\n    print('out', i)\n    print('err', i, file=sys.stderr)"
    frames = await watch(client, code, stream=True)
    assert text_of(frames) == "".join(f"out {i}\nerr {i}\n" for i in range(300))
    assert text_of(frames) == frames[-1]["output"]


async def test_small_writes_are_merged(client: Client) -> None:
    frames = await watch(client, "for i in range(20_000): print(i, flush=True)", stream=True)
    assert text_of(frames) == "".join(f"{i}\n" for i in range(20_000))
    assert len(frames) < 20_000


async def test_a_failure_is_in_the_result_behind_the_output(client: Client) -> None:
    frames = await watch(client, "print('before')\n1 / 0", stream=True)
    kinds = [frame["type"] for frame in frames]
    assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == ("execution_started", {"execution_output"}, "execution_result")
    assert frames[-1]["error"] == "ZeroDivisionError: division by zero"
    assert (await watch(client, "a b", stream=True))[-1]["error"] == "SyntaxError: invalid syntax"


@on_both_runtimes
async def test_a_cell_whose_kernel_dies_ends_its_stream(client: Client) -> None:
    # What it says in its very last moment can die with it: so it lives until that has been seen.
    code = "import os\nprint('last', flush=True)\nwhile not os.path.exists('go'): pass\nos._exit(1)"
    await client.send(type="execute_code", sessionId="s", code=code, stream=True, requestId="cell")
    frames: list[Frame] = []
    while text_of(frames) != "last\n":
        frames.append(await client.receive())
    await client.send(type="save_file", sessionId="s", filename="go", content="", requestId="go")
    await client.answer_to("go")
    frames += await rest(client)
    assert text_of(frames) == frames[-1]["output"] == "last\n"
    assert frames[-1]["cause"] == "kernel_died"
    assert "seq" in frames[-1]


async def test_waiting_cells_tell_nothing_before_they_run(client: Client) -> None:
    for name in "ab":
        await client.send(type="execute_code", sessionId="s", code=f"print('{name}')", stream=True, requestId=name)
    frames = await rest(client) + await rest(client)
    assert [frame["requestId"] for frame in frames] == ["a"] * 3 + ["b"] * 3
    assert [frame["seq"] for frame in frames] == sorted(frame["seq"] for frame in frames)


async def test_a_client_that_does_not_read_misses_events_and_is_told(start_server: StartServer) -> None:
    """More than a hundred megabytes, to a client that reads only when the cell is over."""
    server = await start_server(max_output="1m")
    flood = "line = 'x' * 999\nfor _ in range(110_000): print(line)\n_ = open('done', 'w').write('x')"
    async with server.connect("a") as deaf, server.connect("a") as other, server.connect("b") as neighbour:
        await other.shell("mkfifo done")
        await deaf.send(type="execute_code", sessionId="s", code=flood, stream=True)
        flooded = asyncio.create_task(other.shell("cat done"))
        answered = 0
        while not flooded.done() or not answered:
            assert (await neighbour.run("6 * 7"))["output"] == "42\n"
            answered += 1
        assert (await flooded)["exitCode"] == 0
        frames = await rest(deaf)
        result = frames[-1]
        size = 1000 * 110_000
        told = sum(frame.get("leftOut", 0) for frame in frames)
        missed = result["truncated"]["events"]
        assert told <= missed > 0
        assert len(text_of(frames)) + missed == size
        assert result["truncated"]["bytes"] + len(result["output"]) == size
        assert result["truncated"]["fileComplete"] is True
        reader = await other.run(f"import os; os.path.getsize({result['truncated']['file']!r})")
        assert reader["output"] == f"{size}\n"
        # It reads again, so it misses nothing more.
        frames = await watch(deaf, "print('again')", stream=True)
        assert text_of(frames) == "again\n"
        assert "truncated" not in frames[-1]


PRINTS = (
    "import sys\nfor i in range(4000):\n"
    "    print(f'out {i:>20}')\n    print(f'err {i:>20}', file=sys.stderr)\n'the value'"
)
PRINTED = "".join(f"out {i:>20}\nerr {i:>20}\n" for i in range(4000)) + "'the value'\n"


@pytest.mark.parametrize("stream", [False, True])
async def test_output_past_the_limit_is_in_a_file(start_server: StartServer, stream: bool) -> None:  # noqa: FBT001  a parameter
    server = await start_server(max_output=str(len(PRINTED) // 3))
    async with server.connect() as client:
        frames = await watch(client, PRINTS, stream=stream)
        result = frames[-1]
        truncated = result["truncated"]
        head, tail = result["output"][: truncated["at"]], result["output"][truncated["at"] :]
        assert PRINTED.startswith(head)
        assert PRINTED.endswith(tail)
        assert len(head) > 1000 < len(tail)
        assert truncated["bytes"] == len(PRINTED) - len(result["output"])
        assert truncated["fileComplete"] is True
        assert truncated["file"].startswith(".kernelbridge/output/")
        if stream:
            assert text_of(frames) == PRINTED[: -len("'the value'\n")]
        digest = hashlib.sha256(PRINTED.encode()).hexdigest()
        read = f"import hashlib; hashlib.sha256(open({truncated['file']!r}, 'rb').read()).hexdigest()"
        assert (await client.run(read))["output"] == f"'{digest}'\n"
        assert (await client.shell(f"sha256sum < {truncated['file']}"))["output"].startswith(digest)


async def test_answers_keep_their_order_while_a_file_is_written(start_server: StartServer) -> None:
    server = await start_server(max_output="64k")
    async with server.connect() as client:
        for code in ("print('x' * 3_000_000)", "'next'"):
            await client.send(type="execute_code", sessionId="s", code=code)
        first, second = await client.receive(), await client.receive()
        assert first["truncated"]["fileComplete"] is True
        assert second["output"] == "'next'\n"


async def test_a_file_has_its_own_limit(start_server: StartServer) -> None:
    server = await start_server(max_output="64k", max_spill="100k")
    async with server.connect() as client:
        result = await client.run("print('x' * 300_000)")
        assert result["truncated"]["fileComplete"] is False
        size = await client.run(f"import os; os.path.getsize({result['truncated']['file']!r})")
        assert size["output"] == f"{100 << 10}\n"
    server = await start_server(max_output="64k", max_spill="0", data_dir=str(server.data_dir) + "2")
    async with server.connect() as client:
        truncated = (await client.run("print('x' * 300_000)"))["truncated"]
        assert truncated.keys() == {"bytes", "kept", "at", "stdout", "stderr", "results"}
        assert (await client.shell("ls -A"))["output"].find(".kernelbridge") == -1


async def test_a_link_in_the_way_costs_only_the_file(start_server: StartServer) -> None:
    server = await start_server(max_output="64k")
    async with server.connect() as client:
        await client.shell("mkdir elsewhere && rm -rf .kernelbridge && ln -s elsewhere .kernelbridge")
        result = await client.run("print('x' * 300_000)")
        assert result["success"]
        assert result["truncated"]["bytes"] > 200_000
        assert "file" not in result["truncated"]
        assert (await client.shell("ls -A elsewhere"))["output"] == ""
