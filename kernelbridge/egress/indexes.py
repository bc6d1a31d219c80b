"""The package indexes that the operator has configured on the server, for pip, uv and npm."""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from kernelbridge.egress.policy import PACKAGES, Rule, read_rule

_SECTIONS: Final = ("global", "install")
_PIP: Final[Mapping[str, str]] = MappingProxyType(
    {
        "index-url": "PIP_INDEX_URL",
        "extra-index-url": "PIP_EXTRA_INDEX_URL",
        "trusted-host": "PIP_TRUSTED_HOST",
    }
)
"""Options of pip, and the variables that have precedence."""
_NPM: Final = ("npm_config_registry", "NPM_CONFIG_REGISTRY")


@dataclass(frozen=True, slots=True)
class Indexes:
    """Where packages come from. URLs are without user and password: what a sandbox knows, its user knows."""

    index: str | None = None
    """Replaces PyPI for pip and uv."""
    extra: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    """Hosts whose certificates pip need not check."""
    npm: str | None = None
    """Replaces npm's registry."""
    with_password: tuple[str, ...] = ()
    """Hosts of URLs whose user and password were left out."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What must be reachable for them, and for PyPI."""
        urls = [url for url in (self.index, *self.extra, self.npm) if url is not None]
        return tuple(dict.fromkeys((*PACKAGES, *map(_rule, urls))))

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that make pip, uv and npm use them."""
        extra, trusted = " ".join(self.extra), " ".join(self.trusted)
        variables = {
            "PIP_INDEX_URL": self.index,
            "PIP_EXTRA_INDEX_URL": extra,
            "PIP_TRUSTED_HOST": trusted,
            "UV_DEFAULT_INDEX": self.index,
            "UV_INDEX": extra,
            "UV_INSECURE_HOST": trusted,
            "npm_config_registry": self.npm,
        }
        return {name: value for name, value in variables.items() if value}


def read_indexes(
    environ: Mapping[str, str], prefix: Path, home: Path | None = None, etc: Path = Path("/etc")
) -> Indexes:
    """Read what pip on the server would use, and npm's registry from the environment; blocking.

    `prefix` is that of the server's Python; `home` the user's directory, if there is one. What cannot be read, and
    indexes that are files, are left out.
    """
    options: dict[str, str] = {}
    for file in _pip_files(environ, prefix, home, etc):
        options.update(_options(file))
    for name, variable in _PIP.items():
        if variable in environ:
            options[name] = environ[variable]
    npm = next((environ[name] for name in _NPM if environ.get(name)), None)
    indexes = [url for url in options.get("index-url", "").split() if _usable(url)]
    extra = [url for url in options.get("extra-index-url", "").split() if _usable(url)]
    npm = npm if npm is not None and _usable(npm) else None
    every = [url for url in (*indexes, *extra, npm) if url is not None]
    return Indexes(
        index=_without_user(indexes[0]) if indexes else None,
        extra=tuple(map(_without_user, extra)),
        trusted=tuple(options.get("trusted-host", "").split()),
        npm=None if npm is None else _without_user(npm),
        with_password=tuple(urlsplit(url).hostname or "" for url in every if "@" in urlsplit(url).netloc),
    )


def server_indexes() -> Indexes:
    """Read the indexes of this process's own environment and pip; blocking."""
    home = os.environ.get("HOME")
    return read_indexes(os.environ, Path(sys.prefix), None if home is None else Path(home))


def _pip_files(environ: Mapping[str, str], prefix: Path, home: Path | None, etc: Path) -> Iterator[Path]:
    """Return pip's configuration files, in the order in which later ones win."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    yield etc / "pip.conf"
    if home is not None:
        yield home / ".pip/pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    yield prefix / "pip.conf"
    if named:
        yield Path(named)


def _options(file: Path) -> Mapping[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (OSError, configparser.Error, UnicodeDecodeError):
        return {}
    found: dict[str, str] = {}
    for section in _SECTIONS:
        if parser.has_section(section):
            found.update({re.sub("_", "-", name): value for name, value in parser.items(section) if value})
    return {name: value for name, value in found.items() if name in _PIP}


def _usable(url: str) -> bool:
    try:
        _rule(_without_user(url))  # raises for a host that cannot be allowed
        return urlsplit(url).scheme in {"http", "https"}
    except ValueError:
        return False


def _rule(url: str) -> Rule:
    parts = urlsplit(url)
    return read_rule(f"{parts.scheme}://{parts.netloc}")


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
