"""Jupyter messages as ZeroMQ frames, and back (pure).

On the wire a message is

    [routing id or topic …] <IDS|MSG> signature header parent_header metadata content [buffer …]

(https://jupyter-client.readthedocs.io, "Messaging in Jupyter", protocol 5.3). `Codec.parse` decodes only the header and
the id of the parent. `content` stays bytes until it is decoded as one of the types below: for most messages of a
cell the id of the parent is enough.

A kernel is hostile: it knows the key and may send anything. A message that cannot be read raises `BadFrame` and nothing
else.
"""

from __future__ import annotations

import codecs
import hashlib
import hmac
import json
import math
import re
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

DELIMITER = b"<IDS|MSG>"
PROTOCOL_VERSION = "5.3"
MAX_DEPTH = 200
"""Levels of nesting allowed in the JSON of a MIME bundle: less than the limit of any encoder."""

LARGE = 1 << 18
"""Bytes of content up to which it is decoded at once: 20 ms and 16 MB in the worst case."""
MAX_REPAIRED = 8 << 20
"""Bytes of content up to which it is decoded again, more slowly, if it is not strict JSON."""
MANY = 100_000
"""Values that larger content may be decoded into: each `[],` of a hostile message costs twenty times its bytes."""
LINES = 10_000
"""Elements of a traceback that are read of larger content; usually they are lines."""
NAMES = 1000
"""MIME types that a larger display may have."""
MAX_HEADER = 1 << 16
"""Bytes of a header or parent header."""
_PART = 1 << 18  # bytes of a JSON string that are decoded at once
_AT_ONCE = 100  # texts that are decoded at once
_COUNTED = 1 << 20  # bytes that are searched at once
_LONGEST_ESCAPE = 12  # bytes: a surrogate pair
_LONGEST_EVALUE = 1 << 16  # bytes of the message of a large error that are read; the result shows far fewer

_DIGITS = 4000  # of a whole number; Python reads hardly more, and clients far fewer
_PARTS = 5  # signature, header, parent header, metadata, content
_BETWEEN = re.compile(rb"[\s,]{0,64}")  # what is between two texts of a list that is valid JSON
_INSIDE = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)  # the inside of a string; it always matches, in linear time
_NOTHING, _NULL = msgspec.Raw(b"{}"), msgspec.Raw(b"null")
_T = TypeVar("_T")


class BadFrame(Exception):  # noqa: N818 - named for what was received, like `BadRequest`
    """The kernel sent something that is not a valid Jupyter message. The text follows "it sent"."""


class _Header(msgspec.Struct, frozen=True, gc=False):
    msg_id: str
    msg_type: str


