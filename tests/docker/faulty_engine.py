"""Engines that fail: a wire to the real one that can be held or cut, and a private one to freeze."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import docker

PATIENCE = 120
READ_SIZE = 64 << 10


def engine_socket() -> str:
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


class CuttableWire:
    """A socket in front of the real engine. Requests can be held back, answers lost, and everything cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = engine_socket()  # now: a test may point DOCKER_HOST at this wire
        self.held: asyncio.Queue[bytes] = asyncio.Queue()
        self._hold: re.Pattern[bytes] | None = None
        self._released = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def factory(self) -> Callable[..., docker.DockerClient]:
        return partial(docker.DockerClient, base_url=f"unix://{self.path}")

    async def join(self) -> None:
        """Begin to pass on connections."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accepted, self.path)

    async def cut(self) -> None:
        """End every connection and accept no more, as an engine does that is killed."""
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)
        self.drop()
        await asyncio.gather(*self._pumps)
        await self._server.wait_closed()

    def drop(self) -> None:
        """End every connection, and go on accepting."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self, request: bytes) -> None:
        """Keep back every request whose first line matches, until `release`; each is put into `held`."""
        self._released.clear()
        self._hold = re.compile(request)

    def release(self) -> None:
        """Let what was held back go on, and hold nothing more."""
        self._hold = None
        self._released.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        self._writers |= {writer, engine_writer}
        pumps = [
            asyncio.create_task(self._pump(reader, engine_writer, requests=True)),
            asyncio.create_task(self._pump(engine_reader, writer, requests=False)),
        ]
        self._pumps |= set(pumps)
        await asyncio.gather(*pumps)
        for end in (writer, engine_writer):
            end.transport.abort()
        self._writers -= {writer, engine_writer}
        self._pumps -= set(pumps)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_SIZE):
                first_line = data.partition(b"\r\n")[0]
                if requests and self._hold is not None and self._hold.search(first_line):
                    self.held.put_nowait(first_line)
                    await self._released.wait()
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


@contextlib.asynccontextmanager
async def cuttable_wire(path: Path) -> AsyncIterator[CuttableWire]:
    wire = CuttableWire(path)
    await wire.join()
    try:
        yield wire
    finally:
        wire.release()
        await wire.cut()


class PrivateEngine:
    """A dockerd of the test's own, in a network namespace of its own; it has no images at first. Needs root."""

    def __init__(self, home: Path, *, live_restore: bool = False) -> None:
        """All that it keeps is in `home`. With `live_restore` its containers outlive it."""
        self._home = home
        self._options = ["--live-restore"] if live_restore else []
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, home: Path, *, live_restore: bool = False) -> "PrivateEngine":
        """Start one and wait until it listens."""
        engine = cls(home, live_restore=live_restore)
        await engine.run()
        return engine

    async def run(self) -> None:
        """Start it, or start it again, and wait until it listens."""
        home = self._home
        log = home / "log"
        # To a file: what it starts outlives it with `live_restore`, and goes on writing.
        with log.open("wb") as output:
            process = self._process = await asyncio.create_subprocess_exec(
                *("unshare", "--net", "dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"),
                *("--host", self.address, "--data-root", str(home / "data")),
                *("--exec-root", str(home / "exec"), "--pidfile", str(home / "pid"), *self._options),
                stderr=output,
            )
        try:
            async with asyncio.timeout(PATIENCE):
                while b"API listen on" not in await asyncio.to_thread(log.read_bytes):
                    assert process.returncode is None, log.read_text()
        except BaseException:
            await self.stop()
            raise

    @property
    def address(self) -> str:
        """What DOCKER_HOST is for it."""
        return f"unix://{self._home / 's'}"

    @property
    def factory(self) -> Callable[..., docker.DockerClient]:
        return partial(docker.DockerClient, base_url=self.address)

    def freeze(self) -> None:
        """Stop it, and wait until all of its threads have stopped: until then it goes on answering."""
        assert self._process is not None
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def answered(self) -> None:
        """Wait until it answers: on a busy machine some time after `thaw`."""

        def ask() -> None:
            with contextlib.closing(self.factory(timeout=PATIENCE)) as client:
                client.ping()

        await asyncio.to_thread(ask)

    async def kill(self) -> None:
        """End it, and its containerd, as a crash does; what runs in containers has parents of its own."""
        containerd = int((self._home / "exec/containerd/containerd.pid").read_text())
        self._signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(containerd, signal.SIGKILL)
        await self._ended()
        # The next one would wait for it as long as it has not been reaped.
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(Path(f"/proc/{containerd}").exists):
                pass

    async def stop(self) -> None:
        """End it in order, however it is. Idempotent."""
        if self._process is not None and self._process.returncode is None:
            self.thaw()
            self._signal(signal.SIGTERM)
            await self._ended()

    def _signal(self, signum: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    async def _ended(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()
        self._process = None


@contextlib.contextmanager
def home_with_image(image: str) -> Iterator[Path]:
    """Make the home of private engines that have an image, which costs ten seconds; one runs at a time."""
    home = Path(tempfile.mkdtemp(prefix="engine-"))
    try:
        asyncio.run(_load(home, image))
        yield home
    finally:
        # An engine that was killed leaves its data mounted upon itself.
        subprocess.run(["umount", "--recursive", "--lazy", str(home / "data")], check=False, capture_output=True)
        shutil.rmtree(home)


async def _load(home: Path, image: str) -> None:
    engine = await PrivateEngine.start(home)
    try:
        await asyncio.to_thread(_copy_image, engine, image)
    finally:
        await engine.stop()


def _copy_image(engine: PrivateEngine, image: str) -> None:
    source, target = docker.from_env(), engine.factory()
    try:
        target.images.load(source.images.get(image).save(named=image))  # type: ignore[arg-type]  # it takes pieces, too
    finally:
        source.close()
        target.close()
