"""Benchmarks: what the server costs beside the smallest possible client of the same kernel.

    python -m tests.benchmarks [cell] [prints] [stream] [cold] [terminal] [keys] [save] [transfer]
                              [resume] [lag] [memory] [starts] [faults] [bombs] [--runtime docker|local]
                              [--only TEXT] [--runs N]

Starts a server of its own on a free port with a temporary data directory, prints a table, never fails on a
figure. "raw" is `raw.RawClient`: a stock ipykernel, started with no extra option in the same container,
over the same kind of sockets. `--only` and `--runs` are for `lag`, whose runtime is local if none is given.
`starts` needs no server: it starts `--count` kernels of each generation on this host, beside `--load` processes that
compute. `faults` and `bombs` start their own servers, on one runtime or on both; `faults` kills them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.session_key import SessionKey
from tests.benchmarks.bombs import bench_bombs
from tests.benchmarks.client import WebSocketClient
from tests.benchmarks.faults import bench_faults
from tests.benchmarks.keys import bench_keys
from tests.benchmarks.lag import RUNS, bench_lag
from tests.benchmarks.memory import bench_memory
from tests.benchmarks.raw import RawClient
from tests.benchmarks.resume import FLAGS as RESUME_FLAGS
from tests.benchmarks.resume import bench_resume
from tests.benchmarks.starts import bench_starts
from tests.benchmarks.stream import bench_stream
from tests.benchmarks.transfer import bench_transfer

PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}


@dataclass(frozen=True)
class Server:
    """A running `kernelbridge serve`."""

    url: str
    data: Path
    runtime: str
    pid: int
    probe: Path
    """Where `lag_server` writes."""
    runs: int = RUNS
    only: str = ""
    """What the name of a case must have in it to be run."""

    def sockets(self, session: str) -> Path:
        """Return the host's path of the shared directory of a session without a user."""
        [shared] = (self.data / "run").glob(f"*{SessionKey(Principal(), session).workspace_id}*")
        return shared


@contextmanager
def serving(runtime: str, *flags: str, probed: bool = False) -> Iterator[Server]:
    """Start a server, `probed` for `lag`; stop it in order."""
    with tempfile.TemporaryDirectory(prefix="kb-bench-") as directory, socket.socket() as probe:
        Path(directory).chmod(0o755)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        data, probe_file = Path(directory) / "data", Path(directory) / "probe"
        module = ("tests.benchmarks.lag_server", str(probe_file)) if probed else ("kernelbridge",)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", *module, "serve", "--runtime", runtime, "--port", str(port)),
                *("--data-dir", str(data), "--linger", "0", "--log-level", "warning", *flags),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if f":{port}/ws" in line:
                    break
            else:
                raise RuntimeError("the server did not start")
            yield Server(f"ws://127.0.0.1:{port}/ws", data, runtime, process.pid, probe_file)
        finally:
            process.terminate()
            process.communicate()


@contextmanager
def raw_kernel(server: Server, client: WebSocketClient, session: str) -> Iterator[RawClient]:
    """Start a stock ipykernel in the session's own sandbox, from its shell, and connect to it."""
    directory = server.sockets(session) / "raw"
    directory.mkdir()
    directory.chmod(0o777)
    key = uuid.uuid4().hex
    connection = {"transport": "ipc", "ip": "/run/kernelbridge/raw/k", "key": key, "signature_scheme": "hmac-sha256"}
    ports = {f"{name}_port": port for name, port in PORTS.items()}
    (directory / "c.json").write_text(json.dumps({**connection, **ports}))
    client.ask(
        type="terminal_command",
        sessionId=session,
        command="python3 -m ipykernel_launcher -f /run/kernelbridge/raw/c.json >/dev/null 2>&1 & raw=$!",
    )
    while len(list(directory.glob("k-*"))) < len(PORTS):
        os.sched_yield()
    raw = RawClient(key.encode(), str(directory / "k"))
    try:
        yield raw
    finally:
        raw.close()
        client.ask(type="terminal_command", sessionId=session, command="kill -9 $raw; wait $raw 2>/dev/null; true")


