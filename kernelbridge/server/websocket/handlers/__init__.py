"""One handler for each request, in one table.

Later messages of a connection wait until the handler of the one before returns. So a handler awaits only what the
protocol orders that way (file operations); the session's lanes do the rest. A request that may need the sandbox is
handled when the sandbox is awake.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kernelbridge.server.websocket.handlers import cells, commands, files, interpreter, login, sessions, terminals
from kernelbridge.server.websocket.handlers.request_context import Handler, PrincipalHandler

HANDLERS: Mapping[type, Handler] = MappingProxyType(
    {**cells.HANDLERS, **interpreter.HANDLERS, **commands.HANDLERS, **terminals.HANDLERS, **files.HANDLERS}
)
"""By the type of the message."""

WITHOUT_SANDBOX = frozenset(files.HANDLERS)
"""Requests that do not need the sandbox."""

PRINCIPAL_HANDLERS: Mapping[type, PrincipalHandler] = MappingProxyType({**login.HANDLERS, **sessions.HANDLERS})
"""Requests that do not open a session by themselves."""
