"""The way out of a session's sandbox: its proxy, the events about what is refused, and what the server does for all."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.dialling import Dialler
from kernelbridge.egress.environment import SandboxNetwork
from kernelbridge.egress.exchange import SecretHosts
from kernelbridge.egress.policy import Denied, Level, Policies
from kernelbridge.egress.proxy import CONNECTIONS, Access, Common, SessionProxy
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.session_key import SessionKey

log = structlog.get_logger(__name__)

EVENTS_SECONDS = 60.0
"""In so many seconds there is one event for a host, however often a program tries, …"""
MOST_EVENTS = 20
"""… and so many events in all."""


def log_access(key: SessionKey, access: Access) -> None:
    """Log what happened to a connection of a session, for the debugging of one."""
    log.debug(
        "egress_connection",
        outcome=access.outcome,
        user_id=key.principal.subject,
        session=key.session_id,
        host=access.host,
        port=access.port,
        reason=access.reason,
        sent=access.sent,
        received=access.received,
    )


@dataclass(slots=True)
class Egress:
    """What all sessions of a server have in common for their way out."""

    policies: Policies
    dialler: Dialler
    network: SandboxNetwork = field(default_factory=SandboxNetwork)
    rate: int | None = None
    """Bytes a second of one session; None without limit."""
    total: int | None = None
    """Bytes of one session, from its opening to its close; None without limit."""
    common: Common = field(default_factory=Common)
    secret_hosts: SecretHosts | None = None
    """The hosts whose requests get secrets."""
    on_access: Callable[[SessionKey, Access], None] = log_access
    """Called with everything that happens: the place for an audit and for counters. It must not raise or wait."""

    def listens_at(self, ports: Collection[int]) -> None:
        """Set the ports of the server itself, to which no sandbox gets, wherever a name leads.

        Not the usual ones of the web: a server at 443 would cut off all hosts. There, only its addresses are refused.
        """
        self.policies = replace(self.policies, own_ports=frozenset(ports) - {80, 443})


class ReportDenied(Protocol):
    """Sends an event about a refusal."""

    def __call__(self, *, host: str, port: int, reason: str, detail: str) -> None:
        """Send it to the session's clients."""
        ...


class SessionEgress:
    """The way out of one session's sandboxes, one after the other."""

    def __init__(
        self,
        key: SessionKey,
        egress: Egress,
        *,
        level: Callable[[], Level | None],
        denials: Denials,
        report: ReportDenied,
    ) -> None:
        """Serve no sandbox yet. `level` returns what a client has chosen; `report` sends an event."""
        self._key = key
        self._denials, self._report = denials, report
        self._loop = asyncio.get_running_loop()
        self._proxy = SessionProxy(
            egress.dialler,
            Allowance(egress.rate, egress.total),
            egress.common,
            user=key.principal,
            policy=lambda: egress.policies.of_session(level()),
            on_access=functools.partial(egress.on_access, key),
            on_denied=self._denied,
            secret_hosts=egress.secret_hosts,
        )
        self._reported: set[tuple[str, int, str]] = set()
        self._since = float("-inf")
        self._closed = False

    def began(self, sandbox: Sandbox) -> None:
        """Serve a sandbox that runs; what is left of the one before ends."""
        self._proxy.end()
        sandbox.relay(functools.partial(self._accept, sandbox), CONNECTIONS)

    async def aclose(self) -> None:
        """End all connections. Idempotent."""
        self._closed = True
        await self._proxy.aclose()

    def _accept(self, sandbox: Sandbox, fd: int) -> None:
        if self._closed:
            os.close(fd)
            return
        more = functools.partial(sandbox.relay, functools.partial(self._accept, sandbox), 1)
        self._proxy.serve(socket.socket(fileno=fd), more)

    def _denied(self, denied: Denied) -> None:
        self._denials.add(denied.sentence)
        now = self._loop.time()
        if now - self._since > EVENTS_SECONDS:
            self._reported.clear()
            self._since = now
        what = (denied.host, denied.port, denied.reason)
        if what not in self._reported and len(self._reported) < MOST_EVENTS:
            self._reported.add(what)
            log.info(
                "egress_denied",
                user_id=self._key.principal.subject,
                session=self._key.session_id,
                host=denied.host,
                port=denied.port,
                reason=denied.reason,
            )
            self._report(host=denied.host, port=denied.port, reason=denied.reason, detail=denied.sentence)
