"""Daemons of every kind, in a sandbox that has no room for another process: each ends with what started it."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from tests.contract.driving import on_host
from tests.integration.conftest import PATIENCE, Client, StartServer

PORT = 8765
PROGRAM = f"""
import os, subprocess, sys, time

LISTEN = (
    "import socket, time; listener = socket.create_server(('127.0.0.1', {PORT}));"
    " open('listening', 'w').close(); time.sleep(1e9)"
)


def start(number):
    subprocess.Popen([sys.executable, "-c", LISTEN, number], start_new_session=True)
    while not os.path.exists("listening"):
        time.sleep(0.01)
    subprocess.run(["env", "-i", "/usr/bin/setsid", "-f", "/bin/sleep", number], check=True)
    subprocess.run([sys.executable, "daemons.py", number], check=True)
    try:
        while True:
            subprocess.Popen(["/bin/sleep", number], start_new_session=True)
    except OSError:
        print("full")


if __name__ == "__main__" and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", sys.argv[1]], {{}})
"""
BIND = f'import socket; socket.create_server(("127.0.0.1", {PORT})).close(); print("free")'


def number() -> str:
    """Return a number that nobody else sleeps for on this machine."""
    return str(10**10 + secrets.randbelow(10**10))


@pytest.fixture
async def client(start_server: StartServer) -> AsyncIterator[Client]:
    server = await start_server(pids="64")
    async with server.connect("u") as client:
        await client.ask(type="save_file", sessionId="s", filename="daemons.py", content=PROGRAM)
        yield client


async def test_a_restart_of_the_kernel_ends_those_of_cells(client: Client) -> None:
    ended, spared = number(), number()
    await client.shell(f"sleep {spared} &")
    assert (await client.run(f"import daemons; daemons.start('{ended}')"))["output"] == "full\n"
    assert len(on_host(ended)) > 10
    assert (await client.ask(type="restart_kernel", sessionId="s"))["type"] == "kernel_restarted"
    assert (await client.run(BIND))["output"] == "free\n"
    assert (on_host(ended), len(on_host(spared))) == ([], 1)


async def test_an_interrupt_of_all_jobs_ends_those_of_commands(client: Client) -> None:
    ended, spared = number(), number()
    await client.run(f"import subprocess; job = subprocess.Popen(['sleep', '{spared}'], start_new_session=True)")
    started = await client.shell(f"""python3 -c 'import daemons; daemons.start("{ended}")'""")
    assert started["output"] == "full\n"
    assert len(on_host(ended)) > 10
    await client.send(type="interrupt", sessionId="s", target="terminal", jobs=True, requestId="end")
    while not (await client.answer_to("end"))["done"]:
        pass
    assert (await client.shell(f"python3 -c '{BIND}'"))["output"] == "free\n"
    assert (on_host(ended), len(on_host(spared))) == ([], 1)


async def test_the_end_of_the_session_ends_all(client: Client) -> None:
    ended = number()
    assert (await client.run(f"import daemons; daemons.start('{ended}')"))["output"] == "full\n"
    assert len(on_host(ended)) > 10
    assert (await client.ask(type="close_session", sessionId="s"))["closed"]
    async with asyncio.timeout(PATIENCE):
        while on_host(ended):  # noqa: ASYNC110 - nobody reports it
            await asyncio.sleep(0.01)
