"""Where a request carries its token: a header or a subprotocol, never the query; pure."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Iterable, Sequence

from kernelbridge.identity.principal import Refused

MARKER = "kernelbridge"
"""The subprotocol that is chosen: a browser fails a connection of which the server chooses none."""
CARRIER = "kernelbridge.bearer."
"""Begins the subprotocol that carries a token, in base64url. It is never chosen, so it is never echoed."""
LONGEST_TOKEN = 8 << 10
"""Characters of a token. A longer one is refused before anything is decoded."""

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*) *", re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+={0,2}", re.ASCII)
_QUERY_NAMES = frozenset(
    {
        *("token", "accesstoken", "idtoken", "authtoken", "bearer", "bearertoken", "authorization"),
        *("auth", "jwt", "apikey", "key", "secret", "password"),
    }
)


def protocols(headers: Iterable[str]) -> list[str]:
    """Return the subprotocols that a client offers, from all values of Sec-WebSocket-Protocol."""
    return [name for value in headers for name in (part.strip() for part in value.split(",")) if name]


def subprotocol_problem(headers: Sequence[str]) -> str | None:
    """Return why these values of Sec-WebSocket-Protocol cannot be served, or None.

    A token without the marker would leave nothing to choose; one of two headers could be overlooked.
    """
    offered = protocols(headers)
    if not any(name.startswith(CARRIER) for name in offered):
        return None
    if len(headers) > 1 or MARKER not in offered:
        return f"offer the subprotocol {MARKER!r} beside the one with the token, in one Sec-WebSocket-Protocol header"
    return None


def bearer_token(authorization: Sequence[str], offered: Sequence[str], query: Iterable[str]) -> str | Refused | None:
    """Return the token of a request, None if it has none, or why it is refused.

    `authorization` has all values of that header, `offered` the subprotocols, `query` the names of the parameters.
    """
    if any(re.sub(r"[-_]", "", name).lower() in _QUERY_NAMES for name in query):
        return Refused(
            "a token must not be in the URL, which others log: send it in Authorization, and revoke this one"
        )
    if len(authorization) > 1:
        return Refused("the header Authorization was sent more than once")
    try:
        found = {_of_header(value) for value in authorization}
        found |= {_of_subprotocol(name) for name in offered if name.startswith(CARRIER)}
    except ValueError as exc:
        return Refused(str(exc))
    if len(found) > 1:
        return Refused("the request has two different tokens")
    return found.pop() if found else None


def _of_header(value: str) -> str:
    if len(value) > LONGEST_TOKEN + len("Bearer "):
        raise ValueError(f"the token is longer than {LONGEST_TOKEN} characters")
    match = _BEARER.fullmatch(value)
    if match is None:
        raise ValueError("the header Authorization must be `Bearer` and a token")
    return match[1]


def _of_subprotocol(name: str) -> str:
    text = name.removeprefix(CARRIER)
    bare = text.rstrip("=")
    if len(text) <= 2 * LONGEST_TOKEN and _BASE64URL.fullmatch(text) is not None:
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            token = base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4)).decode("ascii")
            if is_token(token):
                return token
    raise ValueError(f"the subprotocol {CARRIER}… must be followed by a token in base64url")


def is_token(text: str) -> bool:
    """Return whether a text has the form of a token."""
    return len(text) <= LONGEST_TOKEN and _TOKEN.fullmatch(text) is not None
