"""The secrets that requests of sandboxes get: their files, and what the proxy needs to add them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kernelbridge.egress.authority import client_context, open_authority
from kernelbridge.egress.exchange import SecretHosts
from kernelbridge.egress.secrets import Secret, SecretRule, by_host, read_secret
from kernelbridge.errors import ConfigError
from kernelbridge.watched_file import WatchedFile

Secrets = Sequence[tuple[SecretRule, WatchedFile[Secret | None]]]

AUTHORITY = "egress-authority.pem"
"""Name of the file in the data directory with the key that sandboxes trust for the hosts of secrets."""


def open_secrets(rules: Sequence[SecretRule]) -> Secrets:
    """Read the files of secrets; blocking. Raises `ConfigError`."""
    return [
        (rule, WatchedFile(rule.path, read_secret, empty=None, secret=True, setting="--egress-secret"))
        for rule in rules
    ]


def secret_hosts(data: Path, secrets: Secrets, trusted: bytes) -> SecretHosts | None:
    """Return what the proxy needs for hosts with secrets, None without; blocking. Raises `ConfigError`, `OSError`.

    `data` is the data directory; `trusted` are the authorities that the hosts are verified with (PEM).
    """
    if not secrets:
        return None
    if not trusted.strip():
        raise ConfigError(
            "--egress-secret needs the certificate authorities of this machine, and it has none",
            "the hosts could not be verified; install them (the package ca-certificates), or name a file of them with "
            "--ca-bundle",
        )
    authority = open_authority(data / AUTHORITY, {rule.host for rule, _ in secrets})
    return SecretHosts(by_host(secrets), authority, client_context(trusted))
