"""The engine's events: one thread reads the stream and passes each event to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from docker import DockerClient
from docker.api import APIClient

from kernelbridge.runtimes.docker.engine import UNREACHABLE, explain, release

log = structlog.get_logger(__name__)

ACTIONS = ("create", "start", "die", "destroy", "oom", "pause")
FIRST_DELAY = 0.1
"""Seconds from the end of a stream until the next one is asked for; doubles up to `LAST_DELAY`."""
LAST_DELAY = 2.0


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something that happened to a container."""

    action: str
    """One of `ACTIONS`."""
    container: str
    labels: Mapping[str, str]
    code: int | None = None
    """Exit code of `die`; above 128 it stands for a signal."""
    at: float | None = None
    """Time of the event, in seconds of the engine's clock."""


def parse_event(raw: Mapping[str, Any]) -> EngineEvent | None:
    """Parse an element of `GET /events`; None if it is not one of `ACTIONS`."""
    actor = raw.get("Actor") or {}
    action, container = raw.get("Action"), actor.get("ID")
    if raw.get("Type") != "container" or action not in ACTIONS or not isinstance(container, str):
        return None
    attributes = actor.get("Attributes") or {}
    nanoseconds = raw.get("timeNano")
    code = str(attributes.get("exitCode", ""))
    return EngineEvent(
        action=action,
        container=container,
        labels=attributes,
        code=int(code) if code.isdigit() else None,
        at=nanoseconds / 1e9 if isinstance(nanoseconds, int) else None,
    )


class EventStream:
    """The endless answer to `GET /events`. One thread iterates; any thread may call `hang_up`."""

    def __init__(self, api: APIClient, filters: dict[str, Any]) -> None:
        """Send the request; raises what the SDK raises, also if the engine, or a proxy, refuses it."""
        stream: Any = api.events(filters=filters, decode=True)
        self._events: Iterator[Mapping[str, Any]] = iter(stream)
        self._response = stream._response  # noqa: SLF001 - the SDK offers no way to it
        try:
            self._response.raise_for_status()  # the SDK does this with the first event only
        except BaseException:
            self._response.close()
            raise
        self._connection: socket.socket = self._response.raw._fp.fp.raw._sock  # noqa: SLF001 - as above
        # Without the time-out of other calls: there may be no event for hours.
        self._connection.settimeout(None)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self._events

    def hang_up(self) -> None:
        """End the iteration in the other thread."""
        with contextlib.suppress(OSError):  # the engine hung up first
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, after the iteration."""
        self._response.close()


class EventFollower:
    """Follows the events of containers with one label; reconnects whenever the engine was away."""

    def __init__(
        self,
        new_client: Callable[[], DockerClient],
        *,
        label: str,
        on_event: Callable[[EngineEvent], None],
        on_connected: Callable[[], None],
    ) -> None:
        """Start the thread. It calls both functions in the event loop.

        `on_connected` is called whenever a stream begins: earlier events may be lost.
        """
        self._new_client = new_client
        self._filters = {"type": "container", "event": list(ACTIONS), "label": label}
        self._on_event = on_event
        self._on_connected = on_connected
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._stream: EventStream | None = None
        self._delay = FIRST_DELAY
        self._began = False
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)
        self._thread.start()

    def reconnect(self) -> None:
        """End the stream and begin another, which calls `on_connected`."""
        with self._lock:
            if self._stream is not None:
                self._stream.hang_up()

    def stop(self) -> None:
        """Make the thread end."""
        self._stopping.set()
        self.reconnect()

    def join(self, seconds: float) -> None:
        """Wait up to `seconds` for the thread; blocking. Not if no stream has begun: it cannot be ended then."""
        self._thread.join(seconds if self._began else 0.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except (*UNREACHABLE, RuntimeError) as exc:
                release(exc)
                if self._loop.is_closed():
                    return
                if not self._stopping.is_set() and self._delay == FIRST_DELAY:  # once for each loss
                    log.warning("docker_events_lost", reason=explain(exc))
            self._stopping.wait(self._delay)
            self._delay = min(2 * self._delay, LAST_DELAY)

    def _follow(self) -> None:
        client = self._new_client()
        try:
            with contextlib.closing(EventStream(client.api, self._filters)) as stream:
                self._listen(stream)
        finally:
            client.close()

    def _listen(self, stream: EventStream) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._stream = stream
        self._began = True
        try:
            self._delay = FIRST_DELAY
            self._loop.call_soon_threadsafe(self._on_connected)
            for raw in stream:
                if (event := parse_event(raw)) is not None:
                    self._loop.call_soon_threadsafe(self._on_event, event)
        finally:
            with self._lock:
                self._stream = None
