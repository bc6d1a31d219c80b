"""Sessions that work against their server: whatever they do, they are answered, and they can be ended."""

import asyncio
from pathlib import Path

from tests.integration.conftest import RunningServer, StartServer
from tests.integration.test_lifecycle import running

# Stops every process of the sandbox but the cell's own, the one that starts and signals all others included.
STOP_ALL = """
import os, signal
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGSTOP)
        except OSError: pass
"""


async def gone(server: RunningServer) -> None:
    """Wait until no sandbox of the server is left."""
    async with asyncio.timeout(60):
        while list((server.data_dir / "run").iterdir()):
            await server.http.get(server.url.replace("ws://", "http://").removesuffix("/ws") + "/healthz")
    assert running(server) == []


async def test_a_session_that_stops_its_own_sandbox_is_destroyed_all_the_same(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.run("pass")
        await client.run(STOP_ALL)
    await gone(server)
    async with server.connect("u") as client:
        assert (await client.run("print('again')"))["output"] == "again\n"


async def test_a_time_limit_holds_in_a_sandbox_that_takes_no_signal(start_server: StartServer) -> None:
    server = await start_server(execution_timeout="1s")
    async with server.connect("u") as client:
        swallow = "import time\nwhile True:\n  try:\n    while True: time.sleep(60)\n  except KeyboardInterrupt: pass"
        frame = await client.run(STOP_ALL + swallow)
        assert (frame["cause"], frame["statePreserved"]) == ("timeout", False)
        assert (await client.run("print('again')"))["output"] == "again\n"


TAKE_REPLY_AWAY = """
session = get_ipython().kernel.session
send = session.send
def send_others(stream, what, *more, **named):
    return {'content': {'status': 'ok'}} if what == 'execute_reply' else send(stream, what, *more, **named)
session.send = send_others
print('so far')
"""


async def test_a_cell_that_takes_its_reply_away_is_told_soon_and_the_next_runs(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.run("x = 1")
        async with asyncio.timeout(30):  # five seconds where nothing else runs
            frame = await client.run(TAKE_REPLY_AWAY)
        assert (frame["output"], frame["cause"], frame["statePreserved"]) == ("so far\n", "kernel_died", False)
        assert "sent no reply" in frame["error"]
        assert (await client.run("print('again', 'x' in globals())"))["output"] == "again False\n"


async def test_files_in_the_way_of_packages_cost_packages_only(server: RunningServer) -> None:
    async with server.connect("u") as client:
        assert (await client.shell("rm -rf ~/.local; echo mine > ~/.local"))["exitCode"] == 0
    async with server.connect("u") as client:
        frame = await client.run("print('runs')")
        assert frame["output"] == "runs\n"
        assert "packages cannot be installed in this session" in frame["lateOutput"]
        assert (await client.shell("rm ~/.local; echo removed"))["output"] == "removed\n"
    async with server.connect("u") as client:
        assert "packages" not in (await client.run("pass")).get("lateOutput", "")


async def test_links_planted_where_the_server_writes_lead_nowhere(server: RunningServer, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    async with server.connect("u") as client:
        await client.shell(f"rm -rf ~/.local; ln -s {outside} ~/.local; ln -s {outside} ~/d; ln -s {outside}/f ~/f")
        saved = await client.ask(type="save_file", sessionId="s", filename="f", content="x")
        assert saved["success"]
        refused = await client.ask(type="save_file", sessionId="s", filename="d/f", content="x")
        assert not refused["success"]
        for name in ("../f", "/tmp/f", "a/../../f", ""):
            refused = await client.ask(type="save_file", sessionId="s", filename=name, content="x")
            assert (refused["type"], refused["success"]) == ("save_result", False), name
            assert refused["message"]
    async with server.connect("u") as client:
        assert (await client.run("print(open('f').read())"))["output"] == "x\n"
    assert list(outside.iterdir()) == []


async def test_large_requests_that_wait_are_refused_before_they_fill_the_memory(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.shell("mkfifo gate")
        await client.send(type="execute_code", sessionId="s", code="open('gate').read()", requestId="first")
        for number in range(6):
            code = "#" * (12 << 20)
            await client.send(type="execute_code", sessionId="s", code=code, requestId=str(number))
        refused = await client.answer_to("5")
        assert (refused["type"], refused["code"], refused["retryable"]) == ("error", "limit_exceeded", True)
        await client.send(type="terminal_command", sessionId="s", command="echo >gate", requestId="open")
        assert (await client.answer_to("0"))["success"]


DIG = """
import os, time
while True:
    try:
        os.chdir('/run/kernelbridge/k2')
        os.mkdir('deep')
        break
    except OSError:
        pass
os.chdir('deep')
for _ in range(1500):
    os.mkdir('d')
    os.chdir('d')
open('done', 'w')
"""


async def test_a_deep_tree_among_the_sockets_costs_nobody_anything(server: RunningServer) -> None:
    """While a kernel binds, its directory is open to the sandbox: what it makes there is deeper than any stack."""
    async with server.connect("u") as client:
        code = (
            "import subprocess, sys, os\n"
            f"subprocess.Popen([sys.executable, '-c', {DIG!r}], start_new_session=True)\n"
            "os._exit(3)"
        )
        await client.send(type="execute_code", sessionId="s", code=code)
        await client.send(type="execute_code", sessionId="s", code="print('after')")
        assert (await client.receive())["cause"] == "kernel_died"
        assert (await client.receive())["output"] == "after\n"
        await client.send(type="execute_code", sessionId="s", code="import os; os._exit(3)")
        await client.send(type="execute_code", sessionId="s", code="print('again')")
        assert (await client.receive())["cause"] == "kernel_died"
        assert (await client.receive())["output"] == "again\n"
    await gone(server)
    async with server.connect("u") as client:
        assert (await client.run("print('back')"))["output"] == "back\n"
