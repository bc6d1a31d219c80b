"""Live output: how much memory the server needs while 100 MB pass through it, and how soon a line arrives."""

from __future__ import annotations

import time
from pathlib import Path

from tests.benchmarks.client import WebSocketClient

SIZE = 100_000_000
CELLS = {
    "lines of 80 characters": "for i in range(1_250_000): print(f'{i:079d}')",
    "writes of 1 MB": "import sys\nline = 'x' * 999_999 + '\\n'\nfor i in range(100): _ = sys.stdout.write(line)",
}


class Memory:
    """Resident memory of a process, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")

    def now(self) -> int:
        """Give what it has now, and forget the peak."""
        (self._process / "clear_refs").write_text("5")
        return self._read("VmRSS")

    def peak(self) -> int:
        """Give the most since `now`."""
        return self._read("VmHWM")

    def _read(self, name: str) -> int:
        for line in (self._process / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
        raise LookupError(name)


def flood(client: WebSocketClient, code: str) -> tuple[int, dict[str, object]]:
    """Run a streamed cell, reading all the time; give the characters of its events and its result."""
    client.send(type="execute_code", sessionId="b", code=code, stream=True)
    size = 0
    while True:
        frame = client.receive()
        if frame["type"] == "execution_output":
            size += len(frame["text"])
        elif frame["type"] == "execution_result":
            return size, frame


def bench_stream(url: str, pid: int) -> None:
    """100 MB streamed to a client that reads, twice; a printed line, from the `print` to the client."""
    client = WebSocketClient(url)
    flood(client, "print('x' * 1_000_000)")
    memory = Memory(pid)
    for name, code in CELLS.items():
        for attempt in ("first", "again"):
            before = memory.now()
            start = time.perf_counter()
            size, result = flood(client, code)
            took = time.perf_counter() - start
            grown = (memory.peak() - before) / 1e6
            missed = SIZE - size
            print(
                f"  {f'100 MB, {name}, {attempt}':<44} memory +{grown:6.1f} MB   {size / took / 1e6:6.1f} MB/s"
                f"   left out {missed} bytes   {result.get('truncated')}"
            )
    stalled(url, client, memory)
    latencies = sorted(line(client) for _ in range(200))
    print(f"  {'a line, from print to client':<44} p50 {latencies[100]:6.1f} ms   p99 {latencies[197]:6.1f} ms   n=200")
    client.close()


def stalled(url: str, client: WebSocketClient, memory: Memory) -> None:
    """Print what the same costs when the client reads nothing until the cell is over."""
    other = WebSocketClient(url)
    other.ask(type="terminal_command", sessionId="b", command="mkfifo over")
    code = CELLS["writes of 1 MB"] + "\n_ = open('over', 'w').write('x')"
    before = memory.now()
    client.send(type="execute_code", sessionId="b", code=code, stream=True)
    other.ask(type="terminal_command", sessionId="b", command="cat over")
    grown = (memory.peak() - before) / 1e6
    result = client.receive()
    while result["type"] != "execution_result":
        result = client.receive()
    print(f"  {'100 MB, to a client that does not read':<44} memory +{grown:6.1f} MB   {result['truncated']}")
    other.close()


def line(client: WebSocketClient) -> float:
    """Have a cell print the time and wait; give the milliseconds until that was here. Both clocks are one."""
    client.send(
        type="execute_code",
        sessionId="b",
        code="import time\nprint(time.time())\ntime.sleep(.05)",
        stream=True,
    )
    took = 0.0
    while True:
        frame = client.receive()
        if frame["type"] == "execution_output" and not took:
            took = (time.time() - float(frame["text"])) * 1e3
        if frame["type"] == "execution_result":
            return took
