"""What the environment says that is no setting of ours: whose data, which engine, which authorities to trust."""

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
    """Give the data directory of this user: of the system for root, else below XDG_DATA_HOME; raises `ConfigError`."""
    if (os.geteuid() if uid is None else uid) == 0:
        return Path("/var/lib/kernelbridge")
    base = Path(environ.get("XDG_DATA_HOME") or "")
    if not base.is_absolute():
        try:
            base = Path(environ.get("HOME") or Path.home()) / ".local" / "share"
        except RuntimeError as exc:
            raise ConfigError(
                "There is no home directory to keep data in",
                "this user has neither HOME nor an entry in /etc/passwd; give --data-dir (or KERNELBRIDGE_DATA_DIR)",
            ) from exc
    return base / "kernelbridge"


def docker_host(environ: Mapping[str, str]) -> str | None:
    """Give the engine's address that DOCKER_HOST names, if it does; raises `ConfigError` for one that cannot be."""
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
    """Give the bundle that OpenSSL's own variable names: set where a proxy intercepts TLS."""
    named = environ.get("SSL_CERT_FILE")
    return Path(named) if named and os.access(named, os.R_OK) and Path(named).is_file() else None
