"""Flags made from the table of settings, and help that shows them in groups."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Final

import click

from kernelbridge.settings.settings import OPTIONS, Settings, default_text, resolve
from kernelbridge.settings.sources import flag_name

EVERYWHERE: Final = (
    "Each option can also be set by an environment variable (KERNELBRIDGE_DATA_DIR for --data-dir) or, except "
    "--config, in the TOML file of --config (data_dir). An option wins over a variable, a variable over the file. "
    "Sizes: 512m, 1g, 16MiB or bytes. Durations: 250ms, 90s, 5m, 1h or seconds."
)


class SettingFlag(click.Option):
    """The flag of one setting. It accepts any text; `resolve` checks it."""

    def __init__(self, name: str, flag: str) -> None:
        option = OPTIONS[name]
        self.group = option.group
        more: dict[str, Any] = {"metavar": option.kind.metavar, "type": str, "multiple": option.kind.many}
        if option.kind.native == (bool,):
            flag, more = f"{flag}/--no-{flag[2:]}", {"is_flag": True}
        text = f"{option.help}  [default: {default_text(name)}]"
        super().__init__([name, flag], default=() if option.kind.many else None, help=text, **more)


class GroupedCommand(click.Command):
    """A command whose help shows the flags of settings under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group, then one for the command's own options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                heading = param.group if isinstance(param, SettingFlag) else "Options"
                sections.setdefault(heading, []).append(record)
        own = sections.pop("Options")
        for heading, records in [*sections.items(), ("Options", own)]:
            with formatter.section(heading):
                formatter.write_dl(records, col_max=30)


def with_settings(
    names: Iterable[str] = OPTIONS, spelling: Mapping[str, str] | None = None
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add the flags of the settings `names` to a command, which gets the resolved `Settings` as its first argument.

    `spelling` has the flags that this command names differently. The command returns its exit code.
    """
    spelled = dict(spelling or {})
    chosen = tuple(names)

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def call(**params: Any) -> int:
            flags = {name: params.pop(name) for name in chosen}
            settings = resolve(flags, spelling=spelled)
            return _traced(settings, command, params)

        flags = [SettingFlag(name, spelled.get(name, flag_name(name))) for name in reversed(chosen)]
        for flag in flags:
            _attach(call, flag)
        return call

    return decorate


def _traced(settings: Settings, command: Callable[..., int], params: Mapping[str, Any]) -> int:
    """Call the command. At log level debug, print the traceback of an error before `main` explains it."""
    try:
        return command(settings, **params)
    except Exception:
        if settings.log_level == "debug":
            traceback.print_exc()
        raise


def _attach(command: Callable[..., int], flag: click.Option) -> None:
    # As `click.option` does, which does not accept an existing option.
    vars(command).setdefault("__click_params__", []).append(flag)
