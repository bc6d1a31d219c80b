"""The principal of a request, and the `user_id` of its query."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs

from aiohttp import web

from kernelbridge.identity.logins import Login
from kernelbridge.identity.principal import EXPECTED_NAME, Identity, Principal, is_name


@dataclass(frozen=True, slots=True)
class Anyone:
    """The admission of a request to a server without authentication: its principal is the one that it names."""


@dataclass(frozen=True, slots=True)
class Unproven:
    """The admission of a WebSocket that has to log in with its first message."""


Admission = Anyone | Login | Unproven

ADMISSION: web.RequestKey[Admission] = web.RequestKey("admission", object)  # type: ignore[arg-type]
"""Set on each request that is handled."""


def login_of(request: web.Request) -> Login:
    """Return the login of a request. Raises `HTTPBadRequest`, and `HTTPUnauthorized` for one that has none."""
    admission = request.get(ADMISSION)
    if isinstance(admission, Anyone):
        return Login(Identity(Principal(user_id(request))))
    if isinstance(admission, Login):
        return admission
    raise web.HTTPUnauthorized(text="You are not logged in.\n")


def proven(request: web.Request) -> Principal | None:
    """Return the principal that a credential proves; None for a bare `user_id`, which is no proof."""
    admission = request.get(ADMISSION)
    return admission.identity.principal if isinstance(admission, Login) else None


def user_id(request: web.Request) -> str | None:
    """Return the `user_id` of the query, or None without one. Raises `HTTPBadRequest`."""
    try:
        query = parse_qs(request.rel_url.raw_query_string, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        # Decoded leniently, different names that are not UTF-8 would become the same user.
        query = {"user_id": ["\ufffd"] * 2}
    values = query.get("user_id", [])
    if not values or values == [""]:
        return None
    if len(values) > 1 or not is_name(values[0]):
        raise web.HTTPBadRequest(text=f"user_id must be sent once, as {EXPECTED_NAME} in UTF-8.\n")
    return values[0]
