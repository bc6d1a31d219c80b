"""Frames to messages and back.

A frame that is a message of the protocol is decoded once. One that the decoder refuses is looked at again, to find out
whose it is, whether an unknown field is all that is wrong, and what to say about it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast, get_args

import msgspec
from msgspec import Raw

from kernelbridge.errors import BadRequest
from kernelbridge.protocol import unknown
from kernelbridge.protocol.expectations import expectation, received
from kernelbridge.protocol.messages import ClientMessage, ServerMessage
from kernelbridge.protocol.sessions import OpenSession

LARGE = 1 << 19
"""Bytes of a frame above which it is read in steps (`reading`): each may take tens of milliseconds."""

_KINDS: Mapping[str, type[msgspec.Struct]] = MappingProxyType(
    {str(kind.__struct_config__.tag): kind for kind in get_args(ClientMessage)}
)
_TYPES = ", ".join(sorted(_KINDS))
_DECODER: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_LENIENT = unknown.LenientDecoder(_KINDS)
_ENCODER = msgspec.json.Encoder()
_ORDINARY = re.compile(
    rb'\s*\{\s*"type"\s*:\s*"(?:%s)"' % b"|".join(tag.encode() for tag in _KINDS if _KINDS[tag] is not OpenSession)
)
"""The beginning of a frame that is decoded at once, also if it is large."""
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_MALFORMED = re.compile(r"^JSON is malformed: (?P<what>[a-z ,'{}\[\]:\"]+) \(byte (?P<byte>[0-9]+)\)$")
_SURROGATES = re.compile("[\ud800-\udfff]")
_CUT_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u).{0,5}$", re.DOTALL)
"""The end of a frame in which the second half of a surrogate pair is missing: the decoder finds no room for it."""


class _Envelope(msgspec.Struct, rename="camel"):
    """What a frame says of itself, whatever is wrong with the rest of it."""

    tag: Raw = msgspec.field(default=Raw(), name="type")
    session_id: Raw = Raw()
    request_id: Raw = Raw()

    @property
    def kind(self) -> type[msgspec.Struct] | None:
        return _KINDS.get(_short_text(self.tag, 128) or "")


_envelope = msgspec.json.Decoder(_Envelope)


def read(frame: str | bytes, *, strict: bool = False) -> tuple[ClientMessage, list[str]]:
    """Read one text frame at once; see `reading`."""
    steps = reading(frame, strict=strict)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast("tuple[ClientMessage, list[str]]", end.value)


def reading(frame: str | bytes, *, strict: bool = False) -> Generator[None, None, tuple[ClientMessage, list[str]]]:
    """Read one text frame in steps: none looks at it more than once.

    Returns its message, and a warning for each field that the protocol does not have. Raises `BadRequest` that names
    the field and what was expected, with the warnings and the ids of the request; with `strict` also for an unknown
    field.
    """
    data = b""
    envelope = _Envelope()
    try:
        data = frame.encode() if isinstance(frame, str) else frame
        if len(data) > LARGE and not _ORDINARY.match(data):
            envelope = _envelope.decode(data)
            _check_large(envelope)
            yield
        try:
            return _DECODER.decode(data), []
        except msgspec.ValidationError as exc:
            refusal = exc
        yield
        envelope = _envelope.decode(data)
        yield
        return (yield from _read_again(data, envelope, refusal, strict=strict))
    except msgspec.ValidationError as exc:
        raise BadRequest("The frame is not a JSON object", received(str(exc)), code="invalid_message") from exc
    except msgspec.DecodeError as exc:
        raise BadRequest("The frame is not valid JSON", _syntax(exc, data), code="invalid_json") from exc
    except UnicodeError as exc:
        raise BadRequest("The frame is not valid Unicode text", "expected UTF-8", code="invalid_json") from exc
    except RecursionError as exc:
        raise BadRequest("The frame is nested too deeply", "send flat messages", code="invalid_json") from exc
    except BadRequest as exc:
        exc.session_id = _short_text(envelope.session_id, 128)  # the longest that a request may have
        exc.request_id = _short_text(envelope.request_id, 256)
        raise


def dump(message: ServerMessage) -> bytes:
    """Write one message as UTF-8 JSON. Lone surrogates, which no UTF-8 can carry, become U+FFFD."""
    try:
        return _ENCODER.encode(message)
    except UnicodeError:
        return _ENCODER.encode(_without_surrogates(msgspec.to_builtins(message)))


def _check_large(envelope: _Envelope) -> None:
    """Refuse a large frame that would cost much to decode: a `type` or an `env` of megabytes."""
    if envelope.kind is None:
        raise _wrong_type(envelope)
    if envelope.kind is OpenSession:
        raise BadRequest("The request is too large", f"an open_session has at most {LARGE} bytes")


def _wrong_type(envelope: _Envelope) -> BadRequest:
    expected = f"expected one of {_TYPES}"
    if not memoryview(envelope.tag):
        return BadRequest("The field 'type' is missing", expected, field="type", code="missing_field")
    return BadRequest("The field 'type' names no known message", expected, field="type", code="unknown_type")


def _read_again(
    frame: bytes, envelope: _Envelope, refusal: msgspec.ValidationError, *, strict: bool
) -> Generator[None, None, tuple[ClientMessage, list[str]]]:
    """Read a frame that the decoder refused: accept it if unknown fields are all that is wrong, else explain."""
    if (kind := envelope.kind) is None:
        raise _wrong_type(envelope)
    fields = unknown.unknown_fields(frame, kind, refusal)
    warnings = unknown.warnings(fields, kind)
    if not unknown.complains(refusal):
        raise _explained(refusal, envelope, kind, warnings) from refusal
    if strict:
        path, near = fields[0]
        raise BadRequest(
            f"The field {unknown.quoted(path)} is unknown",
            unknown.advice(near, kind),
            field=path[: unknown.NAME_LENGTH],
            code="unknown_field",
        )
    yield
    try:
        return cast("ClientMessage", _LENIENT.decode(frame)), warnings
    except msgspec.ValidationError as exc:
        raise _explained(exc, envelope, kind, warnings) from exc


def _explained(
    refusal: msgspec.ValidationError, envelope: _Envelope, kind: type[msgspec.Struct], warnings: Sequence[str]
) -> BadRequest:
    """Say what is wrong without the decoder's words, which are for programmers in Python."""
    text = str(refusal)
    path = found["path"].partition("[")[0] if (found := _PATH.search(text, max(0, len(text) - 200))) else ""
    if missing := _MISSING.match(text):
        field = ".".join(filter(None, (path, missing["field"])))
        error = BadRequest(f"The field {field!r} is missing", "it is required", field=field, code="missing_field")
    elif path == "type":  # it comes twice, and the envelope has the second one
        error = _wrong_type(envelope)
    else:
        reason = expectation(kind, path, text)
        error = BadRequest(f"The field {path!r} is wrong", reason, field=path, code="invalid_field")
    error.warnings = tuple(warnings)
    return error


def _syntax(exc: msgspec.DecodeError, frame: bytes) -> str:
    """Say where a frame stops being JSON."""
    found = _MALFORMED.match(str(exc))
    if "surrogate" in str(exc) or "hex escape" in str(exc) or (found is None and _CUT_PAIR.search(frame[-11:])):
        return "a string has half of a surrogate pair (\\ud800-\\udfff), which is not Unicode text"
    return "it ends too early" if found is None else f"{found['what']} at byte {found['byte']}"


def _short_text(value: Raw, longest: int) -> str | None:
    if len(memoryview(value)) > 6 * longest + 2:  # each character written as `\u0000`, and the quotes
        return None
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
