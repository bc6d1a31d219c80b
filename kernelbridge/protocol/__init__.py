"""The documented WebSocket protocol and its extensions, as typed messages; pure."""

from kernelbridge.protocol.codec import dump
from kernelbridge.protocol.messages import ClientMessage, PrincipalRequest, ServerMessage, SessionRequest
from kernelbridge.protocol.schema import json_schema

__all__ = ["ClientMessage", "PrincipalRequest", "ServerMessage", "SessionRequest", "dump", "json_schema"]
