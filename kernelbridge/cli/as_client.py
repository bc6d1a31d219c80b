"""What commands share that are clients of a server: options, the connection, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kernelbridge.cli import screen
from kernelbridge.cli.own_server import Own, found_server
from kernelbridge.errors import ConfigError, KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge import AsyncClient, AsyncSession

OUR_FAILURE = 125
"""Exit code when the command could not do what it is for, as with `docker run`."""
BY_SIGNAL = 128
"""Added to the number of a signal that ended what runs."""
KEPT = 3600.0
"""Seconds that a session stays open that is to be kept: the default of the server's limit."""


_FAREWELL = 5.0
"""Seconds in which a session is ended when the command leaves it."""


class Server(NamedTuple):
    """Which server is used, by whom, and which image a new session has."""

    image: str | None
    url: str | None
    user: str | None
    token: str | None


def as_client(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of a client to a command, which gets them as `server`."""

    @wraps(command)
    def call(**params: Any) -> int:
        return command(server=Server(*map(params.pop, Server._fields)), **params)

    image = click.option("--image", help="The image of the session's sandbox, if the command opens it.")
    url = click.option("--url", envvar="KERNELBRIDGE_URL", help="The server.  [variable: KERNELBRIDGE_URL]")
    user = click.option("--user", metavar="NAME", help="The user, for a server without authentication.")
    token = click.option(
        "--token",
        envvar="KERNELBRIDGE_TOKEN",
        help="The token to log in with. Other users of the machine see options: prefer KERNELBRIDGE_TOKEN.",
    )
    return image(url(user(token(call))))


class Opened:
    """A session that a command uses. Set `keep` to False, and it is ended when the command leaves it."""

    def __init__(self, session: AsyncSession, *, keep: bool) -> None:
        self.session = session
        self.keep = keep


class Connected(NamedTuple):
    """A client with its connection."""

    client: AsyncClient
    to_own_server: bool
    """Whether the server was started for the command, and ends with it."""

    @asynccontextmanager
    async def session(self, name: str | None, image: str | None, *, keep: bool) -> AsyncIterator[Opened]:
        """Open a session. If it is not kept, it ends with the context: one without a name with its files.

        One that is open already stays open, as long as it was to.
        """
        info = {} if name is None else await self.client.session(name).info()
        was_open = "linger" in info
        linger = info.get("linger")
        if keep:
            linger = max(KEPT, linger or 0.0)
        session = self.client.session(
            name, image=image, linger=linger, keep_while_running=keep or info.get("keepWhileRunning", True)
        )
        opened = Opened(session, keep=keep)
        try:
            yield opened
        finally:
            if not opened.keep and not was_open:
                await _end(session, delete_files=name is None)


async def _end(session: AsyncSession, *, delete_files: bool) -> None:
    """End a session, if the server answers in time: who has pressed Ctrl-C waits."""
    with contextlib.suppress(TimeoutError, KernelBridgeError):
        async with asyncio.timeout(_FAREWELL):
            await session.close(delete_files=delete_files)


@asynccontextmanager
async def connected(server: Server, *, isolation: bool = True, keeps_files: bool) -> AsyncIterator[Connected]:
    """Connect to the server, or to one of the command's own, which has `isolation` and may keep files."""
    own = Own(server.image, isolation=isolation, keeps_files=keeps_files)
    async with found_server(server.url, server.token, own, screen.say) as found:
        from kernelbridge import AsyncClient, LoginRefused  # noqa: PLC0415 - not for --help

        try:
            made = AsyncClient(found.url, token=found.token, user_id=server.user)
        except ValueError as exc:
            raise ConfigError("There is no server at this address", f"{exc} (--url, KERNELBRIDGE_URL)") from exc
        try:
            async with made as client:
                yield Connected(client, found.is_own)
        except LoginRefused as exc:
            reason = f"{exc.reason}; put the token into KERNELBRIDGE_TOKEN, and the address into KERNELBRIDGE_URL"
            raise KernelBridgeError(exc.message, reason) from exc


class EndedBySignal(BaseException):
    """A signal ends the command. No `Exception`: nothing on its way should take it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = BY_SIGNAL + signum


class Signals:
    """What SIGINT does while a command runs."""

    def __init__(self) -> None:
        self.on_interrupt: Callable[[], bool] = lambda: False
        """Called for SIGINT; returns whether that was its use. Otherwise the command ends."""


def carry_out(work: Callable[[Signals], Coroutine[Any, Any, int]]) -> int:
    """Run what a command does; return its exit code, or the one of its failure, which is shown.

    SIGTERM and SIGHUP cancel it, and so does SIGINT where `Signals` has no use for it.
    """
    try:
        with asyncio.Runner() as runner:
            return runner.run(_ended_by_signals(work))
    except ConfigError:
        raise
    except KernelBridgeError as exc:
        screen.write_error(screen.errors(), exc.message, exc.reason)
        return OUR_FAILURE
    except EndedBySignal as exc:
        return exc.exit_code
    except BrokenPipeError:
        # Python would write the rest at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BY_SIGNAL + signal.SIGPIPE


async def _ended_by_signals(work: Callable[[Signals], Coroutine[Any, Any, int]]) -> int:
    signals = Signals()
    task, loop = asyncio.ensure_future(work(signals)), asyncio.get_running_loop()
    came: list[int] = []

    def end(signum: int) -> None:
        if signum != signal.SIGINT or not signals.on_interrupt():
            came.append(signum)
            task.cancel()

    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(signum, end, signum)
    try:
        return await task
    except asyncio.CancelledError:
        if came:
            raise EndedBySignal(came[0]) from None
        raise
