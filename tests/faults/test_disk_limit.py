"""A session that uses up its share of the disk: it is told and stopped, can delete, and is felt by nobody else."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator

import pytest

from tests.faults.conftest import begin, status_with
from tests.integration.conftest import Client, RunningServer, on_both_runtimes
from tests.integration.test_transfers import fetch, root

RUNTIMES = ("local",)

MIB = 1 << 20
FLAGS = {"disk": "32m", "disk_files": "2000", "max_output": "100k"}
TOLD = 30.0
"""Seconds within which a writer is stopped here; it takes five where nothing else runs."""

WRITES = """
import time
with open('big', 'wb', buffering=0) as file:
    while True:
        file.write(b'x' * 1_000_000)
        time.sleep(0.02)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
for number in range(10**9):
    open(f'f{number}', 'w').close()
"""
WITHOUT_A_NAME = """
import os, time
file = open('gone', 'wb', buffering=0)
os.unlink('gone')
while True:
    file.write(b'x' * 1_000_000)
    time.sleep(0.02)
"""


@pytest.fixture
async def server(share_server: object) -> RunningServer:
    return await share_server(**FLAGS)  # type: ignore[operator, no-any-return]


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    async with server.connect("u") as client:
        assert (await client.run("x = 1"))["success"]
        yield client


async def info(client: Client) -> dict[str, int]:
    reply = await client.ask(type="session_info", sessionId="s")
    disk = reply["disk"]
    assert isinstance(disk, dict)
    return disk


@on_both_runtimes
async def test_a_cell_that_writes_too_much_is_interrupted_and_keeps_its_variables(
    server: RunningServer, client: Client
) -> None:
    async with server.connect("neighbour") as neighbour:
        await neighbour.run("1")
        began = time.monotonic()
        result = await client.run(WRITES)
        print(f"stopped after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < TOLD
        assert (result["success"], result["cause"], result["statePreserved"]) == (False, "disk_limit", True)
        assert "of 32.0 MiB of disk" in result["hint"]
        assert (await neighbour.run("open('f', 'w').write('x'); print(1)"))["output"] == "1\n"
    disk = await info(client)
    assert disk["used"] > disk["limit"] == 32 * MIB
    assert disk["maxFiles"] == 2000
    # Above its limit it can still run, read and delete, and then write again.
    assert (await client.run("import os; print(x, os.path.getsize('big') > 0)"))["output"] == "1 True\n"
    refused = await client.ask(type="save_file", sessionId="s", filename="small", content="x")
    assert (refused["success"], refused["code"]) == (False, "disk_limit")
    assert "of 32.0 MiB of disk" in refused["message"]
    assert "delete files" in refused["message"]
    response = await fetch(server, "sent", "PUT", data=b"x")
    assert (response.status, (await response.json())["code"]) == (507, "disk_limit")
    assert (await client.ask(type="delete_file", sessionId="s", filename="big"))["success"]
    assert (await client.ask(type="save_file", sessionId="s", filename="small", content="x"))["success"]
    assert (await info(client))["used"] < MIB


async def test_a_command_and_what_it_left_running_are_ended(client: Client, server: RunningServer) -> None:
    async with server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        loop = "while true; do head -c 1000000 /dev/zero >>big; sleep 0.02; done"
        result = await client.shell(f"({loop}) & sleep 1000")
        assert (result["cause"], "of 32.0 MiB of disk" in result["hint"]) == ("disk_limit", True)
        status = await status_with(watcher, "disk_limit")
        assert "of 32.0 MiB of disk" in status["detail"]
    size = (root(server) / "big").stat().st_size
    await client.shell("jobs")  # bash reports what was killed
    assert (await client.shell("jobs; echo none"))["output"] == "none\n"
    assert (root(server) / "big").stat().st_size == size


async def test_who_cannot_be_interrupted_is_ended_with_the_sandbox_which_starts_again(
    client: Client, server: RunningServer
) -> None:
    began = time.monotonic()
    result = await client.run(STUBBORN)
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < TOLD
    assert (result["cause"], result["statePreserved"]) == ("disk_limit", False)
    assert "of 2,000 files" in result["hint"]
    assert len(list(root(server).iterdir())) > 2000
    again = await client.run("import glob, os\nfor f in glob.glob('f*'): os.unlink(f)\nprint('deleted')")
    assert (again["output"], again["success"]) == ("deleted\n", True)
    assert (await info(client))["files"] < 100
    made = await client.ask(type="make_directory", sessionId="s", filename="a/b")
    assert made["success"]


async def test_a_writer_that_no_request_waits_for_is_ended_and_the_next_result_says_why(client: Client) -> None:
    await client.run(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WRITES!r}]); None")
    async with asyncio.timeout(TOLD):
        while (await client.ask(type="session_info", sessionId="s"))["state"] == "active":
            pass
    result = await client.run("import os; os.unlink('big')")
    assert "everything that ran was ended" in result["lateOutput"]
    assert "of 32.0 MiB of disk" in result["lateOutput"]


async def test_what_has_no_name_any_more_counts_while_it_is_open(client: Client) -> None:
    if os.geteuid() != 0:
        return  # the server cannot tell whose it is
    result = await client.run(WITHOUT_A_NAME)
    assert result["cause"] == "disk_limit"


async def test_sparse_files_count_by_their_blocks(client: Client) -> None:
    assert (await client.run("open('sparse', 'w').truncate(10**12)"))["success"]
    disk = await info(client)
    assert disk["used"] < MIB


async def test_uploads_are_refused_before_they_are_sent_and_while_they_arrive(server: RunningServer) -> None:
    """Of a session that HTTP alone has made, too."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * MIB

    for number in range(4):
        assert (await fetch(server, f"f{number}", "PUT", session="http", data=b"x" * 7 * MIB)).status == 201
    for data in (b"x" * 7 * MIB, chunks()):
        response = await fetch(server, "more", "PUT", session="http", data=data)
        told = await response.json()
        assert (response.status, told["code"]) == (507, "disk_limit")
        assert "of 32.0 MiB of disk" in told["error"]
    assert not (root(server, session="http") / "more").exists()
    async with server.connect("u") as client:
        reply = await client.ask(type="session_info", sessionId="http")
        assert (reply["state"], reply["disk"]["used"] >= 28 * MIB) == ("absent", True)
        assert (await client.run("print(len(open('f0').read()))", session="http"))["output"] == f"{7 * MIB}\n"


