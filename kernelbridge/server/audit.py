"""What happened that an operator must be able to look up later: one call for each kind, with typed arguments.

Today each call writes one line of the log.
"""

from __future__ import annotations

from typing import Literal

import structlog

from kernelbridge.identity.principal import Principal

log = structlog.get_logger(__name__)

CarriedBy = Literal["header", "subprotocol", "message", "proxy"]


def authenticated(principal: Principal, *, address: str, carried_by: CarriedBy, renewed: bool = False) -> None:
    """Note that a client logged in, or stayed logged in with another credential."""
    log.info(
        "authenticated",
        user_id=principal.subject,
        issuer=principal.issuer,
        address=address,
        carried_by=carried_by,
        renewed=renewed,
    )


def authentication_failed(reason: str, *, address: str, carried_by: CarriedBy | None) -> None:
    """Note that a credential was refused. `reason` repeats nothing of it."""
    log.warning("authentication_failed", reason=reason, address=address, carried_by=carried_by)


def authentication_failures_uncounted(count: int) -> None:
    """Note how many failures were too many to be noted one by one."""
    log.warning("authentication_failures", count=count, detail="they came too fast to be logged one by one")


def login_ended(principal: Principal, reason: str) -> None:
    """Note that a login ended before its connection."""
    log.warning("login_ended", user_id=principal.subject, issuer=principal.issuer, reason=reason)
