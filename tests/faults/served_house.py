"""A house whose server is a process of its own, which can be killed."""

import asyncio
import os
import sys
from pathlib import Path

import aiohttp

from tests.faults.house import PATIENCE, House


class ServedHouse(House):
    """As `House`, but it sees of the server only what an operator would."""

    def __init__(self, runtime: str, image: str, data_dir: Path, **flags: str) -> None:
        super().__init__(runtime, image, data_dir, **flags)
        self._server: asyncio.subprocess.Process | None = None
        self._log = data_dir.parent / "server.log"

    async def start(self) -> None:
        """Start the server and wait until it says where it listens."""
        arguments = [word for name, value in self._flags.items() for word in (f"--{name.replace('_', '-')}", value)]
        with self._log.open("ab") as log:
            self._server = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kernelbridge", "serve", *arguments),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("KERNELBRIDGE_")},
            )
        assert self._server.stdout is not None
        async for line in self._server.stdout:
            if b"ws://" in line:
                self.url = next(word for word in line.decode().split() if word.startswith("ws://"))
                break
        else:
            raise AssertionError(self._log.read_text(encoding="utf-8")[-2000:])
        if self._http is None:
            self._http = aiohttp.ClientSession()

    async def stop_server(self) -> None:
        """Stop the server in order, whoever is connected."""
        if self._server is not None:
            self._server.terminate()
            await self._server.communicate()
            assert self._server.returncode == 0, self._log.read_text(encoding="utf-8")[-2000:]
            self._server = None

    async def kill_server(self) -> None:
        """SIGKILL the server, whatever it does."""
        assert self._server is not None
        self._server.kill()
        await self._server.communicate()
        self._server = None

    async def nothing_left(self) -> None:
        """Wait until nothing is left of any session: what is closed is answered before all of it is gone."""
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(self._remains):
                pass
        assert "Traceback" not in self._log.read_text(encoding="utf-8")

    def _remains(self) -> list[str]:
        return [*(entry.name for entry in (self._data_dir / "run").iterdir()), *self.containers()]
