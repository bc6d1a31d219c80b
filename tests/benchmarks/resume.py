"""Pauses: from a message to a paused session to its result, and the two calls of the runtime alone."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from pathlib import Path

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import Sandbox, SandboxSpec
from kernelbridge.server.open_runtime import open_runtime
from kernelbridge.settings.settings import resolve
from tests.benchmarks.client import WebSocketClient
from tests.contract.driving import make_files

FLAGS = ("--idle-timeout", "20ms")
ROUNDS = 100


def row(name: str, samples: list[float]) -> None:
    """Print one row of a table; milliseconds."""
    ordered = sorted(samples)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    print(f"  {name:<34} p50 {p50:9.3f} ms   p99 {p99:9.3f} ms   n={len(ordered)}")


def bench_resume(url: str, runtime: str) -> None:
    """`x=1` sent to a paused session, and sent again at once; the server pauses after `FLAGS`."""
    client = WebSocketClient(url)
    client.send(type="open_session", sessionId="b")  # who opens a session is told of its pauses
    paused: list[float] = []
    awake: list[float] = []
    for _ in range(ROUNDS):
        while client.receive().get("status") != "paused":
            pass
        for samples in (paused, awake):
            start = time.perf_counter()
            client.send(type="execute_code", sessionId="b", code="x=1")
            while client.receive()["type"] != "execution_result":
                pass
            samples.append((time.perf_counter() - start) * 1e3)
    row("x=1, session paused", paused)
    row("x=1, session awake", awake)
    client.close()
    asyncio.run(_bench_calls(runtime))


async def _bench_calls(runtime: str) -> None:
    with tempfile.TemporaryDirectory(prefix="kb-bench-") as directory:
        home = Path(directory)
        home.chmod(0o755)
        settings = resolve({"runtime": runtime, "data_dir": directory}, {})
        directories = HostDirectories(home)
        opened = await open_runtime(
            settings, instance=f"bench-{secrets.token_hex(4)}", directories=directories, on_progress=print
        )
        try:
            facts = await opened.prepare()
            spec = SandboxSpec(secrets.token_hex(8))
            make_files(directories, spec.workspace_id, facts.uid, facts.gid)
            sandbox = await opened.create(spec)
            await sandbox.exec([facts.python.executable, "-c", "while True: pass"])
            await _bench_sandbox(sandbox)
        finally:
            await opened.aclose()


async def _bench_sandbox(sandbox: Sandbox) -> None:
    """Pause and resume one in which something computes."""
    pauses, resumes = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await sandbox.pause()
        between = time.perf_counter()
        await sandbox.resume()
        pauses.append((between - start) * 1e3)
        resumes.append((time.perf_counter() - between) * 1e3)
    row("pause, the call alone", pauses)
    row("resume, the call alone", resumes)
