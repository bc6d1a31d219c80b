"""`kernelbridge bench`: how fast a server is, as this machine sees it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from kernelbridge.cli import screen
from kernelbridge.cli.as_client import Server, as_client, carry_out, connected, no_isolation_option
from kernelbridge.client.events import Output
from kernelbridge.settings.quantities import human_size

if TYPE_CHECKING:
    from kernelbridge import AsyncSession

_MOST = 1000
"""Samples of a latency."""
_OUTPUT = 256 << 20
"""Bytes that are printed at most."""
_FILES = (1 << 20, 16 << 20)
"""Bytes of the file that is moved: the larger one, if the smaller one takes a tenth of the time."""
_LABELS = {
    "firstResult": "First result of 1+1 in a new session: its sandbox and interpreter start",
    "cell": "Result of 1+1, from sending it",
    "line": "A printed line, from sending its cell to showing it",
    "output": "Output of a cell that prints lines without end, as received",
    "upload": "A file sent to the session",
    "download": "The same file fetched",
}
_EXAMPLES = """\b
Examples:
    kernelbridge bench
    kernelbridge bench --url wss://kernels.example --seconds 10 --json
"""


@click.command(epilog=_EXAMPLES, short_help="Measure how fast a server is.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 60),
    default=2.0,
    show_default=True,
    help="About how long each measurement takes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@no_isolation_option
@as_client
def bench(*, seconds: float, as_json: bool, no_isolation: bool, server: Server) -> int:
    """Measure a server: first result, latencies, output and files, in a new session that is deleted.

    It measures the way from here to there and back, the network included, once. Something else that runs on either
    machine changes the figures.
    """

    async def work(_signals: object) -> int:
        async with (
            connected(server, isolation=not no_isolation, keeps_files=False) as there,
            there.session(None, server.image, keep=False) as opened,
        ):
            figures = await _Bench(opened.session, seconds, shown=not as_json).measured()
            info = await opened.session.info()
            about = {"server": there.client.target.url, "runtime": info["runtime"], "image": info.get("image")}
            about["ownServer"] = there.to_own_server
        if as_json:
            click.echo(json.dumps({**about, **figures}, indent=2))
        else:
            _write_table(about, figures)
        return 0

    return carry_out(work)


class _Bench:
    """The measurements, one after the other."""

    def __init__(self, session: AsyncSession, seconds: float, *, shown: bool) -> None:
        self._session = session
        self._seconds = seconds
        self._shown = shown

    async def measured(self) -> dict[str, dict[str, float]]:
        """Return all figures: milliseconds, bytes a second, and how many of what they are from."""
        found: dict[str, dict[str, float]] = {}
        steps: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
            "firstResult": self._first_result,
            "cell": lambda: self._latency(self._cell),
            "line": lambda: self._latency(self._line),
            "output": self._output,
        }
        for name, step in steps.items():
            async with screen.waiting(f"{_LABELS[name]} …", shown=self._shown, after=0):
                found[name] = await step()
        async with screen.waiting(f"{_LABELS['upload']}, and fetched …", shown=self._shown, after=0):
            found["upload"], found["download"] = await self._files()
        return found

    async def _first_result(self) -> dict[str, float]:
        return {"ms": await self._cell()}

    async def _latency(self, once: Callable[[], Awaitable[float]]) -> dict[str, float]:
        """Return what `once` takes, again and again, after one that does not count."""
        await once()
        samples: list[float] = []
        until = time.monotonic() + self._seconds
        while not samples or (time.monotonic() < until and len(samples) < _MOST):
            samples.append(await once())
        samples.sort()
        return {
            "p50Ms": samples[len(samples) // 2],
            "p95Ms": samples[min(len(samples) - 1, len(samples) * 95 // 100)],
            "samples": len(samples),
        }

    async def _cell(self) -> float:
        """Return the milliseconds of a cell."""
        return await _ms(partial(self._session.run, "1+1", store_history=False, check=True))

    async def _line(self) -> float:
        """Return the milliseconds until the first output of a cell has come."""
        began, taken = time.perf_counter(), 0.0
        async for event in self._session.stream("print(1)"):
            if isinstance(event, Output):
                taken = taken or (time.perf_counter() - began) * 1000
        return taken

    async def _output(self) -> dict[str, float]:
        """Count what a cell prints for some time. What is left out because it came too fast is no output."""
        code = (
            f"import time\nuntil, left, line = time.monotonic() + {self._seconds}, {_OUTPUT}, 'x' * 79\n"
            "while left > 0 and time.monotonic() < until:\n"
            "    for _ in range(100): print(line)\n"
            "    left -= 8000"
        )
        received = left_out = 0
        began = ended = time.monotonic()
        async for event in self._session.stream(code, timeout=self._seconds + 30):
            if isinstance(event, Output):
                ended = time.monotonic()
                began = ended if not received else began
                received, left_out = received + len(event.text), left_out + event.left_out
        taken = max(ended - began, 1e-6)
        return {"bytesPerSecond": received / taken, "bytes": received, "leftOutBytes": left_out}

    async def _files(self) -> tuple[dict[str, float], dict[str, float]]:
        sent = fetched = {"bytesPerSecond": 0.0, "bytes": 0.0}
        for size in _FILES:
            content = os.urandom(size)  # no proxy can compress it
            sent = await _rate(size, partial(self._session.files.write, "bench.bin", content))
            fetched = await _rate(size, partial(self._session.files.read, "bench.bin"))
            if size / min(sent["bytesPerSecond"], fetched["bytesPerSecond"]) > self._seconds / 10:
                break
        return sent, fetched


async def _ms(once: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await once()
    return (time.perf_counter() - began) * 1000


async def _rate(size: int, move: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    return {"bytesPerSecond": size / (await _ms(move)) * 1000, "bytes": size}


def _write_table(about: dict[str, Any], figures: dict[str, dict[str, float]]) -> None:
    console = screen.output()
    image = f", image {about['image']}" if about["image"] else ""
    own = ", started for this command" if about["ownServer"] else ""
    console.print(screen.plain(f"{about['server']}, runtime {about['runtime']}{image}{own}"))
    for name, found in figures.items():
        screen.write_row(console, _figure(found), _LABELS[name], width=32)


def _figure(found: dict[str, float]) -> str:
    if "bytesPerSecond" in found:
        missing = f" ({human_size(found['leftOutBytes'])} left out)" if found.get("leftOutBytes") else ""
        return f"{human_size(found['bytesPerSecond'])}/s{missing}"
    if "ms" in found:
        return f"{found['ms']:.0f} ms"
    return f"p50 {found['p50Ms']:.1f} ms, p95 {found['p95Ms']:.1f} ms"
