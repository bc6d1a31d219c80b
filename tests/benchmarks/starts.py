"""Starts of each supported kernel on a busy machine: how long they take, and how many fail."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.facts import KernelSpec
from tests.older_kernel import older_python
from tests.unit.jupyter.conftest import PYTHON, HostSandbox, python_spec

TIMEOUT = 60.0


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Have so many processes compute meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def bench_starts(count: int, load: int) -> None:
    """Start `count` kernels of each generation one after the other, on this host, beside `load` busy processes."""
    generations = {"ipykernel 7, IPython 9": PYTHON, "ipykernel 6.31, IPython 8": python_spec(older_python())}
    with busy(load):
        for name, spec in generations.items():
            seconds, failures = asyncio.run(_starts(spec, count))
            _row(name, seconds, failures)


async def _starts(spec: KernelSpec, count: int) -> tuple[list[float], list[str]]:
    seconds: list[float] = []
    failures: list[str] = []
    for _ in range(count):
        with tempfile.TemporaryDirectory(prefix="kb-bench-") as directory:
            sandbox = HostSandbox(Path(directory))
            began = time.monotonic()
            try:
                kernel = await Kernel.start(
                    sandbox,
                    spec,
                    incarnation=1,
                    on_late_output=lambda _: None,
                    start_timeout=TIMEOUT,
                )
                seconds.append(time.monotonic() - began)
                failures += await _wrong(kernel)
                await kernel.aclose()
            except KernelBridgeError as exc:
                failures.append(str(exc))
            await sandbox.destroy()
    return seconds, failures


async def _wrong(kernel: Kernel) -> list[str]:
    """Say what is wrong with a kernel that has started: no hooks, or a first cell that does not come back."""
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    kernel.submit(Cell(code="print(1)"), done.set_result)
    await asyncio.wait({done}, timeout=TIMEOUT)
    wrong = [] if done.done() and done.result().output == "1\n" else ["the first cell was not answered"]
    return wrong if kernel.has_hooks else [*wrong, "the hooks are not in it"]


def _row(name: str, seconds: list[float], failures: list[str]) -> None:
    ordered = sorted(seconds) or [float("nan")]
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    line = f"p50 {p50:6.2f} s   p99 {p99:6.2f} s   longest {ordered[-1]:6.2f} s"
    print(f"  {name:<26} {line}   n={len(seconds)}   failures {len(failures)}", flush=True)
    for failure in failures:
        print(f"    {failure}")
