"""Large files by HTTP: how fast, and how much memory the server takes for it."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from urllib.parse import urlsplit

SIZE = 1 << 30
CHUNK = bytes(1 << 20)


def bench_transfer(url: str, pid: int) -> None:
    """1 GiB up and down, with the growth of the server's memory at its highest."""
    address = urlsplit(url)
    assert address.hostname is not None
    # The first transfer makes what every one needs.
    for size in (1 << 20, SIZE):
        for name, work in (("upload", _upload), ("download", _download)):
            before = _peak(pid, reset=True)
            start = time.perf_counter()
            work(http.client.HTTPConnection(address.hostname, address.port, timeout=600), size)
            seconds = time.perf_counter() - start
            grown = _peak(pid) - before
            if size == SIZE:
                rate = size / seconds / 1e6
                print(f"  {name + ' 1 GiB':<34} {rate:9.0f} MB/s   server RSS at most +{grown / 1e6:.1f} MB")


def _upload(connection: http.client.HTTPConnection, size: int) -> None:
    connection.putrequest("PUT", "/api/sessions/b/files/large")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    for _ in range(size // len(CHUNK)):
        connection.send(CHUNK)
    response = connection.getresponse()
    assert response.status in {200, 201}, response.read()
    response.read()
    connection.close()


def _download(connection: http.client.HTTPConnection, size: int) -> None:
    connection.request("GET", "/api/sessions/b/files/large")
    response = connection.getresponse()
    assert response.status == 200, response.read()
    buffer = bytearray(1 << 20)
    received = 0
    while count := response.readinto(buffer):
        received += count
    assert received == size, received
    connection.close()


def _peak(pid: int, *, reset: bool = False) -> int:
    """Give the highest resident size since the last reset, in bytes."""
    process = Path(f"/proc/{pid}")
    if reset:
        (process / "clear_refs").write_text("5")
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
