"""Frames to messages and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, cast, get_args

import msgspec
from msgspec import Raw

from kernelbridge.errors import BadRequest
from kernelbridge.protocol import unknown
from kernelbridge.protocol.expectations import came, expectation
from kernelbridge.protocol.messages import ClientMessage, ServerMessage

_KINDS: Mapping[str, type[msgspec.Struct]] = MappingProxyType(
    {str(kind.__struct_config__.tag): kind for kind in get_args(ClientMessage)}
)
_TYPES = ", ".join(sorted(_KINDS))
_DECODER: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_LENIENT = unknown.LenientDecoder(_KINDS)
_ENCODER = msgspec.json.Encoder()
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_MALFORMED = re.compile(r"^JSON is malformed: (?P<what>[a-z ,'{}\[\]:\"]+) \(byte (?P<byte>[0-9]+)\)$")
_SURROGATES = re.compile("[\ud800-\udfff]")
_HALF_A_PAIR = "a string holds half of a surrogate pair (\\ud800-\\udfff), which is not Unicode text"


class _Ids(msgspec.Struct, rename="camel"):
    session_id: Raw = Raw(b"null")
    request_id: Raw = Raw(b"null")


_ids = msgspec.json.Decoder(_Ids)


def parse(frame: str | bytes) -> ClientMessage:
    """Read one text frame; raises `BadRequest` that names the field and what was expected."""
    return read(frame)[0]


def read(frame: str | bytes, *, strict: bool = False) -> tuple[ClientMessage, list[str]]:
    """Read one text frame; give its message, and a warning for each field in it that the protocol does not have.

    Raises `BadRequest` that names the field and what was expected, with the warnings; with `strict` for an unknown
    field as well.
    """
    try:
        return _DECODER.decode(frame), []
    except msgspec.ValidationError as exc:
        return _read_again(frame, exc, strict=strict)
    except msgspec.DecodeError as exc:
        raise BadRequest("The frame is not valid JSON", _syntax(exc, frame), code="invalid_json") from exc
    except UnicodeError as exc:
        raise BadRequest("The frame is not valid Unicode text", _HALF_A_PAIR, code="invalid_json") from exc
    except RecursionError as exc:
        raise BadRequest("The frame is nested too deeply", "send flat messages", code="invalid_json") from exc


def identify(frame: str | bytes) -> tuple[str | None, str | None]:
    """Give the `(sessionId, requestId)` of a frame that `read` refused, as far as they are readable strings."""
    try:
        found = _ids.decode(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None, None
    return _short_text(found.session_id, 128), _short_text(found.request_id, 256)  # as they are declared


def dump(message: ServerMessage) -> bytes:
    """Write one message as UTF-8 JSON. Lone surrogates, which no UTF-8 can carry, become U+FFFD."""
    try:
        return _ENCODER.encode(message)
    except UnicodeError:
        return _ENCODER.encode(_without_surrogates(msgspec.to_builtins(message)))


def _read_again(
    frame: str | bytes, refusal: msgspec.ValidationError, *, strict: bool
) -> tuple[ClientMessage, list[str]]:
    """Read a frame that was refused, for an unknown field perhaps."""
    kind: type[msgspec.Struct] | None = None
    fields: list[tuple[str, str]] = []
    try:
        kind = unknown.kind_of(frame, _KINDS)
        if kind is not None:
            fields = unknown.unknown_fields(frame, kind, refusal)
        if kind is None or not unknown.complains(refusal):
            _explain(refusal, kind, fields)
        if strict:
            path, near = fields[0]
            raise BadRequest(
                f"The field {unknown.shown(path)} is unknown",
                unknown.advice(near, kind),
                field=path[: unknown.NAME_LENGTH],
                code="unknown_field",
            )
        message = cast("ClientMessage", _LENIENT.decode(frame))
    except msgspec.ValidationError as exc:
        _explain(exc, kind, fields)
    except msgspec.DecodeError as exc:
        raise BadRequest("The frame is not valid JSON", _syntax(exc, frame), code="invalid_json") from exc
    except RecursionError as exc:
        raise BadRequest("The frame is nested too deeply", "send flat messages", code="invalid_json") from exc
    return message, unknown.warnings(fields, kind)


def _explain(
    exc: msgspec.ValidationError, kind: type[msgspec.Struct] | None, fields: list[tuple[str, str]]
) -> NoReturn:
    """Say what is wrong, without a word of the decoder's, which speaks to programmers in Python."""
    text = str(exc)
    path = found.group("path").partition("[")[0] if (found := _PATH.search(text)) else ""
    warnings = [] if kind is None else unknown.warnings(fields, kind)
    if missing := _MISSING.match(text):
        field = ".".join(filter(None, (path, missing["field"])))
        reason = f"expected one of {_TYPES}" if field == "type" else "it is required"
        error = BadRequest(f"The field {field!r} is missing", reason, field=field, code="missing_field")
    elif path == "type" or (kind is None and path):
        error = BadRequest(
            "The field 'type' names no known message", f"expected one of {_TYPES}", field="type", code="unknown_type"
        )
    elif kind is None or not path:
        error = BadRequest("The frame is not a JSON object", came(text), code="invalid_message")
    else:
        reason = expectation(kind, path, text)
        error = BadRequest(f"The field {path!r} is wrong", reason, field=path, code="invalid_field")
    error.warnings = tuple(warnings)
    raise error from exc


def _syntax(exc: msgspec.DecodeError, frame: str | bytes) -> str:
    try:
        json.loads(frame, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        found = _MALFORMED.match(str(exc))
        return "it ends too early" if found is None else f"{found['what']} at byte {found['byte']}"
    # The one thing that the standard library then reads and msgspec does not.
    return _HALF_A_PAIR


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _short_text(value: Raw, longest: int) -> str | None:
    try:
        text = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return text if isinstance(text, str) and len(text) <= longest else None


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
