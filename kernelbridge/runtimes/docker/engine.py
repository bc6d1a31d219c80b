"""Calls to the Docker Engine, in bounded time and outside of the event loop.

The SDK is synchronous. Its calls run in a few threads; a caller waits at most `timeout` seconds for the answer and gets
`RuntimeUnavailable` otherwise. Refusals (`docker.errors.APIError`) are raised to the caller, who knows what they mean.

A request may need several calls in a row: a container is removed, then another one is made. To make an engine that
hangs cost one time-out and not one for each call, a call after one without an answer waits for a second only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import docker
from docker.api import APIClient
from docker.errors import APIError, DockerException
from urllib3.exceptions import HTTPError

from kernelbridge.errors import RuntimeUnavailable

T = TypeVar("T")
ClientFactory = Callable[..., docker.DockerClient]
"""`docker.from_env` or alike: takes `version`, `timeout` (seconds) and `max_pool_size`."""

CALL_TIMEOUT = 8.0
"""Seconds for one call. A new session must get an error within ten if the engine hangs."""
SHORT_TIMEOUT = 1.0
"""Seconds for one call while the engine seems to hang: with the call that had no answer, less than ten."""
MISTRUST = 15.0
"""Seconds for which an engine seems to hang after a call without an answer, unless it answers any call, also late. Then
a call has its whole time again, because the engine may only be slow."""
THREADS = 8

UNREACHABLE = (OSError, HTTPError, DockerException)
"""What the SDK raises when there is no answer. `APIError` is one of them and must be caught before."""
GONE = (404, 409)
"""Status codes for something that does not exist, or does not run, any more."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is known about the engine; if it does not answer, only `reason`."""

    available: bool
    reason: str = ""
    """Why it does not answer, and what to do."""
    version: str = ""
    api_version: str = ""
    cgroup_version: str = ""
    cpus: int = 0
    memory: int = 0
    """Bytes of the host."""
    security: tuple[str, ...] = ()
    """Names of the engine's security options: seccomp, apparmor, rootless, userns …"""
    oci_runtimes: tuple[str, ...] = ()
    """Names of the OCI runtimes that are configured: runc, runsc, …"""

    def __str__(self) -> str:
        return f"Docker Engine {self.version} (API {self.api_version}, cgroup v{self.cgroup_version})"


