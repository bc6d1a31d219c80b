"""Names and addresses of hosts: their one canonical form, and which addresses are not public; pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
"""A last label that makes programs read a whole name as an IPv4 address, however odd: `127.1`, `0x7f000001`."""
_AUTHORITY: Final = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([1-9][0-9]{0,4}))?", re.ASCII)
_LONGEST_NAME: Final = 253
_LARGEST_PORT: Final = 65535

_SPECIAL_4: Final = tuple(
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "metadata"),  # of Azure's machines, and public by its number only
        ("169.254.0.0/16", "link-local"),  # and the metadata of most clouds
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_SPECIAL_6: Final = tuple(
    (IPv6Network(network), kind)
    for network, kind in (
        ("::1/128", "loopback"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("64:ff9b:1::/48", "private"),
        ("2001::/23", "reserved"),  # Teredo, among others
        ("2001:db8::/32", "reserved"),
        ("3fff::/20", "reserved"),
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_EMBEDDING: Final = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
    (IPv6Network("::/96"), 0),  # IPv4-compatible
)
"""Networks whose addresses have an IPv4 address in them, and how many bits follow it."""


class BadHostError(ValueError):
    """Text that is not the name or the address of a host, or not one in a form that everybody reads alike."""


def canonical_host(text: str) -> str:
    """Return the form of a host that is compared and dialled: lower case, without a final dot and without brackets.

    An address of version 6 must be in brackets. Raises `BadHostError`, also for the odd forms of IPv4 addresses and for
    names that are not ASCII.
    """
    if not text.isascii():
        raise BadHostError("it is not ASCII")
    if text.startswith("["):
        return _canonical_ipv6(text)
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise BadHostError("it is not a host name")
    if _NUMBER.fullmatch(labels[-1]) is None:
        return name
    try:
        return str(IPv4Address(name))
    except ValueError as exc:
        raise BadHostError("it is not an IPv4 address in its usual form") from exc


def _canonical_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text[1:-1]) if text.endswith("]") else None
    except ValueError as exc:
        raise BadHostError("it is not an IPv6 address") from exc
    if address is None or address.scope_id is not None:
        raise BadHostError("it is not an IPv6 address without a zone")
    return address.compressed


def split_authority(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Return the canonical host and the port of `host:port`. Raises `BadHostError`, also for a port that is none."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise BadHostError("it is not host:port")
    port = default_port if found[2] is None else int(found[2])
    if port is None or port > _LARGEST_PORT:
        raise BadHostError("its port is missing, or not from 1 to 65535")
    return canonical_host(found[1]), port


def written(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def literal_address(host: str) -> Address | None:
    """Return the address that a canonical host is, or None for a name."""
    if ":" in host:
        return IPv6Address(host)
    return IPv4Address(host) if host.rpartition(".")[2].isdigit() else None


def not_public(address: Address) -> str | None:
    """Return what kind of address it is, if it is not a public one; None for a public one.

    An address that contains an IPv4 address is as public as that.
    """
    if isinstance(address, IPv4Address):
        kind = next((kind for network, kind in _SPECIAL_4 if address in network), None)
        return kind or (None if address.is_global else "reserved")
    if address.scope_id is not None:
        return "link-local"
    if kind := next((kind for network, kind in _SPECIAL_6 if address in network), None):
        return kind
    if (inner := embedded(address)) is not None:
        return not_public(inner)
    return None if address in _GLOBAL_UNICAST and address.is_global else "reserved"


def embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that is in an IPv6 address (mapped, compatible, NAT64, 6to4), or None."""
    for network, bits in _EMBEDDING:
        if address in network:
            return IPv4Address(int(address) >> bits & 0xFFFFFFFF)
    return None
