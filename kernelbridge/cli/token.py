"""`kernelbridge token new`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from kernelbridge import log
from kernelbridge.cli import screen
from kernelbridge.cli.options import GroupedCommand, with_settings
from kernelbridge.errors import ConfigError
from kernelbridge.identity.token_file import add_token
from kernelbridge.identity.tokens import new_token, parse_time, token_line
from kernelbridge.settings.settings import Settings

_NEW = """\b
Examples:
    kernelbridge token new ada --token-file tokens
    kernelbridge token new operator --admin --expires 2027-01-31
"""


@click.group()
def token() -> None:
    """Make tokens for `kernelbridge serve --auth token`."""


@token.command("new", cls=GroupedCommand, epilog=_NEW)
@click.argument("principal")
@click.option("--admin", is_flag=True, help="It may see and end what belongs to others.")
@click.option("--expires", metavar="TIME", help="When it ends: 2027-01-31 or 2027-01-31T12:00:00Z.  [default: never]")
@with_settings(("token_file", "config", "log_level"))
def new(settings: Settings, *, principal: str, admin: bool, expires: str | None) -> int:
    """Make a token for PRINCIPAL, and print it.

    It is shown this once: the token file gets its hash only. The file is made if it is absent. A running server takes
    the token within seconds. To revoke it, delete its line.
    """
    log.configure(settings.log_format, settings.log_level)
    if settings.token_file is None:
        raise ConfigError("There is no token file to add to", "name it with --token-file, which may be a new file")
    end = None if expires is None else _time(expires)
    if end is not None and end <= datetime.now(UTC):
        raise click.UsageError(f"--expires: {expires} is over already")
    made = new_token()
    try:
        line = token_line(principal, made, admin=admin, expires=end)
    except ValueError as exc:
        raise click.UsageError(f"The principal cannot have this name: {exc}") from exc
    add_token(settings.token_file, line)
    screen.output().print(made)
    return 0


def _time(text: str) -> datetime:
    try:
        return parse_time(text)
    except (ValueError, OverflowError) as exc:
        raise click.UsageError(f"--expires: {text!r} is not a time such as 2027-01-31 or 2027-01-31T12:00:00Z") from exc
