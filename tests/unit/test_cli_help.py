from __future__ import annotations

import io
import json
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import msgspec
import pytest
from rich.console import Console

from kernelbridge.cli import screen
from kernelbridge.cli.bench import _write_table
from kernelbridge.cli.entry import commands, verdict
from kernelbridge.errors import ConfigError, ImageError, RuntimeUnavailable
from kernelbridge.images.base import AUTO, DEBIAN_MIRROR
from kernelbridge.runtimes.contract import RuntimeInfo
from kernelbridge.server.app import StartReport
from kernelbridge.settings.settings import OPTIONS, default_text
from kernelbridge.settings.sources import flag_name, variable_name

DOCS = Path(__file__).parents[2] / "docs"
PAGE = runpy.run_path(str(DOCS / "make_configuration.py"))["configuration_page"]()

REPORT = StartReport(
    url="ws://127.0.0.1:8001/ws",
    runtime=RuntimeInfo("docker", "Docker Engine 20.10.24", "a container without a network, as uid 1000"),
    data_dir=Path("/var/lib/kernelbridge"),
    image="kernelbridge-workspace:latest",
)


def console(*, width: int | None = None) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    terminal = width is not None
    return Console(file=file, width=width, force_terminal=terminal, soft_wrap=True, color_system=None), file


def help_of(command: str) -> str:
    with click.Context(commands.commands[command], info_name=command) as ctx:
        return commands.commands[command].get_help(ctx)


def test_the_page_about_settings_is_made_from_the_settings() -> None:
    page = DOCS / "reference" / "configuration.md"
    assert page.read_text(encoding="utf-8") == PAGE, "run python docs/make_configuration.py"


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_setting_is_a_flag_and_on_the_page(name: str) -> None:
    for command in ("serve", "doctor"):
        assert f"  {flag_name(name)} " in help_of(command)
    assert f"`{variable_name(name)}`" in PAGE


def test_help_has_groups_and_defaults() -> None:
    text = " ".join(help_of("serve").split())
    for heading in dict.fromkeys(option.group for option in OPTIONS.values()):
        assert f"{heading}: --" in text
    assert "Memory; no swap is added to it. [default: 1g]" in text
    assert "KERNELBRIDGE_DATA_DIR" in text


WITHOUT_ARGUMENTS = {"serve", "doctor", "images list"}
"""Commands whose help explains settings instead, or which need nothing else."""


def all_commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{name} ")
        else:
            yield f"{above}{name}", command


def test_the_help_of_every_command_has_examples() -> None:
    for name, command in all_commands(commands):
        if name not in WITHOUT_ARGUMENTS:
            assert f"kernelbridge {name}" in (command.epilog or ""), name


def test_the_list_of_commands_has_whole_phrases() -> None:
    for name, command in all_commands(commands):
        assert not command.get_short_help_str(60).endswith("..."), name


def test_the_defaults_of_building_are_those_of_the_builder() -> None:
    assert default_text("images_base") == AUTO
    assert default_text("images_mirror") == DEBIAN_MIRROR


def test_the_start_up_screen() -> None:
    out, file = console()
    screen.write_started(out, REPORT)
    text = file.getvalue()
    for part in (
        REPORT.url,
        f"docker: {REPORT.runtime.detail}",
        REPORT.runtime.isolation,
        str(REPORT.data_dir),
        REPORT.image,
        "Ctrl-C",
    ):
        assert part is not None
        assert part in text
    assert text.count(str(REPORT.image)) == 1
    assert "Warning" not in text
    assert len(text.splitlines()) <= 24


def test_the_start_up_screen_of_a_runtime_without_images() -> None:
    out, file = console()
    info = RuntimeInfo("local", "x", "none", warning="code has all your rights")
    report = StartReport("ws://[::1]:1/ws", info, Path("/d"))
    screen.write_started(out, report)
    assert "Image" not in file.getvalue()
    assert "Warning     code has all your rights" in file.getvalue()


@pytest.mark.parametrize(
    ("url", "shown"), [("ws://0.0.0.0:1/ws", "ws://localhost:1/ws"), ("wss://[::]:1/ws", "wss://localhost:1/ws")]
)
def test_what_to_try_is_an_address_to_connect_to(url: str, shown: str) -> None:
    out, file = console()
    screen.write_started(out, replace(REPORT, url=url, login_warning="without TLS, everybody can read the tokens"))
    assert f"Listening   {url}\n" in file.getvalue()
    assert f"wscat -c {shown}\n" in file.getvalue()
    assert "Warning     without TLS, everybody can read the tokens" in file.getvalue()


def test_texts_are_wrapped_under_themselves_on_a_terminal_only() -> None:
    long = "word " * 40
    out, file = console(width=60)
    screen.write_row(out, "Label", long)
    lines = file.getvalue().splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith(" " * 14 + "word") for line in lines[1:])
    out, file = console()
    screen.write_row(out, "Label", long)
    assert len(file.getvalue().splitlines()) == 1


def test_what_a_server_says_of_itself_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    about = {"server": "ws://h", "runtime": "\x1b[c\x9b6n", "image": "\u202egnp.exe", "ownServer": False}
    _write_table(about, {})
    assert capsys.readouterr().out == "ws://h, runtime \ufffd[c\ufffd6n, image \ufffdgnp.exe\n"


def test_json_for_programs_can_be_shown() -> None:
    text = "\x9b6n \u202e ä \U000e0001"
    shown = screen.plain_json(msgspec.json.format(msgspec.json.encode({"found": text}), indent=2))
    assert all(line.isprintable() for line in shown.splitlines())
    assert json.loads(shown) == {"found": text}


def test_square_brackets_are_no_markup() -> None:
    out, file = console()
    screen.write_error(out, "[bold]what[/bold]", "[red]why\nand more")
    assert file.getvalue() == "error: [bold]what[/bold]\n       [red]why\n       and more\n"


@pytest.mark.parametrize(
    ("exc", "code", "message", "reason"),
    [
        (ConfigError("wrong", "why"), 2, "wrong", "why"),
        (ImageError("wrong", "why"), 1, "wrong", "why"),
        (RuntimeUnavailable("wrong", "why"), 1, "wrong", "why"),
        (click.UsageError("wrong"), 2, "wrong", "`kernelbridge --help` lists all options"),
        (click.ClickException("wrong"), 1, "wrong", ""),
        (KeyboardInterrupt(), 1, "Stopped before it was finished", ""),
    ],
)
def test_what_a_failure_is_worth(exc: BaseException, code: int, message: str, reason: str) -> None:
    assert verdict(exc) == (code, message, reason)


def test_a_fault_of_ours_is_called_one() -> None:
    code, message, reason = verdict(ZeroDivisionError("division by zero"))
    assert (code, message) == (1, "Unexpected ZeroDivisionError: division by zero")
    assert "--log-level debug" in reason
