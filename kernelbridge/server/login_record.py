"""What is known afterwards about logins: the log, the audit log and the metrics have each, in one call.

Failures are bounded: whoever can connect can fail as often as they like. So are logins, because each HTTP request is
one.
"""

from __future__ import annotations

import time

import structlog

from kernelbridge.audit.audit import Audit, CarriedBy
from kernelbridge.identity.principal import Principal
from kernelbridge.identity.proxied import bucket_of
from kernelbridge.identity.throttle import Throttle
from kernelbridge.metrics import Metrics

log = structlog.get_logger(__name__)


class LoginRecord:
    """Logs, audits and counts the logins of one server."""

    def __init__(self, audit: Audit, metrics: Metrics) -> None:
        self._audit = audit
        self._metrics = metrics
        self._throttle = Throttle()
        self._second = 0
        """The second in which logins are noted once."""
        self._noted: set[tuple[Principal, str, CarriedBy, bool]] = set()

    def accepted(self, principal: Principal, *, address: str, carried_by: CarriedBy, renewed: bool = False) -> None:
        """Note that a client logged in, or stayed logged in with another credential.

        The same within one second is only counted: a client may send thousands of requests.
        """
        self._metrics.authentication(accepted=True)
        if (second := int(time.monotonic())) != self._second:
            self._second = second
            self._noted.clear()
        login = (principal, address, carried_by, renewed)
        if login in self._noted:
            return
        self._noted.add(login)
        self._audit.authenticated(principal, address=address, carried_by=carried_by, renewed=renewed)
        log.info(
            "authenticated",
            user_id=principal.subject,
            issuer=principal.issuer,
            address=address,
            carried_by=carried_by,
            renewed=renewed,
        )

    def failed(self, reason: str, *, address: str, carried_by: CarriedBy | None) -> float:
        """Note that a credential was refused; `reason` repeats nothing of it.

        Returns the seconds that the client should wait before it tries again: 0 while failures are few. Beyond that
        they are only counted.
        """
        self._metrics.authentication(accepted=False)
        wait = self._throttle.failed(bucket_of(address), time.monotonic())
        if not wait:
            self._audit.authentication_failed(reason, address=address, carried_by=carried_by)
            log.warning("authentication_failed", reason=reason, address=address, carried_by=carried_by)
        return wait

    def sweep(self) -> None:
        """Note how many failures, and other refusals, were too many to be noted one by one. Called each second."""
        self._audit.sweep()
        if (count := self._throttle.take_suppressed()) > 0:
            self._audit.more_authentication_failures(count)
            log.warning("authentication_failures", count=count, detail="they came too fast to be logged one by one")

    def ended(self, principal: Principal, reason: str) -> None:
        """Note that a login ended before its connection."""
        self._audit.login_ended(principal, reason)
        log.warning("login_ended", user_id=principal.subject, issuer=principal.issuer, reason=reason)
