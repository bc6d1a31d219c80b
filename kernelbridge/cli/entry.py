"""The entry point: the group of commands, the exit codes, and what is printed when a command fails.

Exit codes: 0 for success or a clean stop, 2 for wrong settings or usage, 1 for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import click

from kernelbridge import __version__
from kernelbridge.cli import screen
from kernelbridge.cli.bench import bench
from kernelbridge.cli.completion import completion
from kernelbridge.cli.console import console
from kernelbridge.cli.cp import cp
from kernelbridge.cli.doctor import doctor
from kernelbridge.cli.images import images
from kernelbridge.cli.open import open_page
from kernelbridge.cli.run import run
from kernelbridge.cli.serve import serve
from kernelbridge.cli.sessions import kill, logs, ps
from kernelbridge.cli.shell import shell
from kernelbridge.cli.token import token
from kernelbridge.errors import ConfigError, KernelBridgeError

FAILED = 1
MISUSED = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kernelbridge", message="%(prog)s %(version)s")
def commands() -> None:
    """Run Python code in isolated sessions, over a WebSocket.

    Start with `kernelbridge run -c 'print(6 * 7)'`, or with `kernelbridge serve`. If something is missing,
    `kernelbridge doctor` says what to do.
    """


commands.add_command(serve)
commands.add_command(run)
commands.add_command(shell)
commands.add_command(console)
commands.add_command(cp)
commands.add_command(doctor)
commands.add_command(images)
commands.add_command(token)
commands.add_command(ps)
commands.add_command(kill)
commands.add_command(logs)
commands.add_command(open_page)
commands.add_command(bench)
commands.add_command(completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Never raises an `Exception`."""
    try:
        code = commands.main(args=argv, prog_name="kernelbridge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return MISUSED
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - the last resort: people get a sentence, not a traceback
        code, message, reason = verdict(exc)
        screen.write_error(screen.errors(), message, reason)
    return code if isinstance(code, int) else 0


def verdict(exc: BaseException) -> tuple[int, str, str]:
    """Return the exit code, what failed, and why with what to do."""
    match exc:
        case click.UsageError():
            where = exc.ctx.command_path if exc.ctx else "kernelbridge"
            message, hint = exc.format_message(), f"`{where} --help` lists all options"
            if isinstance(exc, click.NoSuchOption):
                # Only the nearest, as for variables and keys; click would list all similar ones.
                nearest = get_close_matches(exc.option_name, exc.possibilities or (), n=1)
                message = f"There is no option {exc.option_name}"
                hint = f"did you mean {nearest[0]}? {hint}" if nearest else hint
            return MISUSED, message, hint
        case click.ClickException():
            return exc.exit_code, exc.format_message(), ""
        case click.Abort() | KeyboardInterrupt():
            return FAILED, "Stopped before it was finished", ""
        case ModuleNotFoundError() if not str(exc.name).startswith("kernelbridge"):
            return FAILED, f"The server needs {exc.name}", "install it: pip install 'kernelbridge[server]'"
        case KernelBridgeError():
            return MISUSED if isinstance(exc, ConfigError) else FAILED, exc.message, exc.reason
    reason = "this is a bug of kernelbridge: run it again with --log-level debug, and report what it prints"
    return FAILED, f"Unexpected {type(exc).__name__}: {exc}", reason
