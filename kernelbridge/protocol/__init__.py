"""The documented WebSocket protocol as typed messages; pure, no I/O."""

from kernelbridge.protocol.codec import dump, parse
from kernelbridge.protocol.messages import (
    ClientMessage,
    Connected,
    ErrorMessage,
    ExecuteCode,
    ExecutionResult,
    Ping,
    Pong,
    SaveFile,
    SaveResult,
    ServerMessage,
    TerminalCommand,
    TerminalOutput,
)
from kernelbridge.protocol.schema import json_schema

__all__ = [
    "ClientMessage",
    "Connected",
    "ErrorMessage",
    "ExecuteCode",
    "ExecutionResult",
    "Ping",
    "Pong",
    "SaveFile",
    "SaveResult",
    "ServerMessage",
    "TerminalCommand",
    "TerminalOutput",
    "dump",
    "json_schema",
    "parse",
]
