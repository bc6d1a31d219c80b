"""A house whose users have tokens, and connections that search whatever arrives for what is somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from kernelbridge.identity.principal import Principal
from kernelbridge.identity.token_file import add_token
from kernelbridge.identity.tokens import new_token, token_line
from kernelbridge.workspace.session_key import SessionKey
from tests.faults.house import ConnectionClosedError, Frame, House
from tests.faults.marks import Border, mark

T = TypeVar("T")

NO_ANSWER = {"terminal_input", "terminal_resize", "input_reply"}
"""Requests that are answered only if they fail."""
FINAL = {
    *("execution_result", "terminal_output", "save_result", "kernel_restarted", "close_session_reply", "resumed"),
    *("session_info_reply", "error", "file_content", "file_list", "file_result", "session_ready", "complete_reply"),
    *("inspect_reply", "is_complete_reply", "list_sessions_reply", "terminal_opened", "terminal_closed"),
    *("authenticated", "pong"),
}
MASKED = (
    (re.compile(r'"connectionId":"[^"]*"'), '"connectionId":'),
    (re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z"), "TIME"),
    (re.compile(r'"(durationMs|cpuMs)":[0-9.e-]+'), r'"\1":'),
)
"""What differs between two answers to the same request."""
VARYING = {"date", "etag", "last-modified", "retry-after"}
"""Headers that do."""


def name_of(user: str) -> str:
    """Return the name of a user's principal, which is a secret, too."""
    return mark(0, user)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an HTTP request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Line:
    """One connection of a user. Whatever arrives is searched first."""

    def __init__(self, border: Border, user: str, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.user = user
        self.ws = ws
        self.waiting: dict[str, tuple[str | None, str, asyncio.Future[Frame]]] = {}
        """The session, type and answer of each request that is not answered, by requestId."""
        self.heard: list[str] = []
        """All frames, in order, as they arrived."""
        self.failure: Exception | None = None
        self._border = border
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def ask(self, **message: Any) -> Frame:
        """Send a request and return its answer. Raises `ConnectionClosedError`."""
        return await answer_of(await self.begin(**message))

    async def begin(self, *, refused: bool = False, **message: Any) -> asyncio.Future[Frame]:
        """Send a request; return its answer to be, which is cancelled if the connection ends before it comes.

        `refused` says that a request will fail which is answered only then.
        """
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        if message["type"] in NO_ANSWER and not refused:
            future.set_result({})
        elif self._reader.done():
            future.cancel()
        else:
            self.waiting[message["requestId"]] = (message.get("sessionId"), message["type"], future)
        await self.ws.send_json(message)
        return future

    async def settled(self, session: str | None = None, *types: str) -> None:
        """Wait until all requests are answered, or those of a session or of some types."""
        while futures := [
            future
            for of, kind, future in self.waiting.values()
            if (session is None or of == session) and (not types or kind in types)
        ]:
            await asyncio.wait(futures)

    async def closed(self) -> None:
        """Wait until the server has ended the connection."""
        await asyncio.wait([self._reader])

    async def close(self, *, politely: bool = True) -> None:
        """End the connection: as clients do, or without a word."""
        if not politely and self.ws._response.connection is not None:
            transport = self.ws._response.connection.transport
            assert transport is not None
            transport.abort()
        await self.ws.close()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            async for message in self.ws:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                self.heard.append(message.data)
                await self._take(self._border.frame(self.user, message.data))
        except Exception as exc:  # noqa: BLE001  told by whoever waits for anything
            self.failure = exc
        for _, _, future in self.waiting.values():
            future.cancel()
        self.waiting.clear()

    async def _take(self, frame: Frame) -> None:
        if frame["type"] == "input_request":
            value = mark(0, self.user, frame["sessionId"])
            reply = {"type": "input_reply", "sessionId": frame["sessionId"], "value": value}
            with contextlib.suppress(ConnectionError):
                await self.ws.send_json({**reply, "inputId": frame["inputId"]})
        elif (frame["type"] in FINAL or frame.get("done")) and frame.get("requestId") in self.waiting:
            self.waiting.pop(frame["requestId"])[2].set_result(frame)


async def answer_of(future: asyncio.Future[Frame]) -> Frame:
    """Return the answer when it is there. Raises `ConnectionClosedError`."""
    await asyncio.wait([future])
    if future.cancelled():
        raise ConnectionClosedError
    return future.result()


class GuardedHouse(House):
    """A house that lets users in by their tokens."""

    def __init__(self, users: Sequence[str], runtime: str, image: str, data_dir: Path, **flags: str) -> None:
        tokens = data_dir.parent / "tokens"
        self.tokens = {user: new_token() for user in users}
        for user, token in self.tokens.items():
            add_token(tokens, token_line(name_of(user), token))
        super().__init__(runtime, image, data_dir, auth="token", token_file=str(tokens), **flags)
        self.border = Border()
        self._lines: list[Line] = []

    def forget(self) -> None:
        """Begin a new run."""
        self.border = Border()
        self._lines.clear()
        for user, token in self.tokens.items():
            self.border.keep_token(user, token)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something to its end. Raises what was wrong with what arrived meanwhile, on any connection."""
        try:
            return super().do(work)
        finally:
            self.check()

    def do_both(self, *works: Coroutine[Any, Any, None]) -> None:
        """Do several things at a time, however long they take."""

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as tasks:
                for work in works:
                    tasks.create_task(work)

        try:
            self._runner.run(all_of_them())
        except* Exception as exc:
            self.failure = self.failure or exc
            raise

    def check(self) -> None:
        """Raise what was wrong with anything that has arrived."""
        for line in self._lines:
            if line.failure is not None:
                self.failure = self.failure or line.failure
                raise line.failure

    def workspace_id(self, user: str, session: str) -> str:
        """Return the id by which an administrator names a session."""
        return SessionKey(Principal(name_of(user)), session).workspace_id

    def bearer(self, user: str) -> dict[str, str]:
        """Return the header with a user's token."""
        return {"Authorization": f"Bearer {self.tokens[user]}"}

    async def line(self, user: str, query: str = "", *, headers: Mapping[str, str] | None = None) -> Line:
        """Open a connection of a user, with its token unless there are other `headers`."""
        assert self._http is not None
        headers = self.bearer(user) if headers is None else headers
        line = Line(self.border, user, await self._http.ws_connect(f"{self.url}?{query}", headers=headers))
        self._lines.append(line)
        return line

    async def http(
        self, user: str, method: str, path: str, *, session: str | None = None, token: str | None = None, **options: Any
    ) -> Answer:
        """Send an HTTP request and search its answer, which is of a session of the user or of none."""
        assert self._http is not None
        headers = self.bearer(user) if token is None else {"Authorization": f"Bearer {token}"}
        headers |= options.pop("headers", {})
        url = self.url.replace("ws://", "http://").removesuffix("/ws") + path
        async with self._http.request(method, url, headers=headers, **options) as response:
            body = await response.read()
            answer = Answer(response.status, response.headers, body)
        text = f"{answer.headers} {body.decode('utf-8', 'replace')}"
        self.border.search(user, session, text, f"{method} {path.partition('?')[0].rpartition('/')[0][:12]}")
        return answer

    async def conversation(self, user: str, session: str, messages: Sequence[Frame], *, streams: bool) -> list[str]:
        """Send messages about a session on a connection of their own, then close it; return all that came, masked."""
        line = await self.line(user, "stream=true" if streams else "")
        for message in messages:
            await line.ask(**message, sessionId=session)
        closing = {"type": "close_session", "requestId": "close", "deleteFiles": True}
        assert (await line.ask(**closing, sessionId=session))["type"] == "close_session_reply"
        await line.close()
        return [masked(text, session) for text in line.heard]


def masked(text: str, session: str) -> str:
    """Return a text without the name of the session that it is about, and without times."""
    text = re.sub(rf"{re.escape(session)}(?!\d)", "SESSION", text)
    for pattern, replacement in MASKED:
        text = pattern.sub(replacement, text)
    return text


def masked_answer(answer: Answer, session: str) -> tuple[int, list[str], str]:
    """Return an answer without the name of the session that it is about, and without times and versions."""
    headers = [f"{name}: {value}" for name, value in answer.headers.items() if name.lower() not in VARYING]
    return answer.status, headers, masked(answer.body.decode(), session)
