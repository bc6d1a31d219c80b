"""`kernelbridge completion`, and what Tab completes besides options: names of sessions, and files.

A completion asks the server that the command would use. It is quick and silent, and starts nothing: if there is no
answer within a second, there are no names.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from kernelbridge.cli.own_server import USUAL

PATIENCE = 1.0
"""Seconds that a server may take to list its sessions."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What a session can be called. A server could send anything else, for the shell to read."""
SHELLS = ("bash", "zsh", "fish")
_EXAMPLES = """\b
Examples:
    bash:  echo 'eval "$(kernelbridge completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(kernelbridge completion zsh)"' >> ~/.zshrc, below compinit
    fish:  kernelbridge completion fish > ~/.config/fish/completions/kernelbridge.fish
"""


@click.command(epilog=_EXAMPLES, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> int:
    """Print the script that lets SHELL complete kernelbridge's commands, options and names of sessions."""
    program = context.find_root()
    made = get_completion_class(shell)
    if made is None:
        raise AssertionError(shell)
    click.echo(made(program.command, {}, "kernelbridge", "_KERNELBRIDGE_COMPLETE").source())
    return 0


def own_sessions(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a session of the user."""
    return _items(_named(_of_user, context), incomplete)


def all_sessions(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of an open session of any user, for an administrator."""
    return _items(_named(_of_all, context), incomplete)


def places(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete `SESSION:`, or a local path if no session is called so."""
    found = [] if "/" in incomplete or incomplete.startswith(".") else _named(_of_user, context)
    return _items((f"{name}:" for name in found), incomplete) or [CompletionItem(incomplete, type="file")]


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a local path."""
    return [CompletionItem(incomplete, type="file")]


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _named(ask: Callable[[click.Context], list[str]], context: click.Context) -> list[str]:
    try:
        return sorted({name for name in ask(context) if _NAME.fullmatch(name)})
    except Exception:  # noqa: BLE001 - a message would be in the line that is being typed
        return []


def _of_user(context: click.Context) -> list[str]:
    from kernelbridge import AsyncClient  # noqa: PLC0415 - not for completing options

    given = context.params
    url, token = given.get("url"), given.get("token")

    async def ask() -> list[str]:
        # A token is only for the server that was named.
        client = AsyncClient(url or USUAL, token=token if url else None, user_id=given.get("user"))
        async with asyncio.timeout(PATIENCE), client:
            return [found["sessionId"] for found in await client.sessions()]

    return asyncio.run(ask())


def _of_all(context: click.Context) -> list[str]:
    from kernelbridge.cli.administrator import Administrator  # noqa: PLC0415 - not for completing options

    given = context.params
    asked = Administrator.with_token(given["url"], given.get("token"), given.get("headers") or {}, PATIENCE)
    return [row.session for row in asked.sessions()]
