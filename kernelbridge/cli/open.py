"""`kernelbridge open`: the page of a server, in a browser."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import webbrowser
from http import HTTPStatus
from urllib.parse import urlencode, urlsplit

import click

from kernelbridge.cli import screen
from kernelbridge.cli.completion import own_sessions
from kernelbridge.cli.own_server import USUAL
from kernelbridge.errors import ConfigError, KernelBridgeError

PATIENCE = 10.0
"""Seconds that the server may take to answer."""
BROWSER_PATIENCE = 30.0
"""Seconds that a browser may take to start."""
_EXAMPLES = """\b
Examples:
    kernelbridge open
    kernelbridge open work
    kernelbridge open --url https://kernels.example --print
"""


@click.command("open", epilog=_EXAMPLES, short_help="Open the page of a server in a browser.")
@click.argument("session", required=False, shell_complete=own_sessions)
@click.option("--print", "only_print", is_flag=True, help="Only print the address, with the token if there is one.")
@click.option("--url", envvar="KERNELBRIDGE_URL", help="The server.  [variable: KERNELBRIDGE_URL]")
@click.option(
    "--token",
    envvar="KERNELBRIDGE_TOKEN",
    help="The token to log in with. Other users of the machine see options: prefer KERNELBRIDGE_TOKEN.",
)
def open_page(*, session: str | None, only_print: bool, url: str | None, token: str | None) -> int:
    """Open the page of a server in a browser, at SESSION if it is named.

    The page logs in with the token, which is in the part of the address that browsers do not send. It is there only if
    the server is on this machine or has TLS.
    """
    address = page_address(url or USUAL)
    asyncio.run(_check_page(address))
    # Without a named server, any user of this machine may be the one that listens.
    given = token if url is not None and is_private(address) else None
    if token is not None and given is None:
        why = "no server is named with --url" if url is None else "it would be sent without TLS"
        screen.say(f"The token is not in the address, because {why}: enter it in the page.")
    plain = with_fragment(address, {"session": session})
    whole = with_fragment(address, {"token": given, "session": session})
    if only_print:
        click.echo(whole)
        return 0
    click.echo(plain)
    _start_browser(whole, has_token=given is not None)
    return 0


def _start_browser(address: str, *, has_token: bool) -> None:
    """Let a browser open the address. A token is not in its command line, which other users can read."""
    if has_token:
        from kernelbridge.cli.handover import handover  # noqa: PLC0415 - not for --help

        users = frozenset({os.getuid(), 0})  # root can read everything anyway, and may carry connections of others
        with handover(address, users) as given:
            started = webbrowser.open(given.url)
            if started and not given.done.wait(BROWSER_PATIENCE):
                screen.say("The browser did not ask for the address. --print prints it with the token.")
    else:
        started = webbrowser.open(address)
    if not started:
        screen.say("No browser could be started. Open the address yourself; --print prints it with the token.")


def page_address(url: str) -> str:
    """Return the address of the page of the server at `url`. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is checked when it is read
    except ValueError as exc:
        raise ConfigError("There is no server at this address", f"{exc} (--url, KERNELBRIDGE_URL)") from exc
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigError(
            "There is no server at this address",
            f"{url!r} is none: expected ws://HOST:PORT or https://HOST (--url, KERNELBRIDGE_URL)",
        )
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/ws')}/"


def is_private(address: str) -> bool:
    """Whether nobody on the way can read what the page sends: it stays on this machine, or has TLS."""
    parts = urlsplit(address)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def with_fragment(address: str, values: dict[str, str | None]) -> str:
    """Return the address with what the page reads of it."""
    fragment = urlencode({name: value for name, value in values.items() if value is not None})
    return f"{address}#{fragment}" if fragment else address


async def _check_page(address: str) -> None:
    import aiohttp  # noqa: PLC0415 - not for --help

    try:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(address, allow_redirects=False) as answer:
            status, kind = answer.status, answer.content_type
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
        reason = f"no answer within {PATIENCE:g} s" if isinstance(exc, TimeoutError) else str(exc)
        raise KernelBridgeError(
            f"No server answers at {address}",
            f"{reason}. Start one with `kernelbridge serve`, or name another one with --url or KERNELBRIDGE_URL",
        ) from exc
    if status == HTTPStatus.NOT_FOUND or (status == HTTPStatus.OK and kind != "text/html"):
        raise KernelBridgeError(
            f"The server at {address} has no page",
            "it is of an earlier version, or something else answers there: upgrade the server, or use"
            " `kernelbridge console` or `kernelbridge shell`",
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise KernelBridgeError(f"The server at {address} does not answer", f"HTTP status {status}; try again later")
