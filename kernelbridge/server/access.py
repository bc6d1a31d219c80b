"""Who may talk to the server: the Host and Origin check of every request; pure.

A server on loopback is reachable by every web page that its user opens, and a name that an attacker's DNS
points at 127.0.0.1 ("DNS rebinding") makes such a page same-origin. So the Host
must be a loopback name, and an Origin, which browsers always send with a WebSocket, must be a loopback
origin too, or one that the operator allowed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from ipaddress import ip_address

_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#@\s]+)")


def refusal(hosts: Sequence[str], origins: Sequence[str], allowed: Collection[str]) -> str | None:
    """Say why a request with these Host and Origin header values is refused, or None.

    `allowed` has the operator's origins, e.g. `https://app.example`; their hosts are
    accepted as Host, too, for a proxy that passes it on.
    """
    if len(hosts) != 1 or not _host_allowed(hosts[0], allowed):
        return f"the Host {', '.join(hosts)!r} is not a loopback name; connect to localhost or 127.0.0.1"
    if origins == ["null"]:
        return "the Origin is 'null', as of a page opened from a file; serve the page from http://localhost"
    if len(origins) > 1 or (origins and not _origin_allowed(origins[0], allowed)):
        return f"the Origin {', '.join(origins)!r} is not allowed; --allow-origin lets its pages in"
    return None


def cross_site_refusal(sites: Sequence[str], has_origin: bool) -> str | None:  # noqa: FBT001  a fact, not a choice
    """Say why a request with these Sec-Fetch-Site header values is refused, or None.

    Browsers send no Origin with what a page merely embeds or links to, but they say that another site's page did it.
    """
    if "cross-site" in sites and not has_origin:
        return "a page of another site asks for it; open it from a page of this machine"
    return None


def _host_allowed(host: str, allowed: Collection[str]) -> bool:
    return _is_loopback(host) or any(host.lower() == origin.partition("://")[2] for origin in allowed)


def _origin_allowed(origin: str, allowed: Collection[str]) -> bool:
    if origin.lower() in allowed:
        return True
    found = _ORIGIN.fullmatch(origin)
    return found is not None and _is_loopback(found["authority"])


def _is_loopback(authority: str) -> bool:
    found = _AUTHORITY.fullmatch(authority)
    if found is None or int(found["port"] or 0) > 65535:  # noqa: PLR2004  the largest port
        return False
    host = found["host"].lower()
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
