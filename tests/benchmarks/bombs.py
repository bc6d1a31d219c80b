"""Bombs: after how long a victim is told, and how long a neighbour's `print(1)` takes meanwhile, beside the promise.

The tests of the same bombs (`tests/faults/test_bombs.py`, `test_growth.py`) wait longer, because they may run on a busy
machine.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.adoption.house import House, house
from tests.benchmarks.faults import IMAGE
from tests.integration.conftest import Client

TOLD = 5.0
"""Seconds within which a victim is told."""
FELT = 1.0
"""Seconds of a neighbour's `print(1)`, p99."""
ROUNDS = 3
FLAGS = ("--memory", "384m", "--pids", "64", "--disk", "256m", "--egress", "none")
LASTS = 10
"""Seconds of those that nobody has to be told of: they only use what the session may use."""

FORKS = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
BUSY = f"timeout {LASTS} sh -c 'for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait'"
DEEP = """header = kernel.session.msg_header("stream")
content = b'{"name":"stdout","text":' + b"[" * 100_000
parts = [*(kernel.session.pack(part) for part in (header, {}, {})), content]
frames = [b"topic", b"<IDS|MSG>", kernel.session.sign(parts), *parts]"""


@dataclass(frozen=True)
class Bomb:
    """What a session does, and the frame that tells it."""

    name: str
    request: dict[str, Any]
    told: Callable[[dict[str, Any]], bool] | None
    """Whether a frame tells the victim; None if it needs not be told."""


def _cell(code: str) -> dict[str, Any]:
    return {"type": "execute_code", "code": code}


def _hostile(frames: str) -> str:
    send = "kernel.iopub_thread.schedule(lambda: kernel.iopub_thread.socket.send_multipart(frames, copy=False))"
    return f"kernel = get_ipython().kernel\n{frames}\n{send}\nwhile True: pass"


def _command(command: str) -> dict[str, Any]:
    return {"type": "terminal_command", "command": command}


def _caused(cause: str) -> Callable[[dict[str, Any]], bool]:
    return lambda frame: frame.get("cause") == cause


def _fails(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda frame: text in (frame.get("error") or "") + (frame.get("output") or "")


BOMBS = (
    Bomb("forks in a cell", _cell(FORKS), _caused("process_limit")),
    Bomb("forks in a command", _command("for i in $(seq 400); do sleep 1000 & done"), _caused("process_limit")),
    Bomb("forks of a silent program", _command(f"python3 -c '{FORKS}'"), _caused("process_limit")),
    Bomb(
        "threads",
        _cell("import threading as t\nwhile True: t.Thread(target=t.Event().wait, daemon=True).start()"),
        _fails("can't start new thread"),
    ),
    Bomb("memory of a cell", _cell("b = bytearray(800 << 20)"), _caused("out_of_memory")),
    Bomb("memory of a command", _command("python3 -c 'b = bytearray(800 << 20)'"), _caused("out_of_memory")),
    Bomb("a full /tmp", _command("cat /dev/zero >/tmp/full"), _fails("No space left on device")),
    Bomb("open files", _cell("f = []\nwhile True: f.append(open('/dev/null'))"), _fails("Too many open files")),
    Bomb(
        "disk",
        _cell("import time\nf = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush(); time.sleep(0.002)"),
        _caused("disk_limit"),
    ),
    Bomb("processor time", _command(BUSY), None),
    Bomb("output of a command", _command(f"timeout {LASTS} yes"), None),
    Bomb(
        "output of a cell",
        _cell(f"import time\nend = time.time() + {LASTS}\nwhile time.time() < end: print('y' * 100)"),
        None,
    ),
)
KERNELS = {
    "the kernel sends a frame of 64 MiB": "frames = [bytes(64 << 20)]",
    "the kernel sends a message of 2 GiB": "frames = [b'topic', *[bytes(32 << 20)] * 64]",
    "the kernel sends JSON 100,000 deep": DEEP,
}


def bench_bombs(runtime: str) -> None:
    """Measure the bombs on a runtime."""
    asyncio.run(_all(runtime))
    print(f"  load of the machine, the last minute: {os.getloadavg()[0]:.1f}")


async def _all(runtime: str) -> None:
    hostile = (Bomb(name, _cell(_hostile(frames)), _caused("kernel_died")) for name, frames in KERNELS.items())
    async with house(runtime, IMAGE) as home:
        server = await home.serve(*FLAGS, linger="0")
        for bomb in (*BOMBS, *hostile):
            told: list[float] = []
            felt: list[float] = []
            for number in range(ROUNDS):
                seconds, cells = await _beside(home, server, bomb, f"victim{number}")
                told += seconds
                felt += cells
            _print(bomb.name, told, felt)


async def _beside(home: House, server: Any, bomb: Bomb, user: str) -> tuple[list[float], list[float]]:
    """Let it go off beside a neighbour; return after how long the victim was told, and the times of the cells."""
    async with home.connect(server, user) as victim, home.connect(server, "neighbour") as neighbour:
        await victim.ask(type="open_session", sessionId="s")  # which also asks for its `session_status`
        await victim.run("x = 1")
        await victim.shell("true")
        await neighbour.run("print(1)")
        going_off = asyncio.create_task(_until_told(victim, bomb))
        felt: list[float] = []
        while not going_off.done():
            felt.append(await _timed(neighbour.run("print(1)")))
        told = await going_off
        # What a fork bomb started lives on until the session is closed.
        await victim.ask(type="close_session", sessionId="s")
    return ([] if bomb.told is None else [told]), felt


async def _until_told(victim: Client, bomb: Bomb) -> float:
    start = time.perf_counter()
    await victim.send(sessionId="s", requestId="bomb", **bomb.request)
    while True:
        frame = await victim.receive()
        over = frame.get("requestId") == "bomb" and ("success" in frame or "exitCode" in frame)
        if bomb.told is None and over:
            break
        if bomb.told is not None and bomb.told(frame):
            break
        assert not over, frame
    return time.perf_counter() - start


async def _timed(answer: Awaitable[dict[str, Any]]) -> float:
    start = time.perf_counter()
    frame = await answer
    assert frame["output"] == "1\n", frame
    return time.perf_counter() - start


def _print(name: str, told: list[float], felt: list[float]) -> None:
    ordered = sorted(felt)
    p99 = ordered[int(len(ordered) * 0.99)]
    line = f"told after at most {max(told):6.3f} s" if told else " " * len("told after at most  0.000 s")
    line += f"   neighbour p50 {ordered[len(ordered) // 2]:6.3f} s  p99 {p99:6.3f} s  n={len(felt):<5}"
    missed = (told and max(told) > TOLD) or p99 > FELT
    print(f"  {name:<36} {line}{': MISSED' if missed else ''}", flush=True)
