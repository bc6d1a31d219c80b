"""JSON Schema of every message, for `GET /api/schema`."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from kernelbridge.protocol.base import PROTOCOL_VERSION
from kernelbridge.protocol.cells import MimeBundle
from kernelbridge.protocol.messages import ClientMessage, ServerMessage


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the protocol: `$defs` has every message, and a union of those that each side sends."""
    client, server = get_args(ClientMessage), get_args(ServerMessage)
    references, components = msgspec.json.schema_components(
        (*client, *server, MimeBundle), ref_template="#/$defs/{name}"
    )
    components["ExecutionResult"]["properties"]["results"] = {"type": "array", "items": {"$ref": "#/$defs/MimeBundle"}}
    for definition in components.values():
        # The server's decoder refuses unknown fields only to find them: they are allowed.
        if definition.get("additionalProperties") is False:
            del definition["additionalProperties"]
    refs = list(references)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kernelbridge WebSocket protocol",
        "version": PROTOCOL_VERSION,
        "oneOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": {
            "ClientMessage": {"oneOf": refs[: len(client)]},
            "ServerMessage": {"oneOf": refs[len(client) : len(client) + len(server)]},
            **components,
        },
    }
