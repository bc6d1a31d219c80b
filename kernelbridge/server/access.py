"""Checks of every request and of the opening handshake of a WebSocket; pure.

Every web page that a user opens can reach a server on loopback. If an attacker's DNS points a name at 127.0.0.1 ("DNS
rebinding"), such a page is even same-origin. So the Host must be a loopback name, and an Origin, which browsers always
send with a WebSocket, must be a loopback origin or one that the operator allowed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol

_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_KEY_BYTES = 16
_PORTS = 65536
_LONGEST_QUOTE = 256
"""Characters of what a stranger sent that are repeated in an answer and in logs."""
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#@\s]+)")


class Problem(NamedTuple):
    """Why a WebSocket cannot be opened."""

    status: int
    reason: str


class Headers(Protocol):
    """A request's headers; names in any case."""

    def getall(self, name: str, default: list[str], /) -> list[str]:
        """Return all values of a header."""
        ...


def handshake_problem(method: str, version: tuple[int, int], headers: Headers) -> Problem | None:
    """Return why a request with `Upgrade: websocket` cannot open a WebSocket (RFC 6455, 4.2.1), or None."""
    if method != "GET" or version < (1, 1):
        return Problem(400, "a WebSocket is opened with GET and HTTP/1.1")
    if "upgrade" not in _tokens(headers.getall("Connection", [])):
        return Problem(400, "the Connection header must contain Upgrade")
    if headers.getall("Content-Length", ["0"]) != ["0"] or headers.getall("Transfer-Encoding", []):
        return Problem(400, "a request that opens a WebSocket must not have a body")
    if headers.getall("Sec-WebSocket-Version", []) != ["13"]:
        return Problem(426, "the Sec-WebSocket-Version must be 13")
    keys = headers.getall("Sec-WebSocket-Key", [])
    if len(keys) != 1 or not _is_key(keys[0]):
        return Problem(400, f"the Sec-WebSocket-Key must be {_KEY_BYTES} bytes in base64, sent once")
    return None


def refusal(
    hosts: Sequence[str],
    origins: Sequence[str],
    allowed: Collection[str],
    *,
    addresses: bool = False,
    local_pages: bool = True,
) -> str | None:
    """Return why a request with these values of Host and Origin is refused, or None.

    `allowed` has the operator's origins, such as `https://app.example`. Their hosts are also accepted as Host, because
    a proxy may pass it on. With `addresses`, for a server that listens beyond loopback, a Host may be any IP address:
    DNS cannot point an address elsewhere. Without `local_pages`, for a server behind a proxy that logs browsers in, a
    loopback origin must be the Host itself: other pages of the user's machine would act as the user.
    """
    if len(hosts) != 1 or not (_host_allowed(hosts[0], allowed) or (addresses and _ip_of(hosts[0]) is not None)):
        return (
            f"the Host {_quoted(hosts)} is not a loopback name; connect to localhost or 127.0.0.1, or allow the"
            " name with --allow-origin https://NAME"
        )
    if origins == ["null"]:
        return "the Origin is 'null', as for a page opened from a file; serve the page from http://localhost"
    of = None if local_pages else hosts[0]
    if len(origins) > 1 or (origins and not _origin_allowed(origins[0], allowed, of)):
        return f"the Origin {_quoted(origins)} is not allowed; --allow-origin allows it"
    return None


def cross_site_refusal(sites: Sequence[str], *, has_origin: bool) -> str | None:
    """Return why a request with these values of Sec-Fetch-Site is refused, or None.

    Browsers send no Origin for what a page only embeds or links to, but Sec-Fetch-Site says that the page is of another
    site.
    """
    if not has_origin and any(site.strip().lower() == "cross-site" for site in sites):
        return "the request comes from a page of another site; open the file from a page of this machine"
    return None


def _quoted(values: Sequence[str]) -> str:
    text = ", ".join(values)
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…")


def _tokens(values: Sequence[str]) -> set[str]:
    return {token.strip().lower() for value in values for token in value.split(",")}


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def _is_ipv6(literal: str) -> bool:
    try:
        IPv6Address(literal.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _host_allowed(host: str, allowed: Collection[str]) -> bool:
    return _is_loopback(host) or any(host.lower() == origin.partition("://")[2] for origin in allowed)


def _origin_allowed(origin: str, allowed: Collection[str], of: str | None) -> bool:
    """Return whether an origin is allowed: one of the operator's, or of loopback and, if that is given, of a host."""
    if origin.lower() in allowed:
        return True
    found = _ORIGIN.fullmatch(origin)
    if found is None or not _is_loopback(found["authority"]):
        return False
    return of is None or found["authority"].lower() == of.lower()


def _is_loopback(authority: str) -> bool:
    host = _host_of(authority)
    if host == "localhost":
        return True
    address = _ip_of(authority)
    return address is not None and address.is_loopback


def _host_of(authority: str) -> str | None:
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None or int(found["port"] or 0) >= _PORTS else found["host"].lower()


def _ip_of(authority: str) -> IPv4Address | IPv6Address | None:
    host = _host_of(authority)
    if host is None or (host.startswith("[") and not _is_ipv6(host)):
        return None
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def origin_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return what lets a page read the answer to a request with these headers; its origin has been checked."""
    answer = {"Vary": "Origin"}
    if "Origin" in headers:
        answer["Access-Control-Allow-Origin"] = headers["Origin"]
        answer["Access-Control-Expose-Headers"] = "Accept-Ranges, Content-Encoding, Content-Range, ETag"
    return answer
