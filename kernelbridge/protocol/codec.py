"""Frames to messages and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

import msgspec

from kernelbridge.errors import BadRequest
from kernelbridge.protocol.messages import ClientMessage, ServerMessage

_DECODER: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_LOOSE = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()
_TYPES = tuple(sorted(kind.__struct_config__.tag for kind in get_args(ClientMessage)))
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_JSON_NAMES = (("`str | null`", "a string or null"), ("`str`", "a string"), ("`object`", "an object"), ("`", ""))
_PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "sessionId": "expected 1-128 characters of letters, digits, '.', '_', '-'",
        "terminalId": "expected 1-64 characters of letters, digits, '.', '_', '-'",
        "ifMatch": "expected a sha256: 64 lower-case hexadecimal digits",
        "image": "expected the name of a container image",
        "kernel": "expected the name of a kernelspec: 1-128 characters of letters, digits, '.', '_', '-'",
    }
)
"""What a regular expression in the schema means."""
_SURROGATES = re.compile("[\ud800-\udfff]")


def parse(frame: str | bytes) -> ClientMessage:
    """Read one text frame; raises `BadRequest` that names the field and what was expected."""
    try:
        return _DECODER.decode(frame)
    except msgspec.ValidationError as exc:
        raise _explain(exc) from exc
    except msgspec.DecodeError as exc:
        raise BadRequest("The frame is not valid JSON", _syntax(exc, frame), code="invalid_json") from exc
    except UnicodeError as exc:
        raise BadRequest("The frame is not valid Unicode text", str(exc), code="invalid_json") from exc
    except RecursionError as exc:
        raise BadRequest("The frame is nested too deeply", "send flat messages", code="invalid_json") from exc


def identify(frame: str | bytes) -> tuple[str | None, str | None]:
    """Give the `(sessionId, requestId)` of a frame that `parse` refused, as far as they are readable strings."""
    try:
        message = _LOOSE.decode(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None, None
    if not isinstance(message, dict):
        return None, None
    session_id, request_id = message.get("sessionId"), message.get("requestId")
    return (
        session_id if isinstance(session_id, str) and len(session_id) <= 128 else None,  # noqa: PLR2004  the documented length
        request_id if isinstance(request_id, str) and len(request_id) <= 256 else None,  # noqa: PLR2004  as declared
    )


def dump(message: ServerMessage) -> bytes:
    """Write one message as UTF-8 JSON. Lone surrogates, which no UTF-8 can carry, become U+FFFD."""
    try:
        return _ENCODER.encode(message)
    except UnicodeError:
        return _ENCODER.encode(_without_surrogates(msgspec.to_builtins(message)))


def _explain(exc: msgspec.ValidationError) -> BadRequest:
    text = str(exc)
    path = found.group("path") if (found := _PATH.search(text)) else ""
    what = _PATH.sub("", text)
    if missing := _MISSING.match(what):
        field = ".".join(filter(None, (path, missing.group("field"))))
        if field == "type":
            return BadRequest(
                "The field 'type' is missing", f"expected one of {', '.join(_TYPES)}", field=field, code="missing_field"
            )
        return BadRequest(f"The field {field!r} is missing", "it is required", field=field, code="missing_field")
    if path == "type":
        return BadRequest(
            "The field 'type' names no known message",
            f"expected one of {', '.join(_TYPES)}",
            field="type",
            code="unknown_type",
        )
    if not path:
        return BadRequest("The frame is not a JSON object", _expectation("", what), code="invalid_message")
    return BadRequest(f"The field {path!r} is wrong", _expectation(path, what), field=path, code="invalid_field")


def _syntax(exc: msgspec.DecodeError, frame: str | bytes) -> str:
    try:
        json.loads(frame, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return str(exc)
    # The one thing that the standard library then reads and msgspec does not.
    return "a string holds half of a surrogate pair (\\ud800-\\udfff), which is not Unicode text"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _expectation(field: str, what: str) -> str:
    if "matching regex" in what:
        return _PATTERNS.get(field, "expected a name without control characters")
    if "enum value" in what and field == "encoding":
        return "expected 'utf-8' or 'base64'"
    for name, word in _JSON_NAMES:
        what = what.replace(name, word)
    return what[:1].lower() + what[1:]


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
