"""A server in a thread of its own, for all tests of a module: each finds it without sessions, and leaves it so."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve
from tests.integration.driving import PATIENCE, RunningServer


class SharedServer:
    """Its thread has an event loop of its own, because each test has one, too."""

    def __init__(self, flags: dict[str, Any]) -> None:
        """Start it. Returns when it listens; raises what keeps it from that."""
        self._settings = resolve(flags, {})
        self.data_dir = self._settings.data_dir
        self._started: Future[str] = Future()
        self._stop: Callable[[], object]
        self._thread = threading.Thread(target=self._run, name="shared server")
        self._thread.start()
        self.url = self._started.result(PATIENCE)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:
            if self._started.done():
                raise  # an error of the test that runs now
            self._started.set_exception(exc)

    async def _serve(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        async with running(self._settings, on_progress=lambda _line: None) as report:
            self._started.set_result(report.url)
            await stop.wait()

    def stop(self) -> None:
        """Stop it in order."""
        if self._thread.is_alive():
            self._stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it does not stop"


def _users(server: RunningServer) -> set[str | None]:
    """Find whose sessions there are: not all of them need to have come by `RunningServer.connect`."""
    labels = (server.data_dir / "workspaces").glob("*/session.json")
    return {json.loads(label.read_text(encoding="utf-8"))["principal"] for label in labels}


async def clear(server: RunningServer) -> None:
    """Close every session and delete its files; fails when anything is left then."""
    for user in _users(server):
        async with server.connect(user) as client:
            sessions = [entry["sessionId"] for entry in (await client.ask(type="list_sessions"))["sessions"]]
            for session in sessions:
                await client.send(type="close_session", sessionId=session, deleteFiles=True, requestId=session)
            for session in sessions:
                await client.answer_to(session)
    async with asyncio.timeout(PATIENCE):
        # What is being deleted tells nobody when it is gone.
        while any([*(server.data_dir / "run").iterdir(), *(server.data_dir / "workspaces").iterdir()]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
