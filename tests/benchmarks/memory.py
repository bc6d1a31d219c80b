"""What clients that leave messages unfinished, or read nothing, cost the server's memory."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.benchmarks.client import WebSocketClient

MIB = 1 << 20
UNFINISHED = 15 * MIB
DEAF = 8
ANSWERS = 3
_UPGRADE = (
    "GET /ws?user_id={user} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def resident(pid: int) -> float:
    """Give the resident memory of a process, in MiB."""
    fields = Path(f"/proc/{pid}/status").read_text(encoding="ascii").split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1024


class Peak:
    """The highest resident memory while it is entered."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.highest = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.highest = max(self.highest, resident(self._pid))


def opened(url: str, user: str) -> socket.socket:
    """Open a WebSocket whose client reads nothing."""
    address = urlsplit(url)
    assert address.hostname is not None
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((address.hostname, address.port or 80))
    client.settimeout(2)
    client.sendall(_UPGRADE.format(user=user).encode())
    return client


def leave_unfinished(client: socket.socket) -> None:
    """Send all but the last byte of a message."""
    with contextlib.suppress(OSError):  # the server may drop it meanwhile
        client.sendall(struct.pack("!BBQ", 0x81, 0xFF, UNFINISHED + 1) + bytes(4))
        for _ in range(15):
            client.sendall(bytes(MIB))


def read_nothing(client: socket.socket, file: str) -> None:
    """Ask for large answers."""
    request = json.dumps({"type": "read_file", "sessionId": "m", "filename": file}).encode()
    with contextlib.suppress(OSError):  # likewise
        client.sendall((struct.pack("!BB", 0x81, 0x80 | len(request)) + bytes(4) + request) * ANSWERS)


def settled(pid: int) -> float:
    """Give the resident memory when it has not fallen for two seconds."""
    lowest, since = resident(pid), time.monotonic()
    while time.monotonic() < since + 2:
        if (now := resident(pid)) < lowest - 1:
            lowest, since = now, time.monotonic()
        time.sleep(0.1)
    return lowest


def bench_memory(url: str, pid: int) -> None:
    """40 and 250 unfinished messages of 15 MiB, eight clients that read nothing, and all of it."""
    ordinary = WebSocketClient(f"{url}?user_id=deaf")
    ordinary.ask(type="save_file", sessionId="m", filename="f", content="x" * (15 * MIB))
    for number, deaf in ((40, 0), (250, 0), (0, DEAF), (250, DEAF)):
        before = resident(pid)
        with Peak(pid) as peak:
            clients = [opened(url, f"unfinished{number}") for _ in range(number)]
            for client in clients:
                leave_unfinished(client)
            readers = [opened(url, "deaf") for _ in range(deaf)]
            for client in readers:
                read_nothing(client, "f")
            began = time.perf_counter()
            assert ordinary.ask(type="ping")["type"] == "pong"
            answered = time.perf_counter() - began
            time.sleep(3)
        for client in (*clients, *readers):
            client.close()
        assert ordinary.ask(type="ping")["type"] == "pong"
        print(
            f"  {number:4} unfinished, {deaf} that read nothing   before {before:5.0f} MiB, highest {peak.highest:5.0f}"
            f"   after {settled(pid):5.0f}   another's ping {answered * 1000:5.1f} ms"
        )
    ordinary.close()
