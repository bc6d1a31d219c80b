"""The way out of a sandbox: connections that its programs make to the proxy's port come to the bridge, whole."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from kernelbridge.runtimes.contract import PROXY_PORT, Sandbox
from tests.contract.conftest import MakeSandbox
from tests.contract.driving import ISOLATED, PATIENCE, Ran, python, read_until, start_python

pytestmark = ISOLATED

SAY = f"""
import socket
with socket.create_connection(("127.0.0.1", {PROXY_PORT})) as proxy:
    proxy.sendall(b"from inside")
    print(proxy.recv(100).decode())
"""


class Bridge:
    """Takes the connections."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.all: list[socket.socket] = []

    def accept(self, fd: int) -> None:
        self.all.append(socket.socket(fileno=fd))
        self.taken.put_nowait(self.all[-1])

    async def next(self) -> socket.socket:
        async with asyncio.timeout(PATIENCE):
            return await self.taken.get()

    async def answer(self, text: bytes) -> bytes:
        """Answer the next connection, and return what it said."""
        connection = await self.next()
        connection.settimeout(PATIENCE)
        said = await asyncio.to_thread(connection.recv, 100)
        connection.sendall(text)
        return said


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge()
    yield made
    for connection in made.all:
        connection.close()


async def test_a_connection_comes_from_the_sandbox_that_made_it(make_sandbox: MakeSandbox, bridge: Bridge) -> None:
    one, other = await make_sandbox(), await make_sandbox()
    elsewhere = Bridge()
    one.relay(bridge.accept, 1)
    other.relay(elsewhere.accept, 1)
    said: asyncio.Task[Ran] = asyncio.create_task(python(one, SAY))
    assert await bridge.answer(b"from outside") == b"from inside"
    assert (await said).output == "from outside\n"
    assert elsewhere.all == []


async def test_what_was_not_asked_for_waits(sandbox: Sandbox, bridge: Bridge) -> None:
    waiting = await start_python(sandbox, f"print('up', flush=True)\n{SAY}")
    await read_until(waiting, b"up")
    sandbox.relay(bridge.accept, 1)
    await bridge.answer(b"at last")
    await read_until(waiting, b"at last")
    again = await start_python(sandbox, f"print('up', flush=True)\n{SAY}")
    await read_until(again, b"up")
    assert (await python(sandbox, "print('still works')")).output == "still works\n"
    assert len(bridge.all) == 1
    sandbox.relay(bridge.accept, 1)
    await bridge.answer(b"now")
    await read_until(again, b"now")


async def test_programs_can_neither_take_the_port_nor_fill_it_for_others(
    make_sandbox: MakeSandbox, bridge: Bridge
) -> None:
    sandbox, neighbour = await make_sandbox(), await make_sandbox()
    taken = await python(
        sandbox,
        "import socket\n"
        "for address in ('127.0.0.1', '0.0.0.0'):\n"
        "    listener = socket.socket()\n"
        "    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        f"    try: listener.bind((address, {PROXY_PORT})); listener.listen(); print('taken')\n"
        "    except OSError as exc: print(exc.strerror)\n",
    )
    assert taken.output == "Address already in use\n" * 2
    flood = await start_python(
        sandbox,
        "import socket\n"
        "kept = []\n"
        "for _ in range(300):\n"
        "    one = socket.socket(); one.setblocking(False); kept.append(one)\n"
        f"    one.connect_ex(('127.0.0.1', {PROXY_PORT}))\n"
        "print('full', flush=True)\n"
        "input()\n",
        tty=True,
    )
    await read_until(flood, b"full")
    neighbour.relay(bridge.accept, 1)
    said = asyncio.create_task(python(neighbour, SAY))
    await bridge.answer(b"all the same")
    assert (await said).output == "all the same\n"
    assert (await python(sandbox, "print('still works')")).output == "still works\n"


async def test_a_pause_loses_no_connection(sandbox: Sandbox, bridge: Bridge) -> None:
    sandbox.relay(bridge.accept, 1)
    program = await start_python(sandbox, SAY)
    connection = await bridge.next()
    await sandbox.pause()
    connection.settimeout(PATIENCE)
    connection.sendall(b"after the pause")
    await sandbox.resume()
    await read_until(program, b"after the pause")
