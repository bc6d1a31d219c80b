"""What is done for each request of a session: one handler for each message, in one table.

A handler that is awaited to its end keeps every later message of its connection waiting; so it awaits
only what the protocol orders that way (file operations), and leaves the rest to the session's lanes. Whatever
may need the sandbox of a session is handled when that is awake.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kernelbridge.server.websocket.handlers import cells, commands, files, interpreter, sessions, terminals
from kernelbridge.server.websocket.handlers.request_context import Handler, PrincipalHandler

HANDLERS: Mapping[type, Handler] = MappingProxyType(
    {**cells.HANDLERS, **interpreter.HANDLERS, **commands.HANDLERS, **terminals.HANDLERS, **files.HANDLERS}
)
"""By the type of the message."""

WITHOUT_SANDBOX = frozenset(files.HANDLERS)
"""Those that a paused sandbox does not concern."""

PRINCIPAL_HANDLERS: Mapping[type, PrincipalHandler] = MappingProxyType(dict(sessions.HANDLERS))
"""Those that no session has to be opened for."""
