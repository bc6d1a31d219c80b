"""`kernelbridge doctor`."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console

from kernelbridge import log
from kernelbridge.cli import screen
from kernelbridge.cli.options import EVERYWHERE, GroupedCommand, with_settings
from kernelbridge.settings.settings import Settings

if TYPE_CHECKING:
    from kernelbridge.doctor import Row

STYLES = MappingProxyType({"ok": "green", "warning": "bold yellow", "problem": "bold red"})
CHECK_WIDTH = 12
STATUS_WIDTH = 9


@click.command(cls=GroupedCommand, epilog=EVERYWHERE)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@with_settings()
def doctor(settings: Settings, *, as_json: bool) -> int:
    """Check whether the server would work with these settings.

    Prints what is wrong and how to fix it. Exits with 0 if the server would work, else with 1.
    """
    from kernelbridge.doctor import examine, serves  # noqa: PLC0415 - loads both runtimes: not for --help

    log.configure(settings.log_format, settings.log_level)
    rows = asyncio.run(examine(settings))
    if as_json:
        found = msgspec.json.encode({"ok": serves(rows), "checks": rows})
        click.echo(screen.plain_json(msgspec.json.format(found, indent=2)))
    else:
        console = screen.output()
        write_checks(console, rows)
        bad = sum(row.status == "problem" for row in rows)
        console.print(f"{bad} to fix before `kernelbridge serve` works." if bad else "`kernelbridge serve` works here.")
    return 0 if serves(rows) else 1


def write_checks(console: Console, rows: list[Row]) -> None:
    """Write a line for each check, and below it what to do; then an empty line.

    What they found may come from an image: nothing of it reaches the terminal as a command.
    """
    width = STATUS_WIDTH + max(CHECK_WIDTH, *(len(row.check) + 2 for row in rows))
    for row in rows:
        label = row.status.ljust(STATUS_WIDTH) + row.check
        screen.write_row(console, screen.plain(label), screen.plain(row.found), STYLES[row.status], width=width)
        if row.fix:
            screen.write_row(console, "", screen.plain(f"→ {row.fix}"), width=width)
    console.print()