class Engine:
    """A connection to one engine. `aclose` ends its threads and closes its sockets."""

    def __init__(self, client_factory: ClientFactory = docker.from_env, *, timeout: float = CALL_TIMEOUT) -> None:
        self.timeout = timeout
        # The socket's own time-out only ends the thread; ours comes first, with a better message.
        self._connect = partial(client_factory, version="auto", timeout=timeout + 0.5, max_pool_size=THREADS)
        self._client: docker.DockerClient | None = None
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._running: set[Future[Any]] = set()
        self._heard = self._missed = float("-inf")
        """Times of the latest answer, and of the latest call that timed out without any answer since it began."""
        self._calls = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def open(self) -> EngineInfo:
        """Connect, and return what the engine is; raises `RuntimeUnavailable`."""
        self._client = await self._bounded(self.new_client, doing="connecting", discard=_close_client)
        return await self.call(_engine_info, doing="asking for its version")

    def new_client(self) -> docker.DockerClient:
        """Make another client, for a thread that reads a stream. Blocking; raises one of `UNREACHABLE`."""
        client = self._connect()
        # The SDK keeps a pool of connections for each URL, and nearly every URL contains an id, so they would never be
        # used again. To connect to a local socket takes microseconds.
        client.api.headers["Connection"] = "close"
        client.api.close()
        return client

    async def call(self, job: Callable[[APIClient], T], *, doing: str) -> T:
        """Run `job` in a thread and return its result; `doing` is used in error messages.

        Raises `RuntimeUnavailable`, or `docker.errors.APIError` if the engine refuses. When cancelled, the thread
        still completes the call.
        """
        if self._client is None:
            raise RuntimeUnavailable("The Docker engine cannot be asked", "the connection to it was closed")
        return await self._bounded(partial(job, self._client.api), doing=doing)

    async def join(self, ended: Callable[[], None]) -> None:
        """Run a function that waits for another thread, outside of the event loop."""
        await asyncio.wrap_future(self._pool.submit(ended))

    async def aclose(self) -> None:
        """Close the connections and end the threads; one that hangs in a call ends at its time-out. Idempotent."""
        client, self._client = self._client, None
        running = [asyncio.wrap_future(future) for future in list(self._running)]
        with contextlib.suppress(TimeoutError):  # the threads end by themselves soon after
            async with asyncio.timeout(self.timeout):
                await asyncio.gather(*running, return_exceptions=True)
        self._pool.shutdown(wait=not self._running, cancel_futures=True)
        if client is not None:
            _close_client(client)

    @property
    def _silent(self) -> bool:
        """Whether the engine may hang, as far as is known."""
        return self._heard < self._missed and time.monotonic() < self._missed + MISTRUST

    def _submitted(self, job: Callable[[], T]) -> Future[T]:
        """Run it in a thread; raises `RuntimeUnavailable` if the runtime was closed."""
        try:
            future = self._pool.submit(_releasing, job)
        except RuntimeError as exc:
            raise RuntimeUnavailable("The Docker engine cannot be asked", "the runtime was closed") from exc
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def _listen(self, future: Future[Any]) -> None:
        """Note the time of an answer, also of a late one; called in the thread that got it."""
        if not future.cancelled() and isinstance(future.exception(), APIError | None):
            self._heard = time.monotonic()

    async def _bounded(self, job: Callable[[], T], *, doing: str, discard: Callable[[T], object] | None = None) -> T:
        """Wait for `job` up to the time-out; `discard` is called with a result that comes later."""
        async with self._turn():
            began = time.monotonic()
            timeout = min(SHORT_TIMEOUT, self.timeout) if self._silent else self.timeout
            future = self._submitted(job)
            future.add_done_callback(self._listen)
            taken = False
            try:
                async with asyncio.timeout(timeout):
                    result = await asyncio.wrap_future(future)
                taken = True
                return result  # noqa: TRY300 - the `finally` below is what has to know
            except APIError:
                raise
            except TimeoutError as exc:
                if self._heard < began and timeout == self.timeout:
                    self._missed = time.monotonic()
                problem = no_answer(doing, timeout)
                self._fail_queue(problem)
                raise problem from exc
            except UNREACHABLE as exc:
                raise RuntimeUnavailable("The Docker engine does not answer", explain(exc)) from exc
            finally:
                if discard is not None and not taken:
                    future.add_done_callback(partial(_discard_late, discard))

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Admit as many callers as there are threads, in order.

        The time-out of a call starts when it is admitted. If the engine hangs, all callers that wait fail at once.
        """
        if self._calls >= THREADS:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self._pass_on()
                raise
        else:
            self._calls += 1
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._calls -= 1

    def _fail_queue(self, problem: RuntimeUnavailable) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(RuntimeUnavailable(problem.message, problem.reason))


async def probe_engine(client_factory: ClientFactory = docker.from_env, *, timeout: float = 5.0) -> EngineInfo:  # noqa: ASYNC109 - also bounds the threads that cannot be cancelled
    """Ask whether an engine answers within `timeout` seconds a question; never raises for one that does not."""
    engine = Engine(client_factory, timeout=timeout)
    try:
        return await engine.open()
    except RuntimeUnavailable as exc:
        return EngineInfo(available=False, reason=exc.reason)
    except APIError as exc:
        return EngineInfo(available=False, reason=explain(exc))
    finally:
        await engine.aclose()


def no_answer(doing: str, seconds: float) -> RuntimeUnavailable:
    """Return the error for a call that took too long."""
    return RuntimeUnavailable(
        "The Docker engine does not answer",
        f"{doing} took longer than {seconds:g} s; see whether `docker info` answers, and restart the engine if not",
    )


def explain(exc: BaseException) -> str:
    """Return in one line why a call failed and, if it is known, what to do."""
    if isinstance(exc, APIError):
        return " ".join((exc.explanation or str(exc)).split())
    text = " ".join(str(exc).split())
    lower = text.lower()
    if "permission denied" in lower:
        return "this user may not use the engine's socket; join the group `docker`, or set DOCKER_HOST"
    if "no such file" in lower or "connection refused" in lower:
        return "nothing listens on the engine's socket; start the Docker engine, or set DOCKER_HOST"
    if "timed out" in lower:
        return "it took too long; see whether `docker info` answers, and restart the engine if not"
    return text or type(exc).__name__


def _engine_info(api: APIClient) -> EngineInfo:
    info: Mapping[str, Any] = api.info()
    options = [dict(part.partition("=")[::2] for part in text.split(",")) for text in info.get("SecurityOptions") or ()]
    return EngineInfo(
        available=True,
        version=info.get("ServerVersion") or "unknown",
        api_version=api.api_version,
        cgroup_version=info.get("CgroupVersion") or "1",
        cpus=info.get("NCPU") or 0,
        memory=info.get("MemTotal") or 0,
        security=tuple(option.get("name", "") for option in options),
        oci_runtimes=tuple(info.get("Runtimes") or ()),
    )


def release(failure: BaseException) -> None:
    """Close the connections of a failed request at once; the SDK leaves them to the garbage collector.

    A socket that could not be connected is held by a frame of the traceback, a refused stream by the response.
    """
    if isinstance(failure, APIError) and failure.response is not None:
        failure.response.close()
    link: BaseException | None = failure
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _releasing(job: Callable[[], T]) -> T:
    try:
        return job()
    except Exception as exc:
        release(exc)
        raise


def _close_client(client: docker.DockerClient) -> None:
    client.close()


def _discard_late(discard: Callable[[T], object], future: Future[T]) -> None:
    """Discard a result that nobody waits for; called at once, or in the thread that made it."""
    if not future.cancelled() and future.exception() is None:
        discard(future.result())
