"""One client's connection to its server: opened, watched, and opened again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import random
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp

from kernelbridge.client.core import Core, Effect, Frame
from kernelbridge.client.errors import ClientError, Closed, ConnectionLost, LoginRefused, RequestRefused

HANDSHAKE = 10.0
"""Seconds in which a connection must be there, from the first packet to `connected`."""
CLOSING = 2.0
"""Seconds in which the server may answer the end of a connection."""
FIRST_PAUSE = 0.05
"""Seconds before the first attempt to connect again."""
LONGEST_PAUSE = 5.0
"""Seconds between two later attempts, at most."""
LASTED = 10.0
"""Seconds that a connection must last for the pauses to be short again."""

Token = str | Callable[[], str | Awaitable[str]]
"""The token, or a function that returns it, or a coroutine function."""

_TOKEN = re.compile(r"[\x21-\x7e]*")
_SESSION = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Target:
    """Where the server is, and who asks."""

    url: str
    token: Token | None = field(default=None, repr=False)
    user_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ssl: ssl.SSLContext | bool = True

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"ws", "wss", "http", "https"} or not parts.hostname:
            # Without the address, which may have a password.
            raise ValueError("this is not the address of a server: expected ws://HOST:PORT or wss://HOST")
        if parts.query or parts.username:
            raise ValueError("the address must have no query and no user: use token= and user_id=")

    @property
    def _base(self) -> str:
        """The address of the server for HTTP, with the path under which a proxy has it."""
        scheme, rest = self.url.split("://", 1)
        return f"http{'s' if scheme in {'wss', 'https'} else ''}://{rest.rstrip('/').removesuffix('/ws')}"

    def _query(self, **more: str) -> str:
        query = urlencode({**more, **({} if self.user_id is None else {"user_id": self.user_id})})
        return f"?{query}" if query else ""

    @property
    def socket(self) -> str:
        """The address of the WebSocket. With `stream`, every answer has its number."""
        return f"ws{self._base.removeprefix('http')}/ws{self._query(stream='true')}"

    def file(self, session_id: str, path: str) -> str:
        """Return the address of a file.

        Raises `RequestRefused` for a path or a session that cannot be in an address: `.` and `..` never reach the
        server, because HTTP clients resolve them, and the address would be that of another session's file.
        """
        while path.startswith("./"):
            path = path[2:].lstrip("/")
        if reason := _misleads(session_id, path):
            raise RequestRefused(
                "The file name cannot be used", reason, code="invalid_field", retryable=False, request="file"
            )
        return f"{self._base}/api/sessions/{quote(session_id, safe='')}/files/{quote(path)}{self._query()}"

    async def login(self) -> dict[str, str]:
        """Return the headers of a request. Calls `token` if it is a function.

        Raises `ConnectionLost` if the function fails or takes too long, unless it fails with a `ClientError`;
        `LoginRefused` for what no header can hold.
        """
        try:
            async with asyncio.timeout(HANDSHAKE):
                token = await _called(self.token) if callable(self.token) else self.token
        except ClientError:
            raise
        except TimeoutError as exc:
            raise ConnectionLost(
                "There is no token", f"its function took more than {HANDSHAKE:g} s; try again"
            ) from exc
        except Exception as exc:
            raise ConnectionLost("There is no token", f"its function failed ({exc!r}); try again") from exc
        if token is not None and not _TOKEN.fullmatch(token):
            raise LoginRefused(
                "The token cannot be sent",
                "it must be a text of visible ASCII characters; does it have a space, or the end of a line?",
            )
        return {**self.headers, **({} if token is None else {"Authorization": f"Bearer {token}"})}


async def _called(function: Callable[[], str | Awaitable[str]]) -> str:
    """Return what a function of the user returns, without keeping the event loop from its work.

    It may block, so it is called in a thread. No executor: its threads are waited for when the program ends.
    """
    token: str
    if inspect.iscoroutinefunction(function):
        token = await function()
        return token
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[str | Awaitable[str], BaseException | None]] = loop.create_future()

    def settle(value: str | Awaitable[str], error: BaseException | None) -> None:
        if not outcome.done():
            outcome.set_result((value, error))

    def work() -> None:
        try:
            value, error = function(), None
        except BaseException as exc:  # noqa: BLE001 - it is raised below
            value, error = "", exc
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name="kernelbridge token", daemon=True).start()
    value, error = await outcome
    if error is not None:
        raise error
    token = await value if inspect.isawaitable(value) else value
    return token


class Link:
    """Keeps a connection, and moves frames between it and the core."""

    def __init__(
        self,
        target: Target,
        core: Core,
        deliver: Callable[[Iterable[Effect]], None],
        *,
        heartbeat: float,
        reconnect: float | None,
    ) -> None:
        """`deliver` gets what frames and broken connections mean. Call it all in one event loop.

        `heartbeat`: seconds of silence after which the server is asked for a sign of life; it has half as long to give
        one. `reconnect`: seconds in which a broken connection is tried again; None: for ever.
        """
        self._target = target
        self._core = core
        self._deliver = deliver
        self._heartbeat = heartbeat
        self._reconnect = reconnect
        self.loop = asyncio.get_running_loop()
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=HANDSHAKE))
        self._dialing: asyncio.Task[None] | None = None
        self._callers = 0
        """How many tasks wait for the first connection."""
        self._ended = False
        self._serving: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._served_at = 0.0
        """When the latest connection was there."""
        self._pause = FIRST_PAUSE
        """Seconds before the next attempt to connect again."""

    async def connect(self) -> None:
        """Connect, unless there is a connection, or one is being tried again.

        All tasks that call it meanwhile share one attempt and its error. Cancelling one of them does not disturb the
        others; the attempt ends with the last of them.

        Raises `ConnectionLost`, `LoginRefused` or `RequestRefused`. The link is of no use any more then.
        """
        if self._serving is not None and not self._serving.done():
            return
        if self._dialing is None:
            self._dialing = self.loop.create_task(self._dial_first())
        dialing = self._dialing
        self._callers += 1
        try:
            await asyncio.shield(dialing)
        except asyncio.CancelledError:
            if dialing.cancelled() and not _is_cancelled():
                raise Closed("The client is closed", "it was not connected yet; make another client") from None
            raise
        finally:
            self._callers -= 1
            if not self._callers and not dialing.done():
                await self._end_dialing()

    async def _dial_first(self) -> None:
        try:
            ws = await self._dial()
        except BaseException:
            await self.http.close()
            raise
        self._dialing = None
        self._serving = self.loop.create_task(self._serve(ws))

    async def _end_dialing(self) -> None:
        self._ended = True  # from now on: whoever connects next needs another link
        if self._dialing is not None and not self._dialing.done():
            self._dialing.cancel()
            await asyncio.wait([self._dialing])

    @property
    def usable(self) -> bool:
        """Whether it may be connected, or used for HTTP."""
        return not self._ended and not self.http.closed

    def flush(self) -> None:
        """Write what the core has to send."""
        self._wake.set()

    async def close(self) -> None:
        """End the connection. Tasks that wait for it get `Closed`. Idempotent."""
        await self._end_dialing()
        if self._serving is not None and not self._serving.done():
            self._serving.cancel()
            await asyncio.wait([self._serving])
        await self.http.close()

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Serve one connection after another, until none can be made."""
        why = "the client's event loop ended"
        try:
            while True:
                self._served_at = self.loop.time()
                self._core.link_up()
                self._wake.set()
                why = await self._pump(ws)
                self._deliver(self._core.link_down(why))
                ws = await self._dial_again(why)
        except ClientError as exc:
            self._deliver(self._core.give_up(exc, f"{why}; {exc.reason or exc.message}"))
        except Exception as exc:  # noqa: BLE001 - whoever waits must learn of it: a frame that is none, a token's function
            self._deliver(self._core.link_down(repr(exc)))
            self._deliver(self._core.give_up(ConnectionLost("The connection is lost", repr(exc)), repr(exc)))
        except asyncio.CancelledError:
            self._deliver(self._core.link_down(why))
            self._deliver(self._core.give_up(ConnectionLost("The request was not sent", why), why))
            await self.http.close()
            raise

    async def _pump(self, ws: aiohttp.ClientWebSocketResponse) -> str:
        """Read and write until the connection ends; return why it did."""
        writer = self.loop.create_task(self._write(ws))
        try:
            while (message := await ws.receive()).type is aiohttp.WSMsgType.TEXT:
                self._deliver(self._core.receive(json.loads(message.data)))
                if self._core.ready:
                    self._wake.set()
        finally:
            writer.cancel()
            await asyncio.wait([writer])
            with contextlib.suppress(Exception):
                await ws.close()
        if message.type is aiohttp.WSMsgType.ERROR:
            return f"the connection broke ({message.data or type(message.data).__name__})"
        reason = f": {message.extra}" if message.extra else ""
        return f"the connection ended (close code {ws.close_code}{reason})"

    async def _write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                self._wake.clear()
                while (frame := self._core.take()) is not None:
                    await ws.send_str(encode(frame))
                await self._wake.wait()
        except Exception:  # noqa: BLE001 - the reader ends with the connection, and says so
            await ws.close()

    async def _dial_again(self, why: str) -> aiohttp.ClientWebSocketResponse:
        """Connect again, with pauses that grow until a connection has lasted.

        Raises `ConnectionLost` when it is in vain, and `LoginRefused`.
        """
        if self.loop.time() - self._served_at >= LASTED:
            self._pause = FIRST_PAUSE
        error = ConnectionLost(f"The connection to {self._target.url} is lost", why)
        try:
            async with asyncio.timeout(self._reconnect):
                while True:
                    pause = self._pause * random.uniform(0.5, 1)  # noqa: S311 - so that clients do not come all at once
                    self._pause = min(2 * self._pause, LONGEST_PAUSE)
                    await asyncio.sleep(pause)
                    try:
                        return await self._dial()
                    except ConnectionLost as exc:
                        error = exc
                    except RequestRefused as exc:
                        if not exc.retryable:
                            raise
                        error = ConnectionLost(exc.message, exc.reason)
        except TimeoutError:
            raise error from None

    async def _dial(self) -> aiohttp.ClientWebSocketResponse:
        """Open one connection, up to `connected`."""
        refused: ClientError | None = None
        headers = await self._target.login()
        try:
            async with asyncio.timeout(HANDSHAKE):
                ws = await self.http.ws_connect(
                    self._target.socket,
                    headers=headers,
                    heartbeat=self._heartbeat,
                    max_msg_size=0,  # a result may be of any size
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSING),
                    ssl=self._target.ssl,
                )
                try:
                    first = await ws.receive()
                except BaseException:
                    await ws.close()
                    raise
        except aiohttp.WSServerHandshakeError as exc:
            refused = self._no_handshake(exc)
        except (OSError, aiohttp.ClientError, TimeoutError) as exc:
            reason = f"no answer within {HANDSHAKE:g} s" if isinstance(exc, TimeoutError) else str(exc)
            raise self._unreachable(reason) from exc
        if refused is not None:
            raise refused  # not in the handler: its exception has the token in its repr, and would be the context
        frame: Frame = {"type": "nothing"}
        if first.type is aiohttp.WSMsgType.TEXT:
            with contextlib.suppress(ValueError, TypeError):
                frame = {**frame, **json.loads(first.data)}
        if frame["type"] == "connected":
            return ws
        await ws.close()
        if frame["type"] != "error":
            raise self._unreachable(f"it does not say `connected` (close code {ws.close_code})")
        if frame.get("code") == "unauthorized":
            raise LoginRefused(frame["message"], frame["error"])
        raise RequestRefused(
            *(frame["message"], frame["error"]),
            code=frame.get("code", "internal_error"),
            retryable=frame.get("retryable", False),
            request="connect",
        )

    def _unreachable(self, reason: str) -> ConnectionLost:
        return ConnectionLost(f"Cannot connect to {self._target.url}", f"{reason}; does a server run there?")

    def _no_handshake(self, exc: aiohttp.WSServerHandshakeError) -> ClientError:
        if exc.status in {401, 403, 429}:
            return refused_login(exc.status)
        if exc.status >= 500:  # noqa: PLR2004 - a proxy whose server is away
            return self._unreachable(f"HTTP status {exc.status}")
        return RequestRefused(
            *(f"{self._target.url} is no kernelbridge server", f"HTTP status {exc.status}; look at the address"),
            code="bad_request",
            retryable=False,
            request="connect",
        )


