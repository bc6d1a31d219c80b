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

from kernelbridge import log
from kernelbridge.cli import screen
from kernelbridge.cli.left_session import Left, LeftSession
from kernelbridge.cli.own_server import Own, found_server
from kernelbridge.errors import ConfigError, KernelBridgeError
from kernelbridge.settings.quantities import format_duration

if TYPE_CHECKING:
    from kernelbridge import AsyncClient, AsyncSession

OUR_FAILURE = 125
"""Exit code when the command could not do what it is for, as with `docker run`."""
BY_SIGNAL = 128
"""Added to the number of a signal that ended what runs."""
KEPT = 3600.0
"""Seconds that a session stays open that is to be kept, or the server's limit if that is less."""


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


no_isolation_option = click.option(
    "--no-isolation", is_flag=True, help="Without a server: run the code with all your rights."
)
"""The option of a command that runs code; `connected` gets it."""


def has_terminal() -> bool:
    """Return whether a person can type and read here; say what to use instead if not."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return True
    reason = "standard input and output must be one; for a program without a terminal, use `kernelbridge run`"
    screen.write_error(screen.errors(), "There is no terminal", reason)
    return False


WAITING = "Waiting for the session …"
"""Said while a session starts, or something else runs in it."""


class Opened:
    """A session that a command uses. Set `keep` to False, and it is ended when the command leaves it."""

    def __init__(self, session: AsyncSession, *, keep: bool, linger: float | None) -> None:
        self.session = session
        self.keep = keep
        self.linger = linger
        """Seconds that it stays open after the command, if that is known."""

    @property
    def stays(self) -> str:
        """For how long it stays open, for people."""
        return f"for {format_duration(self.linger or 0.0)}"


class Connected(NamedTuple):
    """A client with its connection."""

    client: AsyncClient
    to_own_server: bool
    """Whether the server was started for the command, and ends with it."""
    user: str | None

    @asynccontextmanager
    async def session(
        self, name: str | None, image: str | None, *, keep: bool, takes_up: bool = False
    ) -> AsyncIterator[Opened]:
        """Open a session. If it is not kept, it ends with the context: one without a name with its files.

        One that is open already stays open, as long as it was to. With `takes_up`, it ends nevertheless if it is open
        only because an earlier command of this kind had opened it, and was left.
        """
        session_id = name or self.client.session().session_id
        info = await self.client.session(session_id).info() if keep or name is not None else {}
        notes = LeftSession(self.client.target.url, self.user, session_id)
        was_open = "linger" in info
        left = Left(delete_files=name is None)
        ends = not was_open
        if was_open and takes_up and (noted := notes.read(info["created"])) is not None:
            left, ends = noted, True
        elif keep:
            notes.forget()  # somebody wants to have it from now on
        linger = info.get("linger")
        if keep:
            linger = max(min(KEPT, info.get("maxLinger", KEPT)), linger or 0.0)
        session = self.client.session(
            session_id, image=image, linger=linger, keep_while_running=keep or info.get("keepWhileRunning", True)
        )
        opened = Opened(session, keep=keep, linger=linger)
        try:
            yield opened
            if takes_up and ends and opened.keep and not self.to_own_server:
                with contextlib.suppress(KernelBridgeError):  # then it stays as long as it was to
                    notes.write((await session.info())["created"], delete_files=left.delete_files)
        finally:
            if ends and not opened.keep:
                await _end(session, delete_files=left.delete_files)
                notes.forget()


def tell_stay(there: Connected, opened: Opened) -> None:
    """Say how long a session stays open that is to be kept."""
    if opened.keep and there.to_own_server:
        screen.say("The session ends now nevertheless: the server was started for this command.")
    elif opened.keep:
        screen.say(f"The session {opened.session.session_id} stays open {opened.stays}.")


async def _end(session: AsyncSession, *, delete_files: bool) -> None:
    """End a session, if the server answers in time: who has pressed Ctrl-C waits."""
    with contextlib.suppress(TimeoutError, KernelBridgeError):
        async with asyncio.timeout(_FAREWELL):
            await session.close(delete_files=delete_files)


@asynccontextmanager
async def connected(server: Server, *, isolation: bool = True, keeps_files: bool) -> AsyncIterator[Connected]:
    """Connect to the server, or to one of the command's own, which has `isolation` and may keep files.

    Raises `click.UsageError` for a server elsewhere without isolation: only that server says how its code is isolated.
    """
    if server.url is not None and not isolation:
        raise click.UsageError("--no-isolation is for a server of the command's own: leave --url out")
    log.configure("console", "error")
    own = Own(server.image, isolation=isolation, keeps_files=keeps_files)
    async with found_server(server.url, server.token, own, screen.say) as found:
        from kernelbridge import AsyncClient, LoginRefused  # noqa: PLC0415 - not for --help

        try:
            made = AsyncClient(found.url, token=found.token, user_id=server.user)
        except ValueError as exc:
            raise ConfigError("There is no server at this address", f"{exc} (--url, KERNELBRIDGE_URL)") from exc
        try:
            async with screen.waiting(f"Connecting to {found.url} …"):
                await made.connect()
            async with made as client:
                yield Connected(client, found.is_own, server.user)
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
