"""What is audited: one method for each kind of entry. They return at once, and never raise.

Entries name who did what to what. They have no content: no code unless the operator asked for it, no text of a file or
a terminal, no answer to a question, no value of a variable, no credential.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from kernelbridge.audit.entries import Entry
from kernelbridge.audit.log_file import LogFile
from kernelbridge.audit.writer import Writer
from kernelbridge.errors import ConfigError
from kernelbridge.identity.principal import Principal
from kernelbridge.rates import Bucket

CarriedBy = Literal["header", "subprotocol", "message", "proxy"]
FileAction = Literal["save", "download", "delete", "rename", "make_directory"]


REFUSALS = 10.0
"""Refusals in a second, in the long run, that are noted one by one: of each user, and of all strangers together."""
MOST_REFUSALS = 100
"""Those that are noted after ten quiet seconds, however fast they come."""


class By(NamedTuple):
    """Who did something, and where."""

    principal: Principal | None
    session: str | None = None
    connection: str | None = None
    """The id of the WebSocket, whose `connected` entry has its address; None for an HTTP request."""
    request: str | None = None
    """The `requestId`."""
    address: str | None = None
    """Of the peer of an HTTP request."""


class Audit:
    """The audit log of one server. Without a `writer`, nothing is written."""

    def __init__(self, writer: Writer | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._writer = writer
        self._clock = clock
        self._second = float("-inf")
        """When the second began in which refusals are counted."""
        self._budgets: dict[Principal | None, Bucket] = {}
        """How many refusals of each principal are noted; strangers are `None`."""
        self._left_out: Counter[Principal | None] = Counter()
        self._denied: set[tuple[By, str]] = set()
        """What was denied to whom in that second."""

    @classmethod
    async def open(cls, path: Path | None, *, with_code: bool, on_lost: Callable[[int], None]) -> Audit:
        """Open the log at `path`; None for no log. `on_lost` see `Writer`. Raises `ConfigError`."""
        if path is None:
            return cls()
        try:
            file = await asyncio.to_thread(LogFile, path)
        except OSError as exc:
            raise ConfigError(
                f"The audit log {path} cannot be opened",
                f"{exc.strerror or exc}; choose another file with --audit-log, in a directory that the server may"
                " write to",
            ) from exc
        return cls(Writer(file, with_code=with_code, on_lost=on_lost))

    async def aclose(self) -> None:
        """Write what waits, and close the log. Idempotent; nothing is audited afterwards."""
        self._say_more_refusals()
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.to_thread(writer.close)

    # -- who is there -------------------------------------------------------------------

    def authenticated(
        self, principal: Principal, *, address: str, carried_by: CarriedBy, renewed: bool = False
    ) -> None:
        """Note that a client logged in, or stayed logged in with another credential."""
        self._note("authenticated", By(principal, address=address), carried_by=carried_by, renewed=renewed)

    def authentication_failed(self, reason: str, *, address: str, carried_by: CarriedBy | None) -> None:
        """Note that a credential was refused. `reason` repeats nothing of it."""
        self._note("authentication_failed", By(None, address=address), carried_by=carried_by, reason=reason)

    def more_authentication_failures(self, count: int) -> None:
        """Note how many failures were too many to be noted one by one."""
        self._note("authentication_failures", By(None), count=count)

    def login_ended(self, principal: Principal, reason: str) -> None:
        """Note that a login ended before its connection."""
        self._note("login_ended", By(principal), reason=reason)

    def connected(self, by: By) -> None:
        """Note that a WebSocket was opened."""
        self._note("connected", by)

    def disconnected(self, by: By, code: int) -> None:
        """Note that a WebSocket has ended; `code` is its close code."""
        self._note("disconnected", by, code=code)

    def refused(self, by: By, *, what: str, code: str, reason: str) -> None:
        """Note that something was refused: `what` is the type of a request, or an HTTP method and path.

        `reason` must not quote what may be content, as the longer texts of errors do. Of more than `REFUSALS` a second
        only the number is noted: whoever can connect could fill the disk with them. Nobody hides those of others.
        """
        now = self._begin_second()
        budget = self._budgets.setdefault(by.principal, Bucket(REFUSALS, now))
        if budget.try_take(1, now):
            self._note("refused", by, what=what, code=code, reason=reason)
        else:
            self._left_out[by.principal] += 1

    def egress_denied(self, by: By, *, host: str, port: int, reason: str) -> None:
        """Note that a program in a sandbox may not connect to a host: once in a second, repeats are only counted."""
        self._begin_second()
        what = f"egress {host}:{port}"
        if (by, what) in self._denied:
            self._left_out[by.principal] += 1
            return
        self._denied.add((by, what))
        self.refused(by, what=what, code="egress_denied", reason=reason)

    def sweep(self) -> None:
        """Note what was only counted in a second that is over. Called each second, also when nothing happens."""
        self._begin_second()

    def _begin_second(self) -> float:
        now = self._clock()
        if now - self._second >= 1:
            self._say_more_refusals()
            self._second = now
            self._budgets = {who: budget for who, budget in self._budgets.items() if not budget.full(now)}
        return now

    def _say_more_refusals(self) -> None:
        for principal, count in self._left_out.items():
            self._note("refusals", By(principal), count=count)
        self._left_out.clear()
        self._denied.clear()

    # -- sessions -------------------------------------------------------------------------

    def opened(self, by: By, *, adopted: bool = False) -> None:
        """Note that a session was opened, by a request or, with `adopted`, because an earlier server left it open."""
        self._note("open", by, adopted=adopted)

    def destroyed(self, by: By, *, reason: str, files_deleted: bool) -> None:
        """Note that a session has ended."""
        self._note("destroy", by, reason=reason, files_deleted=files_deleted)

    def cell(self, by: By, code: str) -> None:
        """Note that a cell was sent."""
        self._note("cell", by, source=code)

    def command(self, by: By, code: str) -> None:
        """Note that a terminal command was sent."""
        self._note("command", by, source=code)

    def interrupt(self, by: By, target: str) -> None:
        """Note that a client interrupts or restarts something."""
        self._note("interrupt", by, target=target)

    def terminal(self, by: By, terminal_id: str | None) -> None:
        """Note that an interactive terminal was opened. What is typed into it is not noted."""
        self._note("terminal", by, terminal=terminal_id)

    def file(self, by: By, action: FileAction, path: str, *, to: str | None = None, size: int | None = None) -> None:
        """Note that a client uses a file. `size` is that of what came: characters of a message, or bytes by HTTP."""
        self._note(action, by, path=path, to=to, size=size)

    # -- administrators ---------------------------------------------------------------------

    def administered(self, by: By, action: Literal["list", "kill", "logs"], owner: Principal | None = None) -> None:
        """Note what an administrator does; `by.session` is the session of the user `owner`."""
        self._note("administered", by, action=action, owner=None if owner is None else owner.subject)

    def _note(self, event: str, by: By, *, source: str | None = None, **fields: object) -> None:
        if self._writer is None:
            return
        who = by.principal
        known = {} if who is None else {"user": who.subject, "issuer": who.issuer}
        known |= {"session": by.session, "connection": by.connection, "request": by.request, "address": by.address}
        self._writer.put(Entry(time.time(), event, {**known, **fields}, source))