def timed(function: Callable[[], object]) -> float:
    """Run it; give milliseconds."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def row(name: str, samples: list[float]) -> None:
    """Print one row of a table."""
    ordered = sorted(samples)
    p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    print(f"  {name:<34} p50 {p50:9.3f} ms   p99 {p99:9.3f} ms   n={len(ordered)}")


def ratio(ours: list[float], raw: list[float]) -> None:
    """Print how the two compare."""
    p50 = statistics.median(ours) / statistics.median(raw)
    p99 = sorted(ours)[int(len(ours) * 0.99)] / sorted(raw)[int(len(raw) * 0.99)]
    print(f"  {'ratio':<34} p50 {p50:9.2f} x    p99 {p99:9.2f} x")


def bench_cell(server: Server) -> None:
    """`x=1`, in alternating batches so that both see the same machine."""
    client = WebSocketClient(server.url)
    client.ask(type="execute_code", sessionId="b", code="x=1")
    ours: list[float] = []
    raws: list[float] = []
    with raw_kernel(server, client, "b") as raw:
        for batch in range(11):
            a = [timed(lambda: raw.execute("x=1")) for _ in range(100)]
            b = [timed(lambda: client.ask(type="execute_code", sessionId="b", code="x=1")) for _ in range(100)]
            if batch:
                raws += a
                ours += b
    row("raw", raws)
    row("WebSocket", ours)
    ratio(ours, raws)
    client.close()


def bench_prints(server: Server) -> None:
    """20,000 flushed prints and 100,000 prints of 80 characters, complete."""
    client = WebSocketClient(server.url)
    client.ask(type="execute_code", sessionId="b", code="x=1")
    cells = {
        "20,000 flushed prints": ("for i in range(20_000): print(i, flush=True)", 108_890),
        "100,000 prints of 80 characters": ("for i in range(100_000): print(f'{i:080d}')", 8_100_000),
    }
    with raw_kernel(server, client, "b") as raw:
        for name, (code, size) in cells.items():
            a: list[float] = []
            b: list[float] = []
            for _ in range(3):
                a.append(timed(lambda code=code: raw.execute(code)))  # type: ignore[misc]
                start = time.perf_counter()
                frame = client.ask(type="execute_code", sessionId="b", code=code)
                b.append((time.perf_counter() - start) * 1e3)
                assert len(frame["output"]) == size, (len(frame["output"]), size)
            row(f"raw: {name}", a)
            row(f"WebSocket: {name}", b)
            ratio(b, a)
    client.close()


def bench_cold(server: Server) -> None:
    """The first result of a new session."""
    samples = []
    for number in range(6):
        client = WebSocketClient(server.url)
        samples.append(
            timed(lambda c=client, n=number: c.ask(type="execute_code", sessionId=f"cold{n}", code="x=1"))  # type: ignore[misc]
        )
        client.close()
    row("first result, cold", samples[1:])


def bench_terminal(server: Server) -> None:
    """`true` in the persistent shell."""
    client = WebSocketClient(server.url)
    client.ask(type="terminal_command", sessionId="b", command="true")
    samples = [timed(lambda: client.ask(type="terminal_command", sessionId="b", command="true")) for _ in range(500)]
    row("terminal_command true", samples)
    client.close()


def bench_save(server: Server) -> None:
    """`save_file`, durable, 1 KiB and 10 MiB."""
    client = WebSocketClient(server.url)
    for name, size, count in (("1 KiB", 1 << 10, 200), ("10 MiB", 10 << 20, 8)):
        content = "x" * size
        samples = [
            timed(lambda c=content: client.ask(type="save_file", sessionId="b", filename="f", content=c))  # type: ignore[misc]
            for _ in range(count)
        ]
        row(f"save_file {name}", samples)
        print(f"  {'':<34} {size / statistics.median(samples) / 1e3:9.0f} MB/s, JSON and socket included")
    client.close()


BENCHMARKS: dict[str, Callable[[Server], None]] = {
    "cell": bench_cell,
    "prints": bench_prints,
    "stream": lambda server: bench_stream(server.url, server.pid),
    "cold": bench_cold,
    "terminal": bench_terminal,
    "keys": lambda server: bench_keys(server.url, server.pid),
    "save": bench_save,
    "transfer": lambda server: bench_transfer(server.url, server.pid),
    "resume": lambda server: bench_resume(server.url, server.runtime),
    "lag": lambda server: bench_lag(server.url, server.pid, server.probe, server.runs, server.only),
    "memory": lambda server: bench_memory(server.url, server.pid),
}
ALONE: dict[str, Callable[[str], None]] = {"faults": bench_faults, "bombs": bench_bombs}
"""With servers of their own."""
FLAGS = {"resume": RESUME_FLAGS, "memory": ("--log-level", "error")}
"""Of the server, where a benchmark needs some."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, "starts", *ALONE, []], help="which; all by default")
    parser.add_argument("--runtime", choices=["docker", "local"], help="docker, but local for lag")
    parser.add_argument("--only", default="", help="of lag: the cases with this in their name")
    parser.add_argument("--runs", type=int, default=RUNS, help="of lag: how often each case runs")
    parser.add_argument("--count", type=int, default=20, help="of starts: how many of each kernel")
    parser.add_argument("--load", type=int, default=0, help="of starts: processes that compute meanwhile")
    arguments = parser.parse_args()
    for name in arguments.names or [*BENCHMARKS, "starts", *ALONE]:
        if name == "starts":
            print(f"starts (on this host, load {arguments.load})")
            bench_starts(arguments.count, arguments.load)
            continue
        if name in ALONE:
            for runtime in [arguments.runtime] if arguments.runtime else ["docker", "local"]:
                print(f"{name} ({runtime})")
                ALONE[name](runtime)
            continue
        runtime = arguments.runtime or ("local" if name == "lag" else "docker")
        print(f"{name} ({runtime})")
        with serving(runtime, *FLAGS.get(name, ()), probed=name == "lag") as server:
            BENCHMARKS[name](replace(server, only=arguments.only, runs=arguments.runs))


if __name__ == "__main__":
    main()
