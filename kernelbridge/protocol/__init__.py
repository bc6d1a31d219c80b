"""The documented WebSocket protocol and its extensions as typed messages; pure, no I/O."""

from kernelbridge.protocol.codec import dump, parse
from kernelbridge.protocol.messages import ClientMessage, ServerMessage, SessionRequest
from kernelbridge.protocol.schema import json_schema

__all__ = ["ClientMessage", "ServerMessage", "SessionRequest", "dump", "json_schema", "parse"]
