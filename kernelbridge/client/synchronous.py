"""The synchronous client: the asynchronous one, on an event loop in a thread.

It may be called from any number of threads, also inside a running event loop (a notebook, a test), which then waits.
Callbacks run in the thread that called.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import ssl as tls
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from kernelbridge.client.asynchronous import AsyncClient, AsyncSession, OnInput, OnOutput
from kernelbridge.client.connection import Token
from kernelbridge.client.errors import Closed
from kernelbridge.client.events import Event
from kernelbridge.client.files import AsyncFiles, Content, Listing, Progress, Saved
from kernelbridge.client.loop_thread import Relay, keep, loop_thread
from kernelbridge.client.results import CommandResult, Result
from kernelbridge.client.terminal import AsyncTerminal

T = TypeVar("T")

_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A connection to a server, for one user. Use it in `with`, from any number of threads.

    After a fork, the child connects by itself. Its arguments are those of `AsyncClient`.
    """

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
        def make() -> AsyncClient:
            return AsyncClient(
                url,
                token=token,
                user_id=user_id,
                headers=headers,
                ssl=ssl,
                reconnect=reconnect,
                heartbeat=heartbeat,
                max_message=max_message,
            )

        self.url = url
        self._make = make
        self._pid = os.getpid()
        self._client = make()
        self._used = self._closed = False

    def connect(self) -> None:
        """Connect now, and not with the first request."""
        self._call(lambda _: self._asynchronous().connect())

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
    ) -> Session:
        """Return a session; see `AsyncClient.session`."""

        def make(client: AsyncClient) -> AsyncSession:
            return client.session(
                name,
                image=image,
                kernel=kernel,
                env=env,
                limits=limits,
                egress=egress,
                linger=linger,
                keep_while_running=keep_while_running,
            )

        return Session(self, make)

    def sessions(self) -> list[dict[str, Any]]:
        """List the user's sessions that are open or have files."""
        return self._call(lambda _: self._asynchronous().sessions())

    def close(self) -> None:
        """End the connection. Threads that wait for an answer get `Closed`; what runs goes on. Idempotent."""
        self._closed = True
        _open_clients.discard(self)
        if self._used and self._pid == os.getpid():
            loop_thread().call(lambda _: self._client.close())

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._used and not self._closed and self._pid == os.getpid():
            _warn(self)
            client = self._client
            loop_thread().later(client.close)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def _asynchronous(self) -> AsyncClient:
        """Return the client of this process."""
        if self._closed:
            raise Closed("The client is closed", "make another client")
        if self._pid != os.getpid():
            keep(self._client)
            self._client, self._pid = self._make(), os.getpid()
            _open_clients.clear()
        self._used = True
        _open_clients.add(self)
        return self._client

    def _call(self, make: Callable[[Relay], Coroutine[Any, Any, T]]) -> T:
        return loop_thread().call(make)


