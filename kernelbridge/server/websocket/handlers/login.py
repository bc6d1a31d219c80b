"""`authenticate` on an open connection: its client stays logged in with a new token."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET

from kernelbridge.errors import Unauthorized
from kernelbridge.identity.principal import Identity
from kernelbridge.protocol.base import timestamp
from kernelbridge.protocol.messages import Authenticate, Authenticated
from kernelbridge.server.websocket.handlers.request_context import Client, PrincipalHandler, echoed


async def authenticate(client: Client, message: Authenticate, warnings: list[str]) -> None:
    """Renew the login. A token that is refused ends the connection."""
    try:
        identity = client.renew_login(message.token)
    except Unauthorized as error:
        client.refuse_login(error)
        return
    client.send(authenticated(identity, message, warnings))


def authenticated(identity: Identity, message: Authenticate, warnings: list[str]) -> Authenticated:
    """Return the answer to an `authenticate` that was accepted."""
    return Authenticated(
        user_id=identity.principal.subject,
        expires=None if identity.expires is None else timestamp(identity.expires),
        request_id=echoed(message.request_id),
        warnings=warnings or UNSET,
    )


HANDLERS: Mapping[type, PrincipalHandler] = {Authenticate: authenticate}
