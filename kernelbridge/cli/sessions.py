"""`kernelbridge ps`, `kernelbridge kill` and `kernelbridge logs`: the sessions of a running server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.cells import cell_len, set_cell_size

from kernelbridge.cli import screen
from kernelbridge.cli.completion import all_sessions
from kernelbridge.errors import KernelBridgeError
from kernelbridge.settings.quantities import human_size

if TYPE_CHECKING:
    from kernelbridge.cli.administrator import Administrator
    from kernelbridge.protocol.administration import JournalEvent, SessionRow

SHORT_ID = 12
MOST_CODE = 40
"""Characters of what runs that the table shows."""
MOST_DETAIL = 200
"""Characters of an event that a line shows."""
NOBODY = "-"
_PS = """\b
Examples:
    kernelbridge ps
    kernelbridge ps --url https://kernels.example --json
"""
_KILL = """\b
Examples:
    kernelbridge kill work
    kernelbridge kill work --user ada
"""
_LOGS = """\b
Examples:
    kernelbridge logs work
    kernelbridge logs work --last 500 --json
"""
COLUMNS = ("USER", "SESSION", "STATE", "SINCE", "MEMORY", "DISK", "CONNECTIONS", "ID", "RUNS")


def _of_server(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say which server is asked."""
    url = click.option(
        "--url",
        envvar="KERNELBRIDGE_URL",
        default="http://localhost:8001",
        show_default=True,
        help="The server: an http or https URL, or unix:PATH.  [variable: KERNELBRIDGE_URL]",
    )
    token = click.option(
        "--token",
        envvar="KERNELBRIDGE_TOKEN",
        help="An administrator's token. Other users of the machine see options: prefer KERNELBRIDGE_TOKEN.",
    )
    header = click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME:VALUE",
        callback=_headers,
        help="A header to send, for a server behind a proxy that says who the user is. Repeatable.",
    )
    return url(token(header(command)))


def _headers(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    found = dict[str, str]()
    for value in values:
        name, colon, content = value.partition(":")
        if not (colon and name.strip()):
            raise click.BadParameter(f"expected NAME:VALUE, such as 'X-Forwarded-User: ada', found {value!r}")
        found[name.strip()] = content.strip()
    return found


def _of_session(command: Callable[..., int]) -> Callable[..., int]:
    """Add the argument that names a session."""
    user = click.option("--user", help="Whose session it is, if several users have one of this name.")
    return click.argument("session", shell_complete=all_sessions)(user(command))


@click.command(epilog=_PS)
@click.option("--json", "as_json", is_flag=True, help="Print the sessions as JSON.")
@_of_server
def ps(*, url: str, token: str | None, headers: Mapping[str, str], as_json: bool) -> int:
    """List the open sessions of a running server, of all users."""
    rows = sorted(_administrator(url, token, headers).sessions(), key=lambda row: row.created)
    if as_json:
        click.echo(screen.plain_json(msgspec.json.format(msgspec.json.encode(rows), indent=2)))
        return 0
    for line in _lines([COLUMNS, *(_cells(row, time.time()) for row in rows)]):
        click.echo(line)
    return 0


@click.command(epilog=_KILL)
@_of_session
@_of_server
def kill(*, session: str, user: str | None, url: str, token: str | None, headers: Mapping[str, str]) -> int:
    """Close SESSION: end what runs in it, and its sandbox. Its files stay.

    SESSION is a name or the beginning of an id of `kernelbridge ps`. Clients that return learn why.
    """
    administrator = _administrator(url, token, headers)
    row = _named(administrator, session, user)
    ended = administrator.kill(row)
    click.echo(f"Closed {_whose(row)}." if ended else f"{_whose(row)} is being closed: its sandbox has not ended yet.")
    return 0


@click.command(epilog=_LOGS, short_help="Print the latest events of a session.")
@click.option("--last", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many events.")
@click.option("--json", "as_json", is_flag=True, help="Print each event whole, as a line of JSON.")
@_of_session
@_of_server
def logs(
    *, session: str, user: str | None, url: str, token: str | None, headers: Mapping[str, str], last: int, as_json: bool
) -> int:
    """Print the latest events of SESSION: what it has sent to its clients, and the server still keeps.

    SESSION is a name or the beginning of an id of `kernelbridge ps`.
    """
    administrator = _administrator(url, token, headers)
    for event in administrator.events(_named(administrator, session, user), last).events:
        if as_json:
            click.echo(screen.plain_json(msgspec.json.encode(event)))
        else:
            click.echo(f"{event.seq:>8}  {_plain(event.type):20}  {_detail(event)}")
    return 0


def _administrator(url: str, token: str | None, headers: Mapping[str, str]) -> Administrator:
    from kernelbridge.cli.administrator import Administrator  # noqa: PLC0415 - loads aiohttp: not for --help

    return Administrator.with_token(url, token, headers)


def _named(administrator: Administrator, session: str, user: str | None) -> SessionRow:
    rows = [row for row in administrator.sessions() if user is None or row.user == user]
    found = [row for row in rows if row.session == session] or [row for row in rows if row.id.startswith(session)]
    if not found:
        raise KernelBridgeError(
            f"There is no open session {session!r}{'' if user is None else f' of {user!r}'}",
            "`kernelbridge ps` lists all; files of closed sessions are kept",
        )
    if len(found) > 1:
        whose = ", ".join(f"{_plain(row.user or NOBODY)} ({row.id[:SHORT_ID]})" for row in found)
        raise KernelBridgeError(
            f"{len(found)} sessions are called {session!r}", f"choose one by its id, or by --user: {whose}"
        )
    return found[0]


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align the cells of a table."""
    rows = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(set_cell_size, row, widths)).rstrip()


def _cells(row: SessionRow, now: float) -> Sequence[str]:
    return (
        NOBODY if row.user is None else row.user,
        row.session,
        row.state,
        _ago(row.created, now),
        NOBODY if row.memory is None else human_size(row.memory),
        NOBODY if row.disk is None else human_size(row.disk),
        str(row.connections),
        row.id[:SHORT_ID],
        _runs(row, now),
    )


def _runs(row: SessionRow, now: float) -> str:
    """Return what runs: a cell, else a command, else terminals."""
    for ran in row.running:
        if ran.kind != "terminal":
            code = ran.code if isinstance(ran.code, str) else ""
            first = next((line.strip() for line in code.splitlines() if line.strip()), "")
            cut = first if len(first) <= MOST_CODE else f"{first[: MOST_CODE - 1]}…"
            since = _ago(ran.since, now) if isinstance(ran.since, str) else ""
            return " ".join(filter(None, (ran.kind, since, cut)))
    terminals = len(row.running)
    return NOBODY if not terminals else f"{terminals} terminal{'s' if terminals > 1 else ''}"


def _ago(timestamp: str, now: float) -> str:
    try:
        seconds = max(0, int(now - datetime.fromisoformat(timestamp).timestamp()))
    except ValueError:
        return timestamp
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _detail(event: JournalEvent) -> str:
    frame: dict[str, Any] | None = msgspec.json.decode(event.frame)
    if frame is None:
        return f"({human_size(event.size)})"
    for name in ("type", "sessionId", "seq"):
        frame.pop(name, None)
    text = _plain(msgspec.json.encode(frame).decode())
    return text if len(text) <= MOST_DETAIL else f"{text[: MOST_DETAIL - 1]}…"


def _whose(row: SessionRow) -> str:
    return f"session {_plain(row.session)}" + ("" if row.user is None else f" of {_plain(row.user)}")


def _plain(text: str) -> str:
    """Escape what a terminal would obey: a user chooses names and code."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
