"""What commands print: the start-up screen, errors, rows of a table. Plain text where the output is not a terminal."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from kernelbridge import __version__

if TYPE_CHECKING:
    from kernelbridge.server.app import StartReport

LABEL_WIDTH = 12
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys, and what changes the direction of a line: text could look like something else."""
_LOGINS: Mapping[str, str] = MappingProxyType(
    {
        "token": "with a token of the token file",
        "proxy": "at the proxy, which names the user",
        "jwt": "with a JSON Web Token",
    }
)
EXAMPLE = '{"type":"execute_code","sessionId":"demo","code":"print(6*7)"}'


def output() -> Console:
    """Return the console on standard output."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def errors() -> Console:
    """Return the console on standard error."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)


def plain(text: str) -> str:
    """Replace what a terminal would obey: names and messages may come from a sandbox, or from a server."""
    return _CONTROLS.sub("\ufffd", text)


def plain_json(data: bytes) -> str:
    """Return JSON with all that a terminal would obey escaped; its values stay the same."""
    text = data.decode()
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def say(text: str) -> None:
    """Write a line on standard error."""
    errors().print(plain(text))


@asynccontextmanager
async def waiting(what: str, *, shown: bool = True, after: float = 1.0) -> AsyncIterator[None]:
    """Show what is waited for on a terminal's standard error, if it takes more than `after` seconds; then remove it."""
    console = errors()
    if not shown or not sys.stderr.isatty() or console.is_dumb_terminal:
        yield
        return
    status = console.status(Text(plain(what)))
    timer = asyncio.get_running_loop().call_later(after, status.start)
    try:
        yield
    finally:
        timer.cancel()
        status.stop()


def write_row(console: Console, label: str, text: str, style: str = "", *, width: int = LABEL_WIDTH) -> None:
    """Write `label` and, beside it, `text`. On a terminal, long text is wrapped in its column."""
    lines = [text]
    if console.is_terminal:
        room = max(20, console.width - width - 3)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        head = label if number == 0 else ""
        console.print(Text("  ") + Text(head.ljust(width), style=style or "bold") + Text(line))


def write_started(console: Console, report: StartReport) -> None:
    """Write the start-up screen."""
    console.print(Text(f"kernelbridge {__version__}", style="bold"))
    console.print()
    write_row(console, "Listening", report.url)
    write_row(console, "Runtime", f"{report.runtime.name}: {report.runtime.detail}")
    if report.image is not None:
        write_row(console, "Image", report.image)
    write_row(console, "Isolation", report.runtime.isolation)
    if report.network is not None:
        write_row(console, "Network", report.network)
    write_row(console, "Data", str(report.data_dir))
    if report.auth in _LOGINS:
        write_row(console, "Login", _LOGINS[report.auth])
    if report.metrics is not None:
        write_row(console, "Metrics", report.metrics)
    for warning in filter(None, (report.runtime.warning, report.login_warning)):
        write_row(console, "Warning", warning, "bold yellow")
    console.print()
    login = ' -H "Authorization: Bearer TOKEN"' if report.auth in {"token", "jwt"} else ""
    write_row(console, "Try it", f"npx wscat -c {_own(report.url)}{login}")
    write_row(console, "", EXAMPLE)
    write_row(console, "Stop it", "Ctrl-C")


def _own(url: str) -> str:
    """Return a URL that leads to a server on this machine, also if it listens on all addresses."""
    return re.sub(r"//(0\.0\.0\.0|\[::\]):", "//localhost:", url)


def write_error(console: Console, message: str, reason: str) -> None:
    """Write what failed and, below, why and what to do."""
    console.print(Text("error: ", style="bold red") + Text(plain(message)))
    for line in reason.splitlines():
        write_row(console, "", plain(line), width=len("error: ") - 2)
