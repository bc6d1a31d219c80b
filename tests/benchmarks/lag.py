"""Event loop lag: how long one session keeps the loop from all others, while it prints or sends its worst.

The server runs with a probe in its loop (`lag_server.py`), which has itself called every millisecond: the time between
two calls is the longest turn of anything in between, and somebody else's wait. Both its length and the processor
time that the loop's thread took in it are told: on a busy machine the first is longer for no fault of the server's.
A neighbour, in a process of its own, runs `x=1` all the while.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from tests.benchmarks.client import WebSocketClient

RUNS = 10
MB = 1_000_000
BAR = 50.0
"""Milliseconds that a turn should not be longer than."""

PRINTS = {
    "text, 8 MB": r"'x' * 80 + '\n'; 100_000",
    r"ab\b\b": r"'ab\b\b'; 2_500_000",
    r"long line, \rx": r"'x' * 1_000_000; 1; '\rx'; 2_000_000",
    r"\e[A\n": r"'\x1b[A\n'; 1_000_000",
    r"\e[2K": r"'\x1b[2Kx'; 1_000_000",
    r"\e[1K on 5,000 columns": r"'x' * 5_000; 1; '\x1b[1K'; 500_000",
    r"\e[999999999G": r"'\x1b[999999999Gx\r'; 500_000",
    r"\e[24;255H": r"'\x1b[24;255Hx\x1b[A'; 300_000",
    r"\e[s\e[u": r"'\x1b[s\x1b[u'; 1_000_000",
    r"1 MB and \r, again": r"'x' * 1_000_000 + '\r'; 10",
    "combining marks": r"'e\u0301\r\u0301'; 1_000_000",
    "emoji": r"'\U0001f600\r'; 1_000_000",
    "an unfinished OSC": r"'\x1b]0;' + 'x' * 5_000_000; 1",
    "escapes alone": r"'\x1b'; 9_000_000",
    "colours": r"'\x1b[31mred\x1b[0m\n'; 500_000",
    "two bars": r"'\x1b[2A\r\x1b[2Kone\n\x1b[2Ktwo\n'; 300_000",
}
"""What is printed: pairs of a text and how often."""

CELLS = {
    "flushed, 20,000 times": "for i in range(20_000): print(i, end='\\r', flush=True)",
    "an error of 10 MB": "raise ValueError('y' * 10_000_000)",
    "an error of 10 MB, coloured": "raise ValueError('\\x1b[31my' * 2_000_000)",
    "a display of 9 MB": "display({'text/plain': 't', 'text/html': '\\n' * 9_000_000}, raw=True)",
    "a display of 9 MB of text": "display({'text/plain': '\\x1b[m\\n' * 2_000_000}, raw=True)",
    "displays of 9 MB of JSON": "for i in range(40): display({'application/json': [[]] * 70_000}, raw=True)",
    "a result of 9 MB": "'\\n\\x1b' * 4_000_000",
    "20,000 updates": "h = display('a', display_id=True)\nfor i in range(20_000): h.update('b' * 100)",
    "20,000 displays": "for i in range(20_000): display({'text/plain': 'a', 'text/html': 'b'}, raw=True)",
    "late output": "import threading\nt = threading.Thread(target=lambda: print('\\x1b[A\\n' * 1_000_000))\nt.start()",
}


class Probe:
    """What `lag_server.Probe` has found."""

    def __init__(self, pid: int, path: Path) -> None:
        self._pid = pid
        self._path = path

    def take(self) -> dict[str, Any]:
        """Give what was found since the last call."""
        self._path.unlink(missing_ok=True)
        os.kill(self._pid, signal.SIGUSR2)
        while not self._path.exists():
            os.sched_yield()
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found


class Neighbour:
    """Another session, which runs `x=1` until it is told to stop."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._ready = context.Event()
        self._samples = context.Queue()
        self._process = context.Process(target=_run_neighbour, args=(url, self._ready, self._stop, self._samples))
        self._process.start()
        self._ready.wait()

    def stop(self) -> list[float]:
        """Give the milliseconds of each cell, in order."""
        self._stop.set()
        samples: list[float] = self._samples.get()
        self._process.join()
        return samples


def _run_neighbour(url: str, ready: Event, stop: Event, found: Any) -> None:
    client = WebSocketClient(url)
    client.ask(type="execute_code", sessionId="neighbour", code="x=1")
    ready.set()
    samples = []
    while not stop.is_set():
        start = time.perf_counter()
        client.ask(type="execute_code", sessionId="neighbour", code="x=1")
        samples.append((time.perf_counter() - start) * 1e3)
    client.close()
    found.put(samples)