class _Parent(msgspec.Struct, frozen=True, gc=False):
    msg_id: str = ""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One verified message; `metadata` and `content` are undecoded JSON."""

    msg_type: str
    msg_id: str
    parent_id: str
    """The `msg_id` of the request that caused it; empty if there is none."""
    metadata: bytes
    content: bytes


class RawMessage(NamedTuple):
    """All parts of one verified message, as undecoded JSON, for a consumer that speaks the Jupyter protocol."""

    header: bytes
    parent_header: bytes
    metadata: bytes
    content: bytes
    buffers: list[bytes]


class Status(msgspec.Struct, frozen=True, gc=False):
    """Content of `status`."""

    execution_state: str


class Stream(msgspec.Struct, frozen=True, gc=False):
    """Content of `stream`."""

    name: str
    text: str


class Display(msgspec.Struct, frozen=True):
    """Content of `display_data`, `update_display_data` and `execute_result`."""

    data: dict[str, Any]
    metadata: dict[str, Any] | None = None
    transient: dict[str, Any] | None = None

    @property
    def display_id(self) -> str | None:
        """The id by which a later `update_display_data` finds it."""
        found = (self.transient or {}).get("display_id")
        return found if isinstance(found, str) else None


class ClearOutput(msgspec.Struct, frozen=True, gc=False):
    """Content of `clear_output`."""

    wait: bool = False


class Failure(msgspec.Struct, frozen=True):
    """Content of `error`."""

    ename: str | None = None
    evalue: str | None = None
    traceback: list[str] | None = None
    final: bool = msgspec.field(name="kernelbridge_final", default=False)
    """Whether it ends the cell, according to our hooks. The reply repeats it."""


class ExecuteInput(msgspec.Struct, frozen=True, gc=False):
    """Content of `execute_input`, without the code."""

    execution_count: int | None = None


class ExecuteReply(msgspec.Struct, frozen=True):
    """Content of `execute_reply`."""

    status: str
    execution_count: int | None = None
    ename: str | None = None
    evalue: str | None = None
    traceback: list[str] | None = None
    payload: list[dict[str, Any]] | None = None


class ExpressionReply(msgspec.Struct, frozen=True):
    """Content of an `execute_reply` to a request with `user_expressions`."""

    status: str
    user_expressions: dict[str, dict[str, Any]] = {}


class Figures(msgspec.Struct, frozen=True, gc=False):
    """Figures of a cell that has run, from our hooks."""

    cpu_ms: float | None = None
    oom_kills: int = 0


NO_FIGURES = Figures()


class InputRequest(msgspec.Struct, frozen=True, gc=False):
    """Content of `input_request`."""

    prompt: str = ""
    password: bool = False


class KernelInfo(msgspec.Struct, frozen=True):
    """The used part of the content of `kernel_info_reply`."""

    supported_features: list[str] | None = None


class SubshellReply(msgspec.Struct, frozen=True, gc=False):
    """Content of `create_subshell_reply`."""

    status: str
    subshell_id: str | None = None


class CompleteReply(msgspec.Struct, frozen=True):
    """Content of `complete_reply`."""

    status: str = "error"
    matches: list[str] = []
    cursor_start: int = 0
    cursor_end: int = 0
    metadata: msgspec.Raw = _NOTHING


class InspectReply(msgspec.Struct, frozen=True):
    """Content of `inspect_reply`."""

    status: str = "error"
    found: bool = False
    data: msgspec.Raw = _NOTHING


class IsCompleteReply(msgspec.Struct, frozen=True, gc=False):
    """Content of `is_complete_reply`."""

    status: str = "unknown"
    indent: str = ""


class ReplyMetadata(msgspec.Struct, frozen=True):
    """What our hooks add to the metadata of an `execute_reply`."""

    kernelbridge: Figures = NO_FIGURES


class _LargeDisplay(msgspec.Struct, frozen=True):
    data: dict[str, msgspec.Raw]
    metadata: msgspec.Raw = _NOTHING
    transient: msgspec.Raw = _NOTHING


class _LargeStream(msgspec.Struct, frozen=True):
    name: str
    text: msgspec.Raw


class _LargeFailure(msgspec.Struct, frozen=True):
    status: str = "error"
    execution_count: int | None = None
    ename: msgspec.Raw = _NULL
    evalue: msgspec.Raw = _NULL
    traceback: msgspec.Raw = _NULL
    payload: msgspec.Raw = _NULL


_header = msgspec.json.Decoder(_Header)
_parent = msgspec.json.Decoder(_Parent | None)
_decoders: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (
        *(Status, Stream, Display, ClearOutput, Failure, InputRequest),
        *(ExecuteInput, ExecuteReply, ExpressionReply, ReplyMetadata),
        *(KernelInfo, SubshellReply, CompleteReply, InspectReply, IsCompleteReply),
        *(_LargeStream, _LargeDisplay, _LargeFailure),
    )
}


class Codec:
    """Builds, signs, verifies and splits the messages of one kernel incarnation.

    `key` is the connection file's, as bytes; `session` the hexadecimal id of this client.
    """

    def __init__(self, key: bytes, session: str) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)
        self._session = session
        self._count = 0

    def request(
        self,
        msg_type: str,
        content: Any,
        *,
        metadata: dict[str, Any] | None = None,
        subshell: str | None = None,
        parent: str | None = None,
    ) -> tuple[str, list[bytes]]:
        """Return the id and the signed frames of a new request. Raises `ValueError` for text that is not Unicode.

        `subshell` is the id of the subshell that handles it (Jupyter enhancement proposal 91), and `parent` the message
        that it answers.
        """
        self._count += 1
        msg_id = f"{self._session}_{self._count}"
        parts = [
            msgspec.json.encode(
                {
                    "msg_id": msg_id,
                    "session": self._session,
                    "username": "",
                    "date": datetime.now(UTC).isoformat(),
                    "msg_type": msg_type,
                    "version": PROTOCOL_VERSION,
                    **({} if subshell is None else {"subshell_id": subshell}),
                }
            ),
            b"{}" if parent is None else msgspec.json.encode({"msg_id": parent}),
            msgspec.json.encode(metadata) if metadata else b"{}",
            msgspec.json.encode(content),
        ]
        return msg_id, [DELIMITER, self.sign(parts), *parts]

    def sign(self, parts: list[bytes]) -> bytes:
        """Return the hexadecimal HMAC-SHA256 of header, parent header, metadata and content."""
        mac = self._mac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()

    def parse(self, frames: list[bytes]) -> Message:
        """Verify and split one multipart message. Raises `BadFrame`."""
        try:
            at = frames.index(DELIMITER) + 1
        except ValueError:
            raise BadFrame("a message without its delimiter") from None
        if len(frames) < at + _PARTS:
            raise BadFrame("a message with parts missing")
        parts = frames[at + 1 : at + _PARTS]
        if max(len(parts[0]), len(parts[1])) > MAX_HEADER:
            raise BadFrame(f"a message with a header of more than {MAX_HEADER} bytes")
        if not hmac.compare_digest(frames[at], self.sign(parts)):
            raise BadFrame("a message with a wrong signature")
        try:
            header = _header.decode(parts[0])
            parent = _parent.decode(parts[1])
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:  # text that is not UTF-8 is a ValueError
            raise BadFrame(f"a message with an unreadable header: {exc}") from exc
        return Message(
            msg_type=header.msg_type,
            msg_id=header.msg_id,
            parent_id="" if parent is None else parent.msg_id,
            metadata=parts[2],
            content=parts[3],
        )


def raw_message(frames: list[bytes]) -> RawMessage:
    """Return all parts of a message that `Codec.parse` has verified, without copying them."""
    at = frames.index(DELIMITER) + _PARTS
    header, parent_header, metadata, content = frames[at - _PARTS + 2 : at + 1]
    return RawMessage(header, parent_header, metadata, content, frames[at + 1 :])


def decode(raw: bytes, kind: type[_T]) -> _T:
    """Decode content or metadata as one of the types of this module. Raises `BadFrame`.

    Of content larger than `LARGE`, parts may be left out or stay raw, so that it costs little more than its bytes.
    """
    return _run(decoding(raw, kind))


def _run(work: Generator[None, None, _T]) -> _T:
    while True:
        try:
            next(work)
        except StopIteration as exc:
            value: _T = exc.value
            return value


def decoding(raw: bytes, kind: type[_T]) -> Generator[None, None, _T]:
    """Decode as `decode` does; yields often."""
    try:
        value = (yield from _decode_large(raw, kind)) if len(raw) > LARGE else _decode(raw, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise BadFrame(f"a {kind.__name__} message that cannot be read: {exc}") from exc
    if isinstance(value, Display):
        for tree in (value.data, value.metadata):
            check_depth(tree)
    return value  # type: ignore[no-any-return] # the table maps each type to its own decoder


def _decode(raw: bytes, kind: type) -> Any:
    decoder = _decoders[kind]
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as exc:
        if "out of range" not in str(exc):  # that is a number: JSON has no limit for them
            raise
        return decoder.decode(_run(_repair(raw)))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return decoder.decode(_run(_repair(raw)))


def _repair(raw: bytes) -> Generator[None, None, bytes]:
    """Make strict JSON of what correct kernels send, too: a printed file name that is not UTF-8, NaN in a bundle."""
    if len(raw) > LARGE and (len(raw) > MAX_REPAIRED or not _is_simple(raw)):
        raise ValueError("it is neither strict JSON nor small enough to be repaired")
    yield
    text = raw.decode("utf-8", "replace")
    yield
    value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_readable)
    yield
    text = json.dumps(value, ensure_ascii=False)
    yield
    return text.encode("utf-8", "replace")


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _readable(digits: str) -> int | None:
    return int(digits) if len(digits) <= _DIGITS else None


def _is_simple(raw: bytes) -> bool:
    """Whether JSON has at most `MANY` values, according to the number of its commas and brackets."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{") <= MANY