async def test_the_file_with_the_whole_output_counts(client: Client) -> None:
    result = await client.run("for _ in range(40): print('x' * 1_000_000)")
    assert result["success"] or result["cause"] == "disk_limit"
    assert result["truncated"]["fileComplete"] is False
    assert (await info(client))["used"] <= 32 * MIB + MIB


async def test_a_session_that_starts_above_its_limit_is_told_and_not_stopped(server: RunningServer) -> None:
    (root(server, session="old")).mkdir(parents=True)
    (root(server, session="old") / "big").write_bytes(b"x" * 40 * MIB)
    async with server.connect("u") as client:
        result = await client.run("import os, time; time.sleep(4); os.unlink('big'); print('free')", session="old")
        assert (result["output"], result["success"]) == ("free\n", True)
        assert "disk limit" in result["lateOutput"]


async def test_who_only_runs_after_the_limit_was_passed_is_not_interrupted(
    client: Client, server: RunningServer
) -> None:
    """What has passed it may have ended before the server looked."""
    written = root(server, session="elsewhere")
    written.mkdir(parents=True)
    (written / "big").write_bytes(b"x" * 40 * MIB)
    async with server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        await begin(client, "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint(x)")
        (written / "big").rename(root(server) / "big")
        shutil.rmtree(written.parent)
        assert "of 32.0 MiB of disk" in (await status_with(watcher, "disk_limit"))["detail"]
        assert (await watcher.shell("touch go"))["exitCode"] == 0
    result = await client.answer_to("cell")
    assert (result["output"], result["success"]) == ("1\n", True)
    assert "of 32.0 MiB of disk" in result["lateOutput"]


async def test_an_interrupt_of_the_users_own_has_its_own_cause(client: Client) -> None:
    await begin(client, "import time; time.sleep(1000)")
    await client.send(type="interrupt", sessionId="s", requestId="i")
    assert (await client.answer_to("cell"))["cause"] == "interrupted"
    while not (await client.answer_to("i"))["done"]:
        pass
