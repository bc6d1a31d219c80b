"""What a proxy in front of the server says, and which peers are believed; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from kernelbridge.identity.principal import EXPECTED_NAME, Principal, Refused, is_name

UNIX: Literal["unix"] = "unix"
"""In place of an address: the peers of the server's UNIX socket."""

TrustedPeer = IPv4Network | IPv6Network | Literal["unix"]
Address = IPv4Address | IPv6Address

_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[0-9.]+))(?::[0-9]+)?", re.ASCII)
_IPV6_PREFIX = 64
_HOPS = 32
"""Addresses of X-Forwarded-For that are looked at."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why a request is not one that a proxy should pass on. The answer is 400."""

    reason: str


def parse_peer(text: str) -> TrustedPeer:
    """Read an address, a network such as `10.0.0.0/8`, or `unix`. Raises `ValueError`."""
    return UNIX if text == UNIX else ip_network(text)


def is_trusted(peer: str, trusted: Iterable[TrustedPeer]) -> bool:
    """Return whether a peer (an address, or `unix`) is one of these."""
    if peer == UNIX:
        return UNIX in trusted
    address = _address(peer)
    return address is not None and any(one != UNIX and address in one for one in trusted)


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[TrustedPeer]) -> str:
    """Return the address that a request comes from, for counting failures.

    `forwarded` has all values of X-Forwarded-For. They are walked from the right: each address was added by the one
    after it, so it is believed as long as that one is trusted.
    """
    hops = [hop.strip() for value in forwarded for hop in value.split(",")][-_HOPS:]
    current = peer
    while hops and is_trusted(current, trusted):
        hop = hops.pop()
        found = _PORT.fullmatch(hop)
        address = _address((found["v6"] or found["v4"]) if found else hop)
        if address is None:
            break
        current = str(address)
    return current


def bucket_of(address: str) -> str:
    """Return what an address is counted as: an IPv6 client has a whole /64 for itself."""
    parsed = _address(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def proxied_name(headers: Iterable[tuple[str, str]], name: str) -> Principal | Refused | Malformed:
    """Return the principal that the header `name` of a trusted proxy's request names.

    `headers` has all headers. A header that some servers read as `name`, because they take `_` for `-`, is refused: a
    proxy that removes `name` from what clients send may have passed it on.
    """
    values = []
    for key, value in headers:
        if key.lower() == name.lower():
            values.append(value)
        elif key.lower().replace("_", "-") == name.lower().replace("_", "-"):
            return Malformed(f"the request has a header that looks like {name} and is not; the proxy must remove it")
    if not values:
        return Refused(f"the proxy did not say who the user is: the header {name} is absent")
    if len(values) > 1:
        return Malformed(f"the header {name} was sent more than once")
    value = values[0].strip()
    # A proxy that joins headers writes a comma between them.
    if not is_name(value) or "," in value:
        return Malformed(f"the header {name} must have a name of {EXPECTED_NAME} in UTF-8, without commas")
    return Principal(value)


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
