"""An engine that does all that it is asked, and takes its time to say so: a wire in front of the real one.

Its answers can be late, and its events.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

from tests.docker.faulty_engine import READ_SIZE, engine_socket

_REQUEST = re.compile(rb"(GET|POST|PUT|DELETE|HEAD) (?:/v[0-9.]+)?(/\S*) HTTP/1\.1\r\n")


class LateAnswers:
    """Passes requests on at once, and keeps back the beginning of each answer to one that matches."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = engine_socket()  # now: a test points DOCKER_HOST at this wire
        self._requests = re.compile(rb"")
        self._seconds = 0.0
        self.late: list[bytes] = []
        """The requests whose answers were kept back."""
        self._events = asyncio.Event()
        self._events.set()
        self._open: set[asyncio.Task[None]] = set()

    def delay(self, seconds: float, requests: bytes = rb"") -> None:
        """Keep back the answers to requests with this in method and path, from now on."""
        self._seconds, self._requests = seconds, re.compile(requests)

    def hold_events(self) -> None:
        """Keep back all events, from now on."""
        self._events.clear()

    def release_events(self) -> None:
        """Pass on the events that were kept back, and all others."""
        self._events.set()

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._pass_on(reader, writer)
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def end(self) -> None:
        """Hang up every connection."""
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        loop, not_before, follows = asyncio.get_running_loop(), 0.0, False

        async def requests() -> None:
            nonlocal not_before, follows
            while data := await reader.read(READ_SIZE):
                request = _REQUEST.match(data)  # what follows an upgrade is no request, and not kept back
                follows = follows or (request is not None and request[2].startswith(b"/events"))
                if request is not None and self._requests.search(request[1] + b" " + request[2]):
                    not_before = loop.time() + self._seconds
                    self.late.append(request[1] + b" " + request[2])
                engine_writer.write(data)
                await engine_writer.drain()
            engine_writer.write_eof()

        async def answers() -> None:
            while data := await engine_reader.read(READ_SIZE):
                await asyncio.sleep(not_before - loop.time())
                if follows:
                    await self._events.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()

        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(requests())
                both.create_task(answers())
        except* (OSError, RuntimeError):
            pass  # one of both is gone
        finally:
            engine_writer.transport.abort()


@contextlib.asynccontextmanager
async def late_answers(path: Path) -> AsyncIterator[LateAnswers]:
    wire = LateAnswers(path)
    server = await asyncio.start_unix_server(wire.accepted, path)
    try:
        yield wire
    finally:
        server.close()
        await wire.end()
        await server.wait_closed()
