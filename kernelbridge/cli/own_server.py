"""Where a command finds a server: the one that it is told of, the one on this machine, or one of its own."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kernelbridge.settings.settings import EGRESS, OPTIONS, WORKSPACE, Settings, resolve
from kernelbridge.settings.sources import variable_name

USUAL = "ws://localhost:8001"
_LOOK = 2.0
"""Seconds that the usual server may take to say that it is there."""
_USER = "me"


@dataclass(frozen=True, slots=True)
class Found:
    """A server, and how to log in there."""

    url: str
    token: str | None = None
    is_own: bool = False
    """Whether it was started for the command, and ends with it."""


@dataclass(frozen=True, slots=True)
class Own:
    """What a server of the command's own should be like."""

    image: str | None = None
    """The image of its sandboxes, in Docker; without it they are isolated with bubblewrap."""
    isolation: bool = True
    keeps_files: bool = False
    """Whether the files of sessions go into the usual data directory; otherwise they are deleted."""


@asynccontextmanager
async def found_server(
    url: str | None, token: str | None, own: Own, say: Callable[[str], None]
) -> AsyncIterator[Found]:
    """Yield the server at `url`; without that, the usual one if it runs, or one that runs while the context is open.

    `say` gets lines for the user. Raises `KernelBridgeError` if a server of its own cannot start.
    """
    if url is not None:
        yield Found(url, token)
        return
    if own.isolation and await _runs(USUAL):
        # Without the token: any user of the machine can listen there, and it may be an administrator's.
        say(f"Using the server at {USUAL}.")
        yield Found(USUAL)
        return
    say(f"No server at {USUAL}: starting one for this command ({_described(own)}).")
    async with own_server(own, say) as found:
        yield found


@asynccontextmanager
async def own_server(own: Own, say: Callable[[str], None]) -> AsyncIterator[Found]:
    """Yield a server that runs while the context is open. Raises `KernelBridgeError` if it cannot start.

    It logs in this process: the command has set up the log before.
    """
    with tempfile.TemporaryDirectory(prefix="kernelbridge-") as directory:
        async with _server_in(Path(directory), own, say) as found:
            yield found


async def _runs(url: str) -> bool:
    """Whether a server of ours listens there."""
    import aiohttp  # noqa: PLC0415 - not for --help

    timeout = aiohttp.ClientTimeout(_LOOK)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"http{url[2:]}/healthz") as answer:
            found = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False
    return isinstance(found, dict) and "version" in found


@asynccontextmanager
async def _server_in(directory: Path, own: Own, say: Callable[[str], None]) -> AsyncIterator[Found]:
    from kernelbridge.identity.token_file import add_token  # noqa: PLC0415 - with a server elsewhere, none is loaded
    from kernelbridge.identity.tokens import new_token, token_line  # noqa: PLC0415
    from kernelbridge.server.app import running  # noqa: PLC0415

    token = new_token()
    tokens = directory / "tokens"
    await asyncio.to_thread(add_token, tokens, token_line(_USER, token))
    settings = _settings(own, directory, tokens)
    async with running(settings, on_progress=say) as report:
        yield Found(report.url, token, is_own=True)


def _settings(own: Own, directory: Path, tokens: Path) -> Settings:
    """Return the settings of such a server: limits and the network are as the environment says, and nothing else."""
    flags: dict[str, object] = {
        "host": "127.0.0.1",
        "port": "0",
        "auth": "token",
        "token_file": str(tokens),
        "runtime": "docker" if own.image else "local",
        "isolation": None if own.isolation else False,
        "image": own.image,
        "data_dir": None if own.keeps_files else str(directory / "data"),
    }
    own_variables = {variable_name(name) for name, option in OPTIONS.items() if option.group in {EGRESS, WORKSPACE}}
    own_variables |= {variable_name(name) for name in ("data_dir", "ca_bundle")}
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KERNELBRIDGE_") or name in own_variables
    }
    if not own.isolation:  # then they are of no use, and refused
        environ = {name: value for name, value in environ.items() if not name.startswith("KERNELBRIDGE_EGRESS")}
    return resolve(flags, environ)


def _described(own: Own) -> str:
    if own.image:
        return f"containers of {own.image}"
    return "isolated with bubblewrap" if own.isolation else "WITHOUT isolation: the code has all your rights"
