"""What commands share that are clients of a server: options, the connection, signals, exit codes."""

from __future__ import annotations

import asyncio
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
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge import AsyncClient, AsyncSession

OUR_FAILURE = 125
"""Exit code when the command could not do what it is for, as with `docker run`."""
BY_SIGNAL = 128
"""Added to the number of a signal that ended what runs."""
KEPT = 3600.0
"""Seconds that a session stays open that is to be kept: the default of the server's limit."""


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


class Connected(NamedTuple):
    """A client with its connection."""

    client: AsyncClient
    to_own_server: bool
    """Whether the server was started for the command, and ends with it."""

    async def session(self, name: str | None, image: str | None, *, keep: bool) -> AsyncSession:
        """Return a session. Without `keep`, one that is open already stays open as long as it was to."""
        linger, keep_while_running = KEPT if keep else 0.0, keep
        if name is not None and not keep:
            info = await self.client.session(name).info()
            linger, keep_while_running = info.get("linger", 0.0), info.get("keepWhileRunning", False)
        return self.client.session(name, image=image, linger=linger, keep_while_running=keep_while_running)


@asynccontextmanager
async def connected(server: Server, *, isolation: bool = True, keeps_files: bool) -> AsyncIterator[Connected]:
    """Connect to the server, or to one of the command's own, which has `isolation` and may keep files."""
    own = Own(server.image, isolation=isolation, keeps_files=keeps_files)
    async with found_server(server.url, server.token, own, screen.errors().print) as found:
        from kernelbridge import AsyncClient  # noqa: PLC0415 - not for --help

        async with AsyncClient(found.url, token=found.token, user_id=server.user) as client:
            yield Connected(client, found.is_own)


class EndedBySignal(BaseException):
    """A signal ends the command. No `Exception`: nothing on its way should take it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = BY_SIGNAL + signum


def carry_out(work: Coroutine[Any, Any, int]) -> int:
    """Run what a command does; return its exit code, or the one of its failure, which is shown.

    SIGINT and SIGTERM cancel it, unless it handles them itself.
    """
    try:
        with asyncio.Runner() as runner:
            return runner.run(_ended_by_signals(work))
    except KernelBridgeError as exc:
        screen.write_error(screen.errors(), exc.message, exc.reason)
        return OUR_FAILURE
    except EndedBySignal as exc:
        return exc.exit_code
    except BrokenPipeError:
        # Python would write the rest at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BY_SIGNAL + signal.SIGPIPE


async def _ended_by_signals(work: Coroutine[Any, Any, int]) -> int:
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    came: list[int] = []

    def end(signum: int) -> None:
        came.append(signum)
        task.cancel()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, end, signum)
    try:
        return await task
    except asyncio.CancelledError:
        if came:
            raise EndedBySignal(came[0]) from None
        raise
