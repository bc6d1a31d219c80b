"""Interactive terminals: how soon a key is echoed, and how fast output passes and what memory it takes."""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks.client import WebSocketClient
from tests.benchmarks.stream import Memory

SIZE = 100_000_000
WHERE = {"sessionId": "b", "terminalId": "t"}


def until(client: WebSocketClient, text: str) -> int:
    """Read output up to `text`, which must end a line; give its length."""
    size, last = 0, ""
    while text not in last:
        data: str = _data(client.receive())
        size += len(data)
        last = last[-len(text) :] + data
    return size


def echo(client: WebSocketClient, key: str) -> float:
    """Type a key; give the milliseconds until it is shown."""
    start = time.perf_counter()
    client.send(type="terminal_input", data=key, **WHERE)
    while key not in _data(client.receive()):
        pass
    return (time.perf_counter() - start) * 1e3


def bench_keys(url: str, pid: int) -> None:
    """A key into `cat` and into the shell's own line, from its frame to that of its echo; 100 MB of `yes`, twice."""
    client = WebSocketClient(url)
    client.ask(type="open_terminal", rows=24, cols=80, **WHERE)
    client.send(type="terminal_input", data="bind 'set enable-bracketed-paste off'; echo rea''dy\r", **WHERE)
    until(client, "ready\r\n")
    _echoes(client, "a key at the shell's prompt")
    client.send(type="terminal_input", data="\x15sh -c 'echo star''ted; exec cat'\r", **WHERE)
    until(client, "started\r\n")
    _echoes(client, "a key that the terminal echoes")
    client.send(type="terminal_input", data="\x03", **WHERE)
    until(client, "$ ")  # what is typed with a Ctrl-C can go with it
    memory = Memory(pid)
    for attempt in ("first", "again"):
        before = memory.now()
        start = time.perf_counter()
        client.send(type="terminal_input", data=f"yes | head -c {SIZE}; echo en''ded\r", **WHERE)
        size = until(client, "ended\r\n")
        took = time.perf_counter() - start
        grown = (memory.peak() - before) / 1e6
        print(f"  {f'100 MB of `yes`, {attempt}':<34} {size / took / 1e6:6.1f} MB/s   memory +{grown:5.1f} MB")
    client.close()


def _echoes(client: WebSocketClient, name: str) -> None:
    samples = sorted(echo(client, "abcdefghij"[number % 10]) for number in range(500))
    print(f"  {name:<34} p50 {samples[250]:6.2f} ms   p99 {samples[495]:6.2f} ms   n=500")


def _data(frame: dict[str, Any]) -> str:
    assert frame["type"] == "terminal_data", frame
    return str(frame["data"])