def _decode_large(raw: bytes, kind: type) -> Generator[None, None, Any]:
    try:
        if len(raw) <= MAX_REPAIRED:
            raw = yield from _unicode(raw)
        if kind is Stream:
            stream = yield from _decode_raw(raw, _LargeStream)
            return Stream(stream.name, (yield from _text(stream.text)) or "")
        if kind is Display:
            return (yield from _large_display(raw))
        if kind is ExecuteReply or kind is Failure:
            return (yield from _large_failure((yield from _decode_raw(raw, _LargeFailure)), kind))
        return _decode(b"" if kind is ExpressionReply or kind is KernelInfo else raw, kind)
    except (msgspec.DecodeError, ValueError):
        if kind is Stream:
            return Stream("stderr", f"[{len(raw)} bytes of output that cannot be read were left out]\n")
        if kind is Display:
            return Display({"text/plain": f"<a display of {len(raw)} bytes that cannot be read was left out>"})
        raise


def _decode_raw(raw: bytes, kind: type[_T]) -> Generator[None, None, _T]:
    """Decode the outer level of large JSON; if it is not strict JSON and small enough, repair it first."""
    decoder = _decoders[kind]
    try:
        value: _T = decoder.decode(raw)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        yield
        repaired = yield from _repair(raw)
        yield
        value = decoder.decode(repaired)
    yield
    return value


