"""Makes the way out of the sandboxes from the settings, and notes what goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from kernelbridge.audit.audit import Audit, By
from kernelbridge.egress.authority import ROOTS, certificate_bundle, client_context
from kernelbridge.egress.dialling import THREADS, Dialler, SystemResolver, is_own_address
from kernelbridge.egress.environment import SandboxNetwork, proxy_variables
from kernelbridge.egress.indexes import server_indexes
from kernelbridge.egress.policy import Policies, Resolve
from kernelbridge.egress.proxy import Access, Common
from kernelbridge.egress.secret_files import Secrets, open_secrets, secret_hosts
from kernelbridge.egress.shares import Shares
from kernelbridge.errors import ConfigError
from kernelbridge.metrics import Metrics
from kernelbridge.runtimes.contract import PROXY_PORT
from kernelbridge.server import open_files
from kernelbridge.settings.settings import Settings
from kernelbridge.watched_file import refreshed
from kernelbridge.workspace.egress import Egress, log_access
from kernelbridge.workspace.session_key import SessionKey

log = structlog.get_logger(__name__)

_FILES = 6
"""Connections of sandboxes need two files each: all together may have a third of what the server may open."""


@asynccontextmanager
async def opened_egress(
    settings: Settings, data: Path, metrics: Metrics, audit: Audit, resolve: Resolve | None
) -> AsyncIterator[Egress]:
    """Make the way out of the sandboxes; `data` is the data directory. Raises `ConfigError`.

    What happens to each connection is logged, counted and audited. Names are looked up with `resolve`, or as this
    machine does. While the context is open, the files with secrets are watched for changes.
    """
    with contextlib.ExitStack() as stack:
        resolver = resolve or stack.enter_context(contextlib.closing(SystemResolver()))
        secrets = await asyncio.to_thread(open_secrets, settings.egress_secret)
        async with refreshed(file for _, file in secrets):
            egress = await asyncio.to_thread(_egress, settings, resolver, data, secrets)
            egress.on_access = functools.partial(_note_access, metrics, audit)
            yield egress


def _egress(settings: Settings, resolver: Resolve, data: Path, secrets: Secrets) -> Egress:
    """Make the way out of the sandboxes; blocking. Raises `ConfigError`."""
    indexes = server_indexes()
    for host in indexes.with_password:
        log.warning("index_password_left_out", host=host, why="what a sandbox knows, its user knows")
    if settings.egress_proxy is None and any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        log.warning("upstream_proxy_not_used", why="sandboxes reach hosts through a proxy only with --egress-proxy")
    try:
        own = None if settings.ca_bundle is None else settings.ca_bundle.read_bytes()
        trusted = certificate_bundle(own or b"", ROOTS)
        hosts = secret_hosts(data, secrets, trusted)
        certificates = None if own is None else trusted
        if hosts is not None:  # besides all others: programs use such a file in place of their own
            certificates = trusted + hosts.authority.certificate
        if certificates is not None:  # one that cannot be read would keep programs from all
            client_context(certificates)
    except OSError as exc:
        file = exc.filename or settings.ca_bundle  # TLS does not name it
        raise ConfigError("The certificate authorities cannot be read", f"{file}: {exc.strerror}") from exc
    return Egress(
        Policies(settings.egress, settings.egress_hosts, indexes.rules, settings.egress_allow_net),
        Dialler(resolver, is_own_address, settings.egress_proxy),
        SandboxNetwork({**proxy_variables(PROXY_PORT), **indexes.environment}, certificates),
        rate=settings.egress_rate,
        total=settings.egress_bytes,
        common=Common(Shares(open_files.limit() // _FILES), Shares(THREADS)),
        secret_hosts=hosts,
    )


def _note_access(metrics: Metrics, audit: Audit, key: SessionKey, access: Access) -> None:
    """Log, count and audit what happened to a connection of a sandbox."""
    log_access(key, access)
    match access.outcome:
        case "opened":
            metrics.egress_connection("allowed")
        case "closed":
            metrics.egress_bytes(sent=access.sent, received=access.received)
        case "denied" | "failed":
            metrics.egress_connection(access.outcome)
    if access.outcome == "denied":
        by = By(key.principal, key.session_id)
        audit.egress_denied(by, host=access.host, port=access.port, reason=access.reason)