class Session:
    """One session: an interpreter, a shell, terminals and files. Use it from any number of threads.

    Its methods do and raise what those of `AsyncSession` do. Ctrl-C interrupts the run that the thread waits for, and
    raises KeyboardInterrupt.
    """

    def __init__(self, client: Client, make: Callable[[AsyncClient], AsyncSession]) -> None:
        self._client = client
        self._make = make
        self._made = client._pid, make(client._client)  # noqa: SLF001 - now, so that all threads have the same one
        self.files = Files(self)

    @property
    def session_id(self) -> str:
        """The `sessionId`."""
        return self._asynchronous().session_id

    def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        wait: float | None = None,
        filename: str = "main.py",
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        check: bool = False,
        silent: bool = False,
        store_history: bool = True,
    ) -> Result:
        """Run code as a cell, and return its result; see `AsyncSession.run`."""
        return self.call(
            lambda session, relay: session.run(
                code,
                timeout=timeout,
                wait=wait,
                filename=filename,
                on_output=on_output and relay(on_output),
                on_input=on_input and relay(on_input),
                check=check,
                silent=silent,
                store_history=store_history,
            )
        )

    def sh(
        self,
        command: str,
        *,
        timeout: float | None = None,
        wait: float | None = None,
        on_output: OnOutput | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Run a command in the session's shell, and return its result; see `AsyncSession.sh`."""
        return self.call(
            lambda session, relay: session.sh(
                command, timeout=timeout, wait=wait, on_output=on_output and relay(on_output), check=check
            )
        )

    def stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        filename: str = "main.py",
        on_input: OnInput | None = None,
    ) -> Iterator[Event | Result]:
        """Run code as a cell, and yield its events as they come; the last one is its `Result`.

        Leaving the loop early interrupts the cell.
        """
        relays: list[Relay] = []
        waits = asyncio.Event()  # set while a thread waits for an event: only then it can answer

        async def answer(prompt: str, secret: bool) -> Any:  # noqa: FBT001 - the callback's signature
            await waits.wait()
            return await relays[-1](on_input)(prompt, secret) if on_input is not None else None

        asked = None if on_input is None else answer
        events = self._asynchronous().stream(code, timeout=timeout, filename=filename, on_input=asked)

        async def step(relay: Relay) -> Event | Result | None:
            relays[:] = [relay]  # questions are answered in the thread that takes this event
            waits.set()
            try:
                return await anext(events, None)
            finally:
                waits.clear()

        try:
            while (event := self._client._call(step)) is not None:  # noqa: SLF001
                yield event
        finally:
            with contextlib.suppress(Closed):
                self.do(lambda _: events.aclose())

    def interrupt(
        self, *, run_id: str | None = None, terminal: bool = False, queued: bool = False, escalate: bool = True
    ) -> str:
        """Interrupt what runs, or one run; see `AsyncSession.interrupt`."""
        return self.do(
            lambda session: session.interrupt(run_id=run_id, terminal=terminal, queued=queued, escalate=escalate)
        )

    def restart(self) -> None:
        """Start a new interpreter."""
        self.do(lambda session: session.restart())

    def complete(self, code: str, cursor: int | None = None) -> list[str]:
        """Return what could stand at the cursor, which is at the end by default."""
        return self.do(lambda session: session.complete(code, cursor))

    def inspect(self, code: str, cursor: int | None = None) -> str:
        """Return what is known of the name at the cursor, as plain text; empty if it is unknown."""
        return self.do(lambda session: session.inspect(code, cursor))

    def info(self) -> dict[str, Any]:
        """Return the `session_info_reply`. It does not open the session."""
        return self.do(lambda session: session.info())

    def terminal(self, *, rows: int = 24, cols: int = 80, name: str | None = None) -> Terminal:
        """Open an interactive terminal, or attach to the one of this name."""
        return Terminal(self, self.do(lambda session: session.terminal(rows=rows, cols=cols, name=name)))

    def close(self, *, delete_files: bool = False) -> None:
        """Close the session for everybody: what runs ends. With `delete_files`, its files are deleted."""
        self.do(lambda session: session.close(delete_files=delete_files))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(Closed):  # the client was closed first
            self.do(lambda session: session.__aexit__(kind, exc, at))

    def do(self, call: Callable[[AsyncSession], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of the asynchronous session, and return its result."""
        return self.call(lambda session, _: call(session))

    def call(self, call: Callable[[AsyncSession, Relay], Coroutine[Any, Any, T]]) -> T:
        """Do the same for one that has callbacks, which run in this thread."""
        return self._client._call(lambda relay: call(self._asynchronous(), relay))  # noqa: SLF001

    def _asynchronous(self) -> AsyncSession:
        """Return the session of this process."""
        client = self._client._asynchronous()  # noqa: SLF001
        if self._made[0] != os.getpid():
            keep(self._made)
            self._made = os.getpid(), self._make(client)
        return self._made[1]


class Files:
    """The files of one session; see `AsyncFiles`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, path: str) -> File:
        return File(self, path)

    def write(
        self,
        path: str,
        content: Content,
        *,
        if_match: str | None = None,
        create: bool = False,
        progress: Progress | None = None,
    ) -> Saved:
        """Save a file as a whole; see `AsyncFiles.write`."""
        return self._do(
            lambda files, relay: files.write(
                path, content, if_match=if_match, create=create, progress=progress and relay(progress)
            )
        )

    def read(self, path: str, *, progress: Progress | None = None) -> bytes:
        """Return the content of a file."""
        return self._do(lambda files, relay: files.read(path, progress=progress and relay(progress)))

    def upload(self, local: str | os.PathLike[str], path: str, *, progress: Progress | None = None) -> Saved:
        """Save a local file of any size under `path`."""
        return self._do(lambda files, relay: files.upload(local, path, progress=progress and relay(progress)))

    def download(self, path: str, local: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Save a file of any size under the local name `local`, as a whole or not at all."""
        self._do(lambda files, relay: files.download(path, local, progress=progress and relay(progress)))

    def list(self, path: str = "", *, recursive: bool = False, hidden: bool = False) -> Listing:
        """List a directory, with `recursive` also what is below; see `AsyncFiles.list`."""
        return self._do(lambda files, _: files.list(path, recursive=recursive, hidden=hidden))

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file, a link or an empty directory; with `recursive` a directory with everything in it."""
        self._do(lambda files, _: files.delete(path, recursive=recursive))

    def rename(self, path: str, new: str, *, overwrite: bool = False) -> None:
        """Rename a file or directory."""
        self._do(lambda files, _: files.rename(path, new, overwrite=overwrite))

    def make_directory(self, path: str) -> None:
        """Make a directory and its parents."""
        self._do(lambda files, _: files.make_directory(path))

    def _do(self, call: Callable[[AsyncFiles, Relay], Coroutine[Any, Any, T]]) -> T:
        return self._session.call(lambda session, relay: call(session.files, relay))


class File:
    """One file of a session."""

    def __init__(self, files: Files, path: str) -> None:
        self._files = files
        self.path = path

    def read_bytes(self) -> bytes:
        """Return its content."""
        return self._files.read(self.path)

    def read_text(self) -> str:
        """Return its content, which must be UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> Saved:
        """Replace it."""
        return self._files.write(self.path, content)

    def write_text(self, content: str) -> Saved:
        """Replace it, in UTF-8."""
        return self._files.write(self.path, content)

    def delete(self) -> None:
        """Delete it."""
        self._files.delete(self.path)


class Terminal:
    """A terminal that is open; see `AsyncTerminal`. Use it in `with`, which closes it."""

    def __init__(self, session: Session, terminal: AsyncTerminal) -> None:
        self._session = session
        self._terminal = terminal
        self.terminal_id = terminal.terminal_id

    @property
    def exit_code(self) -> int | None:
        """The exit code of its shell, when it has ended and the code is known."""
        return self._terminal.exit_code

    @property
    def left_out(self) -> int:
        """Bytes of output that are missing so far, because they came faster than they were read."""
        return self._terminal.left_out

    @property
    def cause(self) -> str | None:
        """Why it ended, when `read` has returned its end: `exited`, `closed`, `session_closed` and others."""
        return self._terminal.cause

    def read(self, *, wait: float | None = None) -> str:
        """Return the next output, or an empty string when the terminal has ended. Raises `WaitTimeout`."""
        return self._session.do(lambda _: self._terminal.read(wait=wait))

    def __iter__(self) -> Iterator[str]:
        while text := self.read():
            yield text

    def write(self, data: str) -> None:
        r"""Type into it: Enter is `\r`, Ctrl-C is `\x03`."""
        self._session.do(lambda _: self._terminal.write(data))

    def resize(self, rows: int, cols: int) -> None:
        """Set its size."""
        self._session.do(lambda _: self._terminal.resize(rows, cols))

    def close(self) -> None:
        """End it, and everything that runs in it. Idempotent."""
        self._session.do(lambda _: self._terminal.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _warn(client: Client) -> None:
    warnings.warn(f"{client!r} was not closed", ResourceWarning, stacklevel=2, source=client)


@atexit.register
def _close_all() -> None:
    """Close the clients that are left at the end of the interpreter."""
    for client in list(_open_clients):
        if client._pid == os.getpid():  # noqa: SLF001 - and not one of the parent's
            _warn(client)
            with contextlib.suppress(Exception):
                client.close()