def _text(raw: msgspec.Raw) -> Generator[None, None, str | None]:
    """Decode a string or null part by part. Raises `msgspec.DecodeError`, or `ValueError` for anything else."""
    data = memoryview(raw)
    if len(data) <= _PART:
        return msgspec.json.decode(raw, type=str | None)
    if bytes(data[:1]) != b'"':
        raise ValueError("it is not a string")
    parts: list[str] = []
    at, end = 1, len(data) - 1
    while at < end:
        part, at = _first_part(data, at, end)
        parts.append(part)
        yield
    return "".join(parts)


def _first_part(data: memoryview, at: int, end: int) -> tuple[str, int]:
    """Decode the next part of the inside of a string. Return it and the start of the following part."""
    last = min(at + _PART, end)
    for cut in range(last, max(last - _LONGEST_ESCAPE, at), -1):
        try:
            return msgspec.json.decode(b'"%b"' % bytes(data[at:cut]), type=str), cut
        except (
            msgspec.DecodeError,
            UnicodeDecodeError,
        ):  # the cut is inside a character or an escape, or invalid
            if last == end:
                raise
    raise ValueError("it is not a string")


def _large_display(raw: bytes) -> Generator[None, None, Display]:
    # Outside of strings, only white space may be between a key and its colon.
    if (yield from _count(raw, b'":', b" :", b"\t:", b"\n:", b"\r:")) > MANY:
        raise ValueError("it has too many parts")
    found = yield from _decode_raw(raw, _LargeDisplay)
    if len(found.data) > NAMES:
        raise ValueError("it has too many MIME types")
    data: dict[str, Any] = {}
    for number, (name, part) in enumerate(found.data.items(), 1):
        if number % _AT_ONCE == 0:
            yield
        # Text is decoded, because `output` shows it; anything else is sent to the client as it is.
        if bytes(memoryview(part)[:1]) == b'"':
            data[name] = yield from _text(part)
        else:
            data[name] = msgspec.Raw((yield from _unicode(part)))
    return Display(
        data,
        msgspec.json.decode(_small(found.metadata), type=dict[str, Any] | None),
        msgspec.json.decode(_small(found.transient), type=dict[str, Any] | None),
    )


