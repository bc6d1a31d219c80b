"""The asynchronous client: sessions that run code, commands and terminals, and keep files."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import ssl as tls
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from kernelbridge.client.calls import Call, awaited
from kernelbridge.client.connection import Link, Target, Token, size
from kernelbridge.client.core import Core, Effect, Frame, Happened, Kind, Request, Settled
from kernelbridge.client.errors import Closed, RequestRefused, WaitTimeout
from kernelbridge.client.events import Event, Output, event_of
from kernelbridge.client.files import AsyncFiles
from kernelbridge.client.results import CommandResult, Result
from kernelbridge.client.terminal import AsyncTerminal

LINGER = 180.0
"""Seconds that a session waits for this client to come back: longer than `reconnect`."""

OnOutput = Callable[[Output], object]
OnInput = Callable[[str, bool], Any]
"""Called with the prompt, and whether the answer is secret; returns the line, or an awaitable of it."""


class AsyncClient:
    """A connection to a server, for one user. Use it in `async with`, from any number of tasks of one event loop."""

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        user_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        ssl: tls.SSLContext | bool = True,
        reconnect: float | None = 120.0,
        heartbeat: float = 20.0,
        max_message: int = 16 << 20,
    ) -> None:
        """Describe the connection; nothing is sent before `connect`, `async with` or the first request.

        Args:
            url: `ws://HOST:PORT` or `wss://HOST`, with or without `/ws` at the end.
            token: The token, or a function that returns it, which is called for each connection, in a thread of its
                own. A coroutine function runs in this event loop. It is sent in a header, never in the address.
            user_id: The user, for a server without authentication.
            headers: More headers for each request, such as those of a proxy.
            ssl: The TLS context, or False to trust any certificate.
            reconnect: Seconds in which a broken connection is tried again before requests fail; None: for ever.
            heartbeat: Seconds of silence after which the server is asked for a sign of life. Without one after half as
                long again, the connection counts as broken.
            max_message: Bytes of the largest message that the server takes (`--max-message`).

        Raises: `ValueError` for an address that cannot be one.
        """
        self.target = Target(url, token, user_id, headers or {}, ssl)
        self._heartbeat, self._reconnect, self._max_message = heartbeat, reconnect, max_message
        self._core = Core(secrets.token_hex(6))
        self._calls: dict[Request, Call] = {}
        self._link: Link | None = None
        self._closed = False

    async def connect(self) -> None:
        """Connect now, and not with the first request.

        Raises: `ConnectionLost`, `LoginRefused`, or `RequestRefused` if the server has too many connections.
        """
        await (await self._linked()).connect()

    def session(
        self,
        name: str | None = None,
        *,
        image: str | None = None,
        kernel: str | None = None,
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
        egress: str | None = None,
        linger: float | None = None,
        keep_while_running: bool = True,
    ) -> AsyncSession:
        """Return a session. It is opened by its first request.

        Args:
            name: Its `sessionId`. Without a name it gets a random one, and is closed, with its files, at the end of
                `async with`. A session with a name is only left.
            image: An image that the server allows.
            kernel: The name of a kernel of the image.
            env: Environment variables.
            limits: `memory`, `cpus`, `pids`, `disk`; at most what the server grants.
            egress: `packages`, `open` or `none`.
            linger: Seconds that it lives on without a connection. Default: 180, or the server's own if that is less.
            keep_while_running: Whether it stays open while something runs in it.
        """
        options = {"image": image, "kernel": kernel, "env": env, "limits": limits, "egress": egress}
        frame: Frame = {key: value for key, value in options.items() if value is not None}
        frame.update(linger=LINGER if linger is None else linger, keepWhileRunning=keep_while_running)
        size(frame)  # what cannot be sent is refused here, and not when the session is opened
        session_id = name or f"tmp-{secrets.token_hex(8)}"
        use = functools.partial(self._core.use, session_id, frame, own_linger=linger is None)
        return AsyncSession(self, session_id, use, temporary=name is None)

    async def sessions(self) -> list[dict[str, Any]]:
        """List the user's sessions that are open or have files, as `list_sessions_reply` has them."""
        return list((await self.ask({"type": "list_sessions"}, Kind.QUESTION))["sessions"])

    async def close(self) -> None:
        """End the connection. Whoever waits for an answer gets `Closed`; what runs goes on. Idempotent."""
        self._closed = True
        link, self._link = self._link, None
        self._deliver(Settled(call.request, _closed()) for call in list(self._calls.values()))
        if link is not None:
            await link.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._link is not None and self._link.usable:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target.url}>"

    # -- for sessions ---------------------------------------------------------------

    async def start(self, frame: Frame, kind: Kind) -> Call:
        """Send a request, when there is a connection and its session is open; return the call."""
        self._check(frame)
        link = await self._linked()
        await link.connect()
        request = self._core.submit(frame, kind)
        call = self._calls[request] = Call(request)
        link.flush()
        return call

    async def ask(self, frame: Frame, kind: Kind) -> Frame:
        """Send a request and return its answer. Cancelling gives up waiting; what was sent is carried out."""
        call = await self.start(frame, kind)
        try:
            return await call.answer()
        finally:
            self.abandon(call)

    def notify(self, call: Call, frame: Frame) -> bool:
        """Send a message without answer on behalf of a call; return False if there is no connection."""
        self._check(frame)
        sent = self._core.notify(call.request, frame)
        self._flush()
        return sent

    def reply(self, call: Call, input_id: str, value: str) -> None:
        """Answer a question of a run."""
        self._check({"type": "input_reply", "value": value})
        self._core.answer_question(call.request, input_id, value)
        self._flush()

    def abandon(self, call: Call) -> None:
        """Wait for a call no more. A run that has no answer yet is interrupted, or withdrawn if it waits."""
        if self._calls.pop(call.request, None) is not None and not call.settled:
            self._core.abandon(call.request)
            self._flush()

    def leave(self, call: Call) -> None:
        """Wait for a call no more, and let it run."""
        self._calls.pop(call.request, None)

    def leave_session(self, session_id: str) -> None:
        """Do not come back to a session after a lost connection."""
        self._core.leave(session_id)

    async def http(self) -> aiohttp.ClientSession:
        """Return the session for HTTP."""
        return (await self._linked()).http

    async def _linked(self) -> Link:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise _closed()
        if self._link is not None and self._link.loop is not loop:
            if not self._link.loop.is_closed():
                raise RuntimeError(f"{self!r} is used in another event loop: make a client for each, or use Client")
            self._link = None  # its connection ended with its loop
        if self._link is None or not self._link.usable:
            timing = {"heartbeat": self._heartbeat, "reconnect": self._reconnect}
            self._link = Link(self.target, self._core, self._deliver, **timing)  # type: ignore[arg-type]
        return self._link

    def _check(self, frame: Frame) -> None:
        """Refuse what the server could not read, or would end the connection for."""
        if self._closed:
            raise _closed()
        if (found := size(frame) + 100) > self._max_message:  # with the ids
            raise RequestRefused(
                f"The {frame['type']} is too large",
                f"it has {found:,} bytes, and the server takes {self._max_message:,} (max_message=). Save large data as"
                " a file, which may be of any size",
                code="frame_too_large",
                retryable=False,
                request=frame["type"],
            )

    def _deliver(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            call = self._calls.get(effect.request)
            if call is None:
                continue
            match effect:
                case Settled(_, outcome):
                    call.settle(outcome)
                case Happened(_, frame):
                    call.put(frame)

    def _flush(self) -> None:
        if self._link is not None:
            self._link.flush()


class AsyncSession:
    """One session: an interpreter, a shell, terminals and files. Use it from any number of tasks.

    Requests raise `RequestRefused`, `ConnectionLost`, `OutcomeUnknown`, `SessionLost`, `LoginRefused` and `Closed`. The
    reference says when.
    """

    def __init__(
        self, client: AsyncClient, session_id: str, use: Callable[[], None], *, temporary: bool = False
    ) -> None:
        """`use` lets the session be opened with the options of this object, when it is opened next."""
        self._client = client
        self.session_id = session_id
        self._use = use
        self._temporary = temporary
        self.target = client.target
        self.files = AsyncFiles(self)

    async def run(
        self,
        code: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the server's
        wait: float | None = None,
        filename: str = "main.py",
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        check: bool = False,
        silent: bool = False,
        store_history: bool = True,
    ) -> Result:
        """Run code as a cell, behind the cells that were sent before, and return its result.

        Args:
            code: The code.
            timeout: Seconds that it may run: the server ends it then, with the cause `timeout`.
            wait: Seconds to wait for the result, from this call on; None: without limit.
            filename: The name that tracebacks show.
            on_output: Called with each `Output` as it comes.
            on_input: Called with the prompt of `input()` and whether the answer is secret; returns the answer. Without
                it, `input()` fails.
            check: Raise an error if the code failed.
            silent: Run it without output, count and history.
            store_history: Whether it counts as `In[n]`.

        Returns: The result, also of code that failed.

        Raises: `WaitTimeout` after `wait`: the cell goes on. With `check`, `CodeError`, `RunTimeout` or `RunEnded`.

        Cancelling it interrupts the cell; one that waits is withdrawn and never runs. So does an exception in a
        callback.
        """
        frame = {
            "type": "execute_code",
            "code": code,
            "filename": filename,
            "stream": on_output is not None,
            "allowStdin": on_input is not None,
            "silent": silent,
            "storeHistory": store_history,
        }
        result = Result(await self._run(frame, timeout, wait, on_output, on_input))
        return result.check() if check else result

    async def sh(
        self,
        command: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the server's
        wait: float | None = None,
        on_output: OnOutput | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Run a command in the session's shell, behind the commands that were sent before.

        Arguments and errors are those of `run`. With `check`, an exit code other than 0 raises `CommandFailed`.
        """
        frame = {"type": "terminal_command", "command": command, "stream": on_output is not None}
        result = CommandResult(await self._run(frame, timeout, wait, on_output, None))
        return result.check() if check else result

    async def stream(
        self,
        code: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the server's
        filename: str = "main.py",
        on_input: OnInput | None = None,
    ) -> AsyncGenerator[Event | Result, None]:
        """Run code as a cell, and yield its events as they come; the last one is its `Result`.

        Leaving the loop early interrupts the cell when the iterator is closed (`aclose`).
        """
        frame = {
            "type": "execute_code",
            "code": code,
            "filename": filename,
            "stream": True,
            "allowStdin": on_input is not None,
        }
        call = await self._start(_timed(frame, timeout), Kind.RUN)
        asking = _Asking(self._client, call, on_input)
        try:
            while (happened := await call.next()) is not None:
                if happened["type"] == "input_request":
                    asking.begin(happened)
                elif (event := event_of(happened)) is not None:
                    yield event
            asking.end()
            yield Result(await call.answer())
        finally:
            asking.end()
            self._client.abandon(call)

    async def interrupt(
        self, *, run_id: str | None = None, terminal: bool = False, queued: bool = False, escalate: bool = True
    ) -> str:
        """Interrupt the cell that runs, whoever sent it, and return the last step that was needed.

        Args:
            run_id: Interrupt this run only, and nothing if it has ended: the `run_id` of its `Started`.
            terminal: Interrupt the running command of `sh` instead.
            queued: Also end the cells or commands that wait.
            escalate: Whether a cell that does not end is ended. False: it is only interrupted, as by Ctrl-C.
        """
        frame = {"type": "interrupt", "target": "terminal" if terminal else "execution", "queued": queued}
        if not escalate:
            frame["escalate"] = False
        answer = await self.request(frame if run_id is None else {**frame, "runId": run_id}, Kind.CHANGE)
        return str(answer["step"])

    async def restart(self) -> None:
        """Start a new interpreter. Cells that run or wait end with the cause `kernel_restarted`."""
        await self.request({"type": "restart_kernel"}, Kind.CHANGE)

    async def complete(self, code: str, cursor: int | None = None) -> list[str]:
        """Return what could stand at the cursor, which is at the end by default."""
        cursor = len(code) if cursor is None else cursor
        answer = await self.request({"type": "complete", "code": code, "cursor": cursor}, Kind.QUESTION)
        return list(answer["matches"])

    async def inspect(self, code: str, cursor: int | None = None) -> str:
        """Return what is known of the name at the cursor, as plain text; empty if it is unknown."""
        cursor = len(code) if cursor is None else cursor
        answer = await self.request({"type": "inspect", "code": code, "cursor": cursor}, Kind.QUESTION)
        return str(answer["text"])

    async def info(self) -> dict[str, Any]:
        """Return the `session_info_reply`. It does not open the session."""
        return await self.request({"type": "session_info"}, Kind.QUESTION)

    async def terminal(self, *, rows: int = 24, cols: int = 80, name: str | None = None) -> AsyncTerminal:
        """Open an interactive terminal, or attach to the one of this name, and return it when it is open."""
        terminal_id = name or f"t-{secrets.token_hex(6)}"
        frame = {"type": "open_terminal", "rows": rows, "cols": cols, "terminalId": terminal_id}
        call = await self._start(frame, Kind.TERMINAL)
        try:
            return await AsyncTerminal(self, call, terminal_id).opened()
        except BaseException:
            self.abandon(call)
            raise

    async def close(self, *, delete_files: bool = False) -> None:
        """Close the session for everybody: what runs ends. With `delete_files`, its files are deleted."""
        await self.request({"type": "close_session", "deleteFiles": delete_files}, Kind.CHANGE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            if self._temporary:
                with contextlib.suppress(Closed):  # the client was closed first
                    await self.close(delete_files=True)
        finally:
            self._client.leave_session(self.session_id)

    # -- for files and terminals ------------------------------------------------------

    async def request(self, frame: Frame, kind: Kind) -> Frame:
        """Send a request of this session, and return its answer."""
        self._use()
        return await self._client.ask({**frame, "sessionId": self.session_id}, kind)

    def notify(self, call: Call, frame: Frame) -> bool:
        """Send a message of this session that has no answer."""
        return self._client.notify(call, {**frame, "sessionId": self.session_id})

    def abandon(self, call: Call) -> None:
        """Wait for a call no more."""
        self._client.abandon(call)

    async def http(self) -> aiohttp.ClientSession:
        """Return the session for HTTP."""
        return await self._client.http()

    async def _start(self, frame: Frame, kind: Kind) -> Call:
        self._use()
        return await self._client.start({**frame, "sessionId": self.session_id}, kind)

    async def _run(
        self,
        frame: Frame,
        timeout: float | None,  # noqa: ASYNC109 - the server's
        wait: float | None,
        on_output: OnOutput | None,
        on_input: OnInput | None,
    ) -> Frame:
        call = asking = None
        try:
            async with asyncio.timeout(wait) as waiting:
                call = await self._start(_timed(frame, timeout), Kind.RUN)
                asking = _Asking(self._client, call, on_input)
                while (happened := await call.next()) is not None:
                    if happened["type"] == "input_request":
                        asking.begin(happened)
                    elif on_output is not None and isinstance(event := event_of(happened), Output):
                        await awaited(on_output(event))
                return await call.answer()
        except TimeoutError:
            if not waiting.expired():
                raise
            if call is None or not call.request.sent:
                raise WaitTimeout("The run did not begin in time", f"it was not sent within {wait:g} s") from None
            self._client.leave(call)
            raise WaitTimeout(
                "The result did not come in time",
                f"it was waited for {wait:g} s. The run goes on: interrupt() ends it, and timeout= limits a run",
            ) from None
        finally:
            if asking is not None:
                asking.end()
            if call is not None:
                self._client.abandon(call)


class _Asking:
    """Asks the user what a run asks, beside the loop that shows what the run does: a run need not wait for its answer.

    Only the latest question is being asked. An error of `on_input` ends the loop.
    """

    def __init__(self, client: AsyncClient, call: Call, on_input: OnInput | None) -> None:
        self._client = client
        self._call = call
        self._on_input = on_input
        self._task: asyncio.Task[None] | None = None

    def begin(self, question: Frame) -> None:
        """Ask an `input_request`, instead of the one before."""
        self.end()
        if self._on_input is not None:
            self._task = asyncio.get_running_loop().create_task(self._ask(question, self._on_input))

    def end(self) -> None:
        """Ask no more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _ask(self, question: Frame, on_input: OnInput) -> None:
        try:
            line = str(await awaited(on_input(question["prompt"], question["password"])))
            self._client.reply(self._call, question["inputId"], line)
        except BaseException as exc:  # noqa: BLE001 - the loop raises it, unless `end` came before
            if self._task is asyncio.current_task():
                self._call.fail(exc)


def _timed(frame: Frame, timeout: float | None) -> Frame:
    return frame if timeout is None else {**frame, "timeout": timeout}


def _closed() -> Closed:
    return Closed("The client is closed", "what was sent may still run; make another client")
