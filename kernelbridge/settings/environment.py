"""Environment variables of other programs: HOME and XDG_DATA_HOME, DOCKER_HOST, SSL_CERT_FILE."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kernelbridge.errors import ConfigError

_ENGINE_ADDRESS: Final = re.compile(
    r"(http\+)?unix://(/.*)?|((tcp|https?)://)?([\w.-]*|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}(/\S*)?", re.ASCII
)


def default_data_dir(environ: Mapping[str, str], uid: int | None = None) -> Path:
    """Return the default data directory: the system's for root, else below XDG_DATA_HOME. Raises `ConfigError`."""
    if (os.geteuid() if uid is None else uid) == 0:
        return Path("/var/lib/kernelbridge")
    base = Path(environ.get("XDG_DATA_HOME") or "")
    if not base.is_absolute():
        try:
            base = Path(environ.get("HOME") or Path.home()) / ".local" / "share"
        except RuntimeError as exc:
            raise ConfigError(
                "There is no home directory for the data",
                "this user has neither HOME nor an entry in /etc/passwd; set --data-dir (or KERNELBRIDGE_DATA_DIR)",
            ) from exc
    return base / "kernelbridge"


def docker_host(environ: Mapping[str, str]) -> str | None:
    """Return the engine's address in DOCKER_HOST, or None without one. Raises `ConfigError` if it is wrong."""
    address = environ.get("DOCKER_HOST")
    if not address or _ENGINE_ADDRESS.fullmatch(address):
        return address or None
    forms = "unix:///path/of/docker.sock or tcp://127.0.0.1:2375"
    if address.startswith("ssh://"):
        raise ConfigError(
            f"DOCKER_HOST: {address!r} is not supported",
            f"the engine must be on this machine: its containers mount directories of this server; expected {forms}",
        )
    raise ConfigError(
        f"DOCKER_HOST: {address!r} is not the address of an engine",
        f"expected {forms}; unset it to use the engine's usual socket",
    )


def default_ca_bundle(environ: Mapping[str, str]) -> Path | None:
    """Return the readable file that OpenSSL's variable names, if any. It is set where a proxy intercepts TLS."""
    named = environ.get("SSL_CERT_FILE")
    return Path(named) if named and os.access(named, os.R_OK) and Path(named).is_file() else None
