"""`kernelbridge` with a probe in its event loop, for `lag.py`: `python -m tests.benchmarks.lag_server PATH serve …`.

On SIGUSR2 the probe writes to PATH what it has found since the last time: the longest time between two of its calls, in
milliseconds, the longest that the loop's thread computed between two, and where that was.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from kernelbridge.cli.entry import main
from kernelbridge.server import app

EVERY = 0.001
LONG = 0.03  # seconds of a turn after which it is looked where it is


class Probe:
    """Has itself called every millisecond, and notes how much later it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._last = time.perf_counter()
        self._last_cpu = time.thread_time()
        self._seen = ""
        self._wall = self._cpu = 0.0
        self._where = ""
        self._collecting = self._collected = 0.0
        gc.callbacks.append(self._on_collection)
        self._loop.add_signal_handler(signal.SIGUSR2, self._tell)
        self._loop.call_later(EVERY, self._tick)
        threading.Thread(target=self._watch, daemon=True).start()

    def _tick(self) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        self._wall = max(self._wall, wall - self._last)
        if cpu - self._last_cpu > self._cpu:
            self._cpu, self._where = cpu - self._last_cpu, self._seen
            if self._collected:
                self._where = f"garbage collection, {self._collected * 1e3:.1f} ms; {self._where}"
        self._seen = ""
        self._collected = 0.0
        self._last, self._last_cpu = wall, cpu
        self._loop.call_later(EVERY, self._tick)

    def _on_collection(self, phase: str, _info: object) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting

    def _tell(self) -> None:
        self._tick_now()
        found = {"wall": self._wall * 1e3, "cpu": self._cpu * 1e3, "where": self._where}
        self._wall = self._cpu = 0.0
        self._where = ""
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps(found))
        written.rename(self._path)

    def _tick_now(self) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        self._wall, self._cpu = max(self._wall, wall - self._last), max(self._cpu, cpu - self._last_cpu)

    def _watch(self) -> None:
        while True:
            time.sleep(LONG / 6)
            if time.perf_counter() - self._last > LONG:
                frames = traceback.extract_stack(sys._current_frames()[self._thread])
                self._seen = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[:-9:-1])


_serve = app.serve


async def _probed(path: Path, *args: Any, **kwargs: Any) -> None:
    Probe(path)
    await _serve(*args, **kwargs)


if __name__ == "__main__":
    app.serve = functools.partial(_probed, Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
