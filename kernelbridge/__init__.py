"""kernelbridge: a warm Python, in a container, behind one small WebSocket.

`Client` and `AsyncClient`, their results and their errors are imported when they are used first: the server does
without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelbridge.client.asynchronous import AsyncClient, AsyncSession
    from kernelbridge.client.errors import (
        ClientError,
        Closed,
        ConnectionLost,
        LoginRefused,
        OutcomeUnknown,
        RequestRefused,
        SessionLost,
        WaitTimeout,
    )
    from kernelbridge.client.events import Cleared, Display, Output, Started
    from kernelbridge.client.results import (
        Bundle,
        CodeError,
        CommandFailed,
        CommandResult,
        Result,
        RunEnded,
        RunError,
        RunTimeout,
    )
    from kernelbridge.client.synchronous import Client, Session
    from kernelbridge.errors import KernelBridgeError

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "Bundle",
    "Cleared",
    "Client",
    "ClientError",
    "Closed",
    "CodeError",
    "CommandFailed",
    "CommandResult",
    "ConnectionLost",
    "Display",
    "KernelBridgeError",
    "LoginRefused",
    "OutcomeUnknown",
    "Output",
    "RequestRefused",
    "Result",
    "RunEnded",
    "RunError",
    "RunTimeout",
    "Session",
    "SessionLost",
    "Started",
    "WaitTimeout",
]

_HOMES = {
    "client.asynchronous": {"AsyncClient", "AsyncSession"},
    "client.events": {"Cleared", "Display", "Output", "Started"},
    "client.errors": {
        "ClientError",
        "Closed",
        "ConnectionLost",
        "LoginRefused",
        "OutcomeUnknown",
        "RequestRefused",
        "SessionLost",
        "WaitTimeout",
    },
    "client.synchronous": {"Client", "Session"},
    "errors": {"KernelBridgeError"},
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "client.results")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
