"""Real servers in processes of their own, and a wire to them that can be cut, stalled, and led to another server."""

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.local.runtime import LocalRuntime

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds that a test waits for what must come."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("KERNELBRIDGE_")}
    return mine | {"COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[2])} | more


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a state of a server or of a connection, which tells nobody when it changes."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_error(call: Callable[[], Awaitable[object]]) -> None:
    """Repeat a call until it fails."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await call()
            await asyncio.sleep(0)


class ServerProcess:
    """One `kernelbridge serve` on the local runtime."""

    def __init__(self, data_dir: Path, **flags: str) -> None:
        self.data_dir = data_dir
        defaults = {"runtime": "local", "port": "0", "egress": "none", "stop_timeout": "0", "data_dir": str(data_dir)}
        options = {**defaults, **flags}.items()
        self._words = [word for name, value in options for word in (f"--{name.replace('_', '-')}", value)]
        self.start()

    def start(self) -> None:
        """Start it, or the next server with the same data directory, and wait until it says where it listens."""
        log = self.data_dir.with_name("server.log")
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "kernelbridge", "serve", *self._words),
                stdout=subprocess.PIPE,
                stderr=errors,
                env={name: value for name, value in os.environ.items() if not name.startswith("KERNELBRIDGE_")},
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if b"ws://" in line:
                self.url = next(word for word in line.decode().split() if word.startswith("ws://"))
                return
        raise AssertionError(log.read_text()[-2000:])

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("ws://").partition("/")[0].rpartition(":")
        return host, int(port)

    def freeze(self) -> None:
        """Stop it as a whole: its connections stay open, and nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self._wait()

    def stop(self) -> None:
        """Stop it in order."""
        self.process.terminate()
        self._wait()

    def _wait(self) -> None:
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self) -> None:
        """End it, and what it left; the server that was killed last may not have been followed by another."""
        if self.process.poll() is None:
            self.thaw()
            self.stop()
        asyncio.run(self._reclaim())

    async def _reclaim(self) -> None:
        instance = (self.data_dir / "instance").read_text(encoding="ascii").strip()
        runtime = await asyncio.to_thread(LocalRuntime, instance=instance, directories=HostDirectories(self.data_dir))
        await runtime.reclaim()
        await runtime.aclose()


class Wire:
    """Copies bytes between clients and a server, in a thread of its own, until a fault is wanted."""

    def __init__(self, target: ServerProcess) -> None:
        self.target = target
        self.refuses = False
        """Whether it takes no more connections."""
        self.cut_before = b""
        """Cut the connection instead of passing on bytes of the server that have this in them."""
        self.refuses_then = False
        """Whether it takes no more connections after a cut by what it has seen."""
        self.cut_after: int | None = None
        """Cut all connections when clients have sent this many bytes, in all."""
        self.garbles = False
        """Whether messages of the server become something else, of the same length."""
        self.cuts: queue.Queue[str] = queue.Queue()
        """An entry for each connection that was cut by `cut_before`."""
        self.heard = bytearray()
        """What clients have sent."""
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire")
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._copy, "127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuses:
            writer.transport.abort()
            return
        to_server = None
        try:
            from_server, to_server = await asyncio.open_connection(*self.target.address)
            self._writers |= {writer, to_server}
            await asyncio.gather(self._pass(reader, to_server, self.heard), self._pass(from_server, writer, None))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, to_server):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray | None) -> None:
        while data := await reader.read(1 << 16):
            await self._flows.wait()
            if heard is not None:
                heard += data
                if self.cut_after is not None and len(heard) > self.cut_after:
                    self.cut_after, self.refuses = None, self.refuses_then
                    self._cut()
                    return
            elif self.cut_before and self.cut_before in data:
                self.cut_before, self.refuses = b"", self.refuses_then
                self._cut()
                self.cuts.put("cut")
                return
            writer.write(data.replace(b'{"type"', b'["type"') if self.garbles else data)
            await writer.drain()
        raise ConnectionResetError

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Let nothing through, and keep connections open: a cable that was pulled out."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        """Let everything through again."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def cut(self) -> None:
        """Break all connections."""

        async def cut() -> None:
            self._cut()

        self._do(cut())

    def close(self) -> None:
        async def close() -> None:
            self._server.close()
            self._cut()
            await asyncio.sleep(0)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.wait([*others, asyncio.ensure_future(asyncio.sleep(0))])

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