def _misleads(session_id: str, path: str) -> str:
    """Return why an address of this file would be that of something else, or an empty string."""
    if session_id in {".", ".."} or not _SESSION.fullmatch(session_id):
        return "the name of its session must be 1 to 128 letters, digits, '.', '_' and '-', and not '.' or '..'"
    if not path:
        return "it is empty"
    if path.startswith("/"):
        return "it is absolute; give a path relative to the workspace, without the leading '/'"
    if not {".", ".."}.isdisjoint(path.split("/")):
        return "it contains '.' or '..'; give a path that stays inside the workspace"
    return ""


def refused_login(status: int) -> LoginRefused:
    """Return the error for an HTTP status."""
    reasons = {
        401: "its token is absent, wrong, expired or revoked: give a valid token=",
        403: "user_id is not the name that the token is for, or the server does not accept this host name",
    }
    reason = reasons.get(status, "too many logins from this address have failed: wait, and correct the token")
    return LoginRefused("The server refuses this client", f"{reason} (HTTP status {status})", status=status)


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the current task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def encode(frame: Mapping[str, Any]) -> str:
    """Write a frame. Raises `TypeError` or `ValueError` for what JSON has not, such as NaN."""
    return json.dumps(frame, ensure_ascii=False, allow_nan=False)


def size(frame: Mapping[str, Any]) -> int:
    """Return the bytes of a frame. Raises also `UnicodeEncodeError`, for halves of surrogate pairs."""
    return len(encode(frame).encode())
