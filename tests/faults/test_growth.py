"""How much a hostile kernel or client adds to the server's memory: the peak of its process, as Linux counts it."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.adoption import house as houses
from tests.benchmarks.memory import opened
from tests.integration.conftest import Client

MIB = 1 << 20
KERNEL, CLIENT = 64 * MIB, 32 * MIB
"""Bytes by which the server may grow for what a kernel, and a client, does."""


class Peak:
    """The peak of a process's resident memory from now on."""

    def __init__(self, pid: int) -> None:
        self._directory = Path(f"/proc/{pid}")
        (self._directory / "clear_refs").write_text("5")
        self._before = self._value("VmRSS")

    def growth(self) -> int:
        """Return the bytes between the beginning and the peak."""
        return self._value("VmHWM") - self._before

    def _value(self, name: str) -> int:
        lines = (self._directory / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10


@pytest.fixture
async def house() -> AsyncIterator[houses.House]:
    async with houses.house("local", "unused") as made:
        yield made


async def warm(client: Client) -> None:
    """Have a session that has done what the attack does, in small: what a server loads for it stays loaded."""
    assert (await client.run("print('x' * (12 << 20))"))["success"]
    assert (await client.shell("true"))["exitCode"] == 0


@pytest.mark.parametrize(
    "attack",
    [
        # One frame above what is taken.
        "frames = [bytes(64 << 20)]",
        # 2 GiB in frames each of which is taken.
        "frames = [b'topic', *[bytes(32 << 20)] * 64]",
        # Frames of which there is no end.
        "frames = [b'topic', *[b''] * 200_000]",
        # JSON that is nested deeper than any parser likes, in a frame of the largest size, signed as the kernel's own.
        """
        header = kernel.session.msg_header("stream")
        content = b'{"name":"stdout","text":' + b"[" * 100_000
        parts = [*(kernel.session.pack(part) for part in (header, {}, {})), content]
        frames = [b"topic", b"<IDS|MSG>", kernel.session.sign(parts), *parts]
        """,
    ],
)
async def test_what_a_kernel_sends(house: houses.House, attack: str) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await warm(client)
        peak = Peak(server.process.pid)
        lines = "\n".join(line.strip() for line in attack.strip().splitlines())
        code = f"""kernel = get_ipython().kernel\n{lines}
kernel.iopub_thread.schedule(lambda: kernel.iopub_thread.socket.send_multipart(frames, copy=False))
while True: pass"""
        frame = await client.run(code)
        assert (frame["cause"], frame["statePreserved"]) == ("kernel_died", False)
        assert (await client.run("print(6 * 7)"))["output"] == "42\n"
        assert peak.growth() < KERNEL


async def test_a_large_frame_of_a_client(house: houses.House) -> None:
    server = await house.serve()
    async with house.connect(server) as client, house.connect(server) as attacker:
        await warm(client)
        peak = Peak(server.process.pid)
        await attacker.ws.send_str("x" * (64 * MIB))
        frame = await attacker.receive()
        assert frame["code"] == "frame_too_large"
        assert (await client.run("print(6 * 7)"))["output"] == "42\n"
        assert peak.growth() < CLIENT


def request(**message: object) -> bytes:
    """Return a masked text frame; the mask is zero."""
    text = json.dumps(message).encode()
    head = struct.pack("!BB", 0x81, 0x80 | len(text)) if len(text) < 126 else struct.pack("!BBH", 0x81, 0xFE, len(text))
    return head + bytes(4) + text


async def test_a_client_that_reads_nothing_of_a_gigabyte(house: houses.House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await warm(client)
        peak = Peak(server.process.pid)
        with opened(server.url, "u") as deaf:
            code = "for _ in range(1024): print('x' * (1 << 20))"
            deaf.sendall(request(type="execute_code", sessionId="s", code=code, stream=True))
            assert (await client.run("print(6 * 7)"))["output"] == "42\n"
            assert peak.growth() < CLIENT


async def test_ten_thousand_requests_at_once(house: houses.House) -> None:
    server = await house.serve()
    async with house.connect(server) as client, house.connect(server) as attacker:
        await warm(client)
        peak = Peak(server.process.pid)
        sending = asyncio.create_task(send_many(attacker))
        refused = {}
        for _ in range(10_000):
            frame = await attacker.receive()
            if frame["type"] == "error":
                refused = frame
        await sending
        assert refused["code"] == "limit_exceeded"
        assert peak.growth() < CLIENT
        assert (await client.run("print(6 * 7)"))["output"] == "42\n"


async def send_many(client: Client) -> None:
    """Send cells without waiting for any answer."""
    for number in range(10_000):
        await client.send(type="execute_code", sessionId="s", code="pass", requestId=str(number))
