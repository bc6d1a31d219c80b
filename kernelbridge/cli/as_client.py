"""What commands share that are clients of a server: their options, and their exit codes."""

from __future__ import annotations

from collections.abc import Callable

import click

OUR_FAILURE = 125
"""Exit code when the command could not do what it is for, as with `docker run`."""
BY_SIGNAL = 128
"""Added to the number of a signal that ended what runs."""
KEPT = 3600.0
"""Seconds that a session stays open that is to be kept: the default of the server's limit."""


def as_client(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say which server is used, by whom, and which image a new session has."""
    image = click.option("--image", help="The image of the session's sandbox, if the command opens it.")
    url = click.option("--url", envvar="KERNELBRIDGE_URL", help="The server.  [variable: KERNELBRIDGE_URL]")
    user = click.option("--user", metavar="NAME", help="The user, for a server without authentication.")
    token = click.option(
        "--token",
        envvar="KERNELBRIDGE_TOKEN",
        help="The token to log in with. Other users of the machine see options: prefer KERNELBRIDGE_TOKEN.",
    )
    return image(url(user(token(command))))


class EndedBySignal(BaseException):
    """A signal ends the command. No `Exception`: nothing on its way should take it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = BY_SIGNAL + signum
