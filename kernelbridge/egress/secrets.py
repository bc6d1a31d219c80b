"""Secrets that the server adds to requests for one host, and that no sandbox has; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from kernelbridge.egress.hosts import BadHostError, literal_address, split_authority, written
from kernelbridge.egress.http_request import HOP_BY_HOP
from kernelbridge.egress.policy import HTTPS, Rule

LONGEST: Final = 8 << 10
"""Bytes of a secret: what servers accept in one header field."""

_HEADER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_NOT_FOR_SECRETS: Final = frozenset({"content-length", "content-type", "expect", "transfer-encoding"})
_VALUE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class SecretRule:
    """A host, the header field that requests for it get, and the file with the value of the field."""

    host: str
    """Canonical."""
    port: int
    header: str
    path: Path

    @property
    def allows(self) -> Rule:
        """The host, as one that programs may reach."""
        return Rule(self.host, self.port)

    def __str__(self) -> str:
        return f"{written(self.host, self.port)}={self.header}:{self.path}"


def read_secret_rule(text: str) -> SecretRule:
    """Read `HOST[:PORT]=HEADER:/FILE`. Raises `ValueError`."""
    authority, _, rest = text.partition("=")
    header, _, path = rest.partition(":")
    host, port = split_authority(authority, HTTPS)
    if literal_address(host) is not None:
        raise BadHostError("TLS names no host that is an address")
    name = header.lower()
    if _HEADER.fullmatch(header) is None or name in HOP_BY_HOP | _NOT_FOR_SECRETS or name.startswith("proxy-"):
        raise ValueError("it is no header field that a secret can have")
    if not path.startswith("/") or "\0" in path:
        raise ValueError("the path is not absolute")
    return SecretRule(host, port, header, Path(path))


@dataclass(frozen=True, slots=True)
class Secret:
    """The value of a header field. Its `repr` does not show it."""

    value: bytes = field(repr=False)


def read_secret(data: bytes) -> Secret:
    """Read the content of a file: one line, with or without a line break at its end.

    Raises `ValueError`, whose text says nothing about the content.
    """
    value = data.removesuffix(b"\n").removesuffix(b"\r")
    if len(value) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} bytes")
    if _VALUE.fullmatch(value) is None:
        raise ValueError("expected one line of printable ASCII characters, and no space at its begin or end")
    return Secret(value)


class SecretSource(Protocol):
    """Where the present value comes from: a file that may change."""

    @property
    def value(self) -> Secret | None:
        """The secret; None if there is none any more."""
        ...


@dataclass(frozen=True, slots=True)
class SecretHeader:
    """A header field that requests for a host get."""

    name: str
    source: SecretSource


def by_host(
    secrets: Iterable[tuple[SecretRule, SecretSource]],
) -> Mapping[tuple[str, int], tuple[SecretHeader, ...]]:
    """Return the header fields of each host and port."""
    found: dict[tuple[str, int], tuple[SecretHeader, ...]] = {}
    for rule, source in secrets:
        key = rule.host, rule.port
        found[key] = (*found.get(key, ()), SecretHeader(rule.header, source))
    return found
