"""Who is logged in now, for as long as the credential is valid; pure but for the callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kernelbridge.errors import BadRequest, Unauthorized
from kernelbridge.identity.principal import Identity, Refused, Verdict

EXPIRED = "the credential has expired"
REVOKED = "the credential was revoked"


class Login:
    """One connection's or request's login.

    `judge` checks another token, which must be the same principal's; None if the server takes no tokens. A WebSocket
    lives longer than a token: a client that gets a new one in time sends it, and stays.
    """

    def __init__(self, identity: Identity, judge: Callable[[str], Verdict] | None = None) -> None:
        self.identity = identity
        self._judge = judge

    def renew(self, token: str) -> Identity:
        """Replace the credential by another token of the same principal.

        Raises `Unauthorized`, or `BadRequest` if the server takes no tokens.
        """
        if self._judge is None:
            raise BadRequest(
                "There is nothing to log in to", "this server takes no tokens from clients (--auth none or proxy)"
            )
        verdict = self._judge(token)
        if isinstance(verdict, Refused):
            raise Unauthorized("The token is refused", verdict.reason)
        self.identity = verdict
        return verdict


class Logins:
    """All logins that may end before their connections. `still`: see `Checker`."""

    def __init__(self, still: Callable[[Identity], bool]) -> None:
        self._still = still
        self._ends: dict[Login, Callable[[str], None]] = {}

    @contextmanager
    def watched(self, login: Login, end: Callable[[str], None]) -> Iterator[None]:
        """While the context is open, call `end` with the reason once, when the login's credential ends."""
        self._ends[login] = end
        try:
            yield
        finally:
            self._ends.pop(login, None)

    def sweep(self, now: float) -> None:
        """End the logins whose credential has expired by `now` (seconds since the epoch), or was revoked."""
        for login, end in list(self._ends.items()):
            if (reason := self._ended(login.identity, now)) is not None:
                self._ends.pop(login, None)
                end(reason)

    def _ended(self, identity: Identity, now: float) -> str | None:
        if identity.expires is not None and identity.expires <= now:
            return EXPIRED
        return None if self._still(identity) else REVOKED
