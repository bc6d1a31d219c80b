"""The server's certificate and key for TLS, which are renewed while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from kernelbridge.errors import ConfigError
from kernelbridge.watched_file import FileChanges

log = structlog.get_logger(__name__)

EVERY = 5.0
"""Seconds between two looks at the files. A change takes effect at the second look."""


class Certificate:
    """The files of a certificate and its key, and what connections use of them.

    A new pair that cannot be used, or that is absent, changes nothing, and the log says so once.
    """

    def __init__(self, certificate: Path, key: Path | None) -> None:
        """Read the files; blocking. Raises `ConfigError`."""
        self._files = (certificate, key)
        self._changes = FileChanges(*(path for path in self._files if path is not None))
        self.context: ssl.SSLContext = _context(*self._files)
        """What the next connection uses. Connections that exist keep what they have begun with."""

    def refresh(self) -> None:
        """Read the files again if they have changed; blocking. Never raises for what is wrong with them."""
        if not self._changes.settled():
            return
        try:
            self.context = _context(*self._files)
        except ConfigError as exc:
            # Without the traceback: the operator made a mistake, not the server.
            log.error("certificate_not_reloaded", reason=str(exc), detail="the earlier one stays in use")  # noqa: TRY400
        else:
            log.info("certificate_reloaded", path=str(self._files[0]))

    @contextlib.asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """Look at the files from time to time while the context is open."""
        looking = asyncio.get_running_loop().create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # without it, the certificate would expire
                log.exception("certificate_look_failed")


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A password would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"--tls-cert: {str(certificate)!r} cannot be used",
            f"{getattr(exc, 'reason', None) or getattr(exc, 'strerror', None) or exc}; expected a certificate in PEM "
            "with its chain, and its private key without a password in the same file or in --tls-key",
        ) from exc
    return context