def _count(raw: bytes, *sought: bytes) -> Generator[None, None, int]:
    """Count occurrences, except those across the border of two parts that are searched at once."""
    found = 0
    for start in range(0, len(raw), _COUNTED):
        part = raw[start : start + _COUNTED]
        found += sum(map(part.count, sought))
        yield
    return found


def _unicode(raw: bytes | msgspec.Raw) -> Generator[None, None, bytes]:
    """Return JSON as valid UTF-8, which the decoder does not check where it leaves JSON raw."""
    data = memoryview(raw)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts: list[bytes] = []
    for start in range(0, len(data), _PART):
        parts.append(decoder.decode(bytes(data[start : start + _PART]), start + _PART >= len(data)).encode())
        yield
    return b"".join(parts)


def _small(part: msgspec.Raw) -> msgspec.Raw:
    if len(memoryview(part)) > LARGE:
        raise ValueError("its metadata are too large")
    return part


def _large_failure(found: _LargeFailure, kind: type) -> Generator[None, None, ExecuteReply | Failure]:
    ename, evalue = _beginning(found.ename), _beginning(found.evalue)
    traceback = yield from _texts(found.traceback)
    if kind is Failure:
        return Failure(ename or "", evalue, traceback)
    payload = None
    if len(memoryview(found.payload)) <= LARGE:
        payload = msgspec.json.decode(found.payload, type=list[dict[str, Any]] | None)
    return ExecuteReply(found.status, found.execution_count, ename, evalue, traceback, payload)


def _texts(raw: msgspec.Raw) -> Generator[None, None, list[str] | None]:
    """Decode the first `LINES` strings of a list that is valid JSON, or null.

    The decoder is not used, because a hostile list may have millions of values of any type.
    """
    data = memoryview(raw)
    if bytes(data[:1]) != b"[":
        return msgspec.json.decode(raw if len(data) <= LARGE else b"", type=None)
    texts: list[str] = []
    at = _match_end(_BETWEEN, data, 1)
    while data[at] != ord("]"):
        if len(texts) == LINES:
            texts.append("[more lines were left out]")
            break
        if data[at] != ord('"'):
            raise ValueError("it is not a string")
        start, at = at, _match_end(_INSIDE, data, at + 1)
        while data[at] != ord('"'):
            yield
            at = _match_end(_INSIDE, data, at)
        at += 1
        texts.append((yield from _text(msgspec.Raw(data[start:at]))) or "")
        if len(texts) % _AT_ONCE == 0:
            yield
        at = _match_end(_BETWEEN, data, at)
    return texts or None


def _match_end(pattern: re.Pattern[bytes], data: memoryview, at: int) -> int:
    """Return the end of the match at a place, or of the part of it that is read in one step."""
    found = pattern.match(data, at, min(at + _PART, len(data)))
    return at if found is None else found.end()


def _beginning(raw: msgspec.Raw) -> str | None:
    """Decode a string or null; of a long string only the beginning."""
    data = memoryview(raw)
    if len(data) <= _LONGEST_EVALUE:
        return msgspec.json.decode(raw, type=str | None)
    if bytes(data[:1]) != b'"':
        raise ValueError("it is not a string")
    return _first_part(data[: _LONGEST_EVALUE + 1], 1, len(data))[0]


def check_depth(tree: Any) -> None:
    """Raise `BadFrame` if a decoded tree is too deep for an encoder."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise BadFrame(f"a MIME bundle nested deeper than {MAX_DEPTH} levels")
