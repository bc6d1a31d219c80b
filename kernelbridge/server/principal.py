"""The user of a request, as the client names it in the query."""

from __future__ import annotations

from urllib.parse import parse_qs

from aiohttp import web

USER_ID_LENGTH = 256


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
    if len(values) > 1 or len(values[0]) > USER_ID_LENGTH or not values[0].isprintable():
        raise web.HTTPBadRequest(
            text=f"user_id must be sent once, as 1-{USER_ID_LENGTH} printable characters in UTF-8.\n",
        )
    return values[0]
