"""What is known afterwards about a refused request: the log, the audit log and the metrics have it, in one call."""

from __future__ import annotations

from aiohttp import web

from kernelbridge.audit.audit import Audit, By
from kernelbridge.identity.principal import Principal
from kernelbridge.metrics import Metrics
from kernelbridge.server.websocket.tcp import TcpConnection

_LONGEST_PATH = 256
"""Characters of the path in the audit log."""


def note_refusal(
    request: web.Request, metrics: Metrics, audit: Audit, *, code: str, reason: str, principal: Principal | None = None
) -> None:
    """Note that a request was refused. `principal` is None for strangers; `reason` repeats nothing that is secret."""
    TcpConnection.of(request).warn("request_refused", reason=reason, path=request.path)
    metrics.refused(code)
    audit.refused(By(principal, address=request.remote), what=what_was_asked(request), code=code, reason=reason)


def what_was_asked(request: web.Request) -> str:
    """Return the method and the path of a refused request, for the audit log."""
    return f"{request.method} {request.path[:_LONGEST_PATH]}"