def bench_lag(url: str, pid: int, path: Path, runs: int = RUNS, only: str = "") -> None:
    """Print the longest turns while a session prints its worst, in cells, streamed ones and commands, or sends it."""
    probe = Probe(pid, path)
    client = WebSocketClient(url)
    client.ask(type="execute_code", sessionId="b", code="import sys")
    client.ask(type="terminal_command", sessionId="b", command="true")
    client.ask(type="execute_code", sessionId="b", code=f"open('worst.py', 'w').write({WORST!r})")
    cases: dict[str, Callable[[], object]] = {"nothing": lambda: time.sleep(1)}
    for name, what in PRINTS.items():
        cases[f"cell: {name}"] = _cell(client, f"exec(open('worst.py').read()); worst({what!r})")
        cases[f"streamed: {name}"] = _cell(client, f"exec(open('worst.py').read()); worst({what!r})", stream=True)
        command = f'python3 worst.py "{what}"'.replace("\\", "\\\\")
        cases[f"command: {name}"] = _ask(client, "terminal_output", type="terminal_command", command=command)
    for name, code in CELLS.items():
        cases[f"cell: {name}"] = _cell(client, code)
        cases[f"streamed: {name}"] = _cell(client, code, stream=True)
    content = 'é\\"\n' * MB
    cases["save_file of a 12 MB frame"] = _ask(client, "save_result", type="save_file", filename="f", content=content)
    save = {"type": "save_file", "filename": "f", "content": content}
    cases["12 MB, a field is wrong"] = _ask(client, "error", **save, mode="x")
    cases["12 MB, a field is unknown"] = _ask(client, "save_result", **save, mood="x")
    variables = {str(number): "" for number in range(1_000_000)}
    cases["12 MB of variables"] = _ask(client, "error", type="open_session", env=variables)
    cases["read_file of 5 MB"] = _ask(client, "file_content", type="read_file", filename="f")
    cases["list_files, 20,000 entries"] = _ask(client, "file_list", type="list_files", path="many")
    cases["12 MB that is no JSON"] = _ask(client, "error", type="\\" * (6 * MB), oops=content[:MB])
    make = "import os\nos.makedirs('many', exist_ok=True)\nfor i in range(20_000): open(f'many/{i}', 'w').close()"
    client.ask(type="execute_code", sessionId="b", code=make)
    client.ask(type="save_file", sessionId="b", filename="f", content=content)
    print(f"  {'':<36} longest turn, wall    processor         neighbour's x=1 (ms)")
    print(f"  {'':<36}   p50     p100       p50     p100       p50     p99    p100")
    over = []
    for name, work in cases.items():
        if only and only not in name:
            continue
        if not _measure(name, work, probe, url, runs):
            over.append(name)
    print(f"  turns of more than {BAR:g} ms of processor time: {', '.join(over) or 'none'}")
    client.close()


def _measure(name: str, work: Callable[[], object], probe: Probe, url: str, runs: int) -> bool:
    neighbour = Neighbour(url)
    walls, cpus, where = [], [], ""
    for _ in range(runs):
        probe.take()
        work()
        found = probe.take()
        walls.append(found["wall"])
        cpus.append(found["cpu"])
        if found["cpu"] == max(cpus) and found["where"]:
            where = found["where"]
    samples = sorted(neighbour.stop())
    walls.sort()
    cpus.sort()
    p50, p99, p100 = samples[len(samples) // 2], samples[int(len(samples) * 0.99)], samples[-1]
    print(
        f"  {name:<36} {walls[runs // 2]:7.1f} {walls[-1]:7.1f}   {cpus[runs // 2]:7.1f} {cpus[-1]:7.1f}"
        f"   {p50:7.1f} {p99:7.1f} {p100:7.1f}",
        flush=True,
    )
    if cpus[-1] > BAR and where:
        print(f"      {where}", flush=True)
    return bool(cpus[-1] <= BAR)


def _cell(client: WebSocketClient, code: str, *, stream: bool = False) -> Callable[[], object]:
    return _ask(client, "execution_result", type="execute_code", code=code, stream=stream)


def _ask(client: WebSocketClient, until: str, **message: object) -> Callable[[], object]:
    def ask() -> None:
        client.send(sessionId="b", **message)
        mark = f'"type":"{until}"'.encode()
        while mark not in (start := client.receive_raw()[:100]):
            if b'"type":"error"' in start and until != "error":
                raise AssertionError(start)

    return ask


WORST = """
import sys
def worst(what):
    parts = [part.strip() for part in what.split("; ")]
    for text, times in zip(parts[::2], parts[1::2]):
        text, times = eval(text), int(times.replace("_", ""))
        at_once = max(1, 1_000_000 // len(text))
        while times > 0:
            sys.stdout.write(text * min(at_once, times))
            times -= at_once
if __name__ == "__main__":
    worst(sys.argv[1])
"""
