"""What a kernel sends: every message is read or a `BadFrame`, whoever signed it, and what was read can be sent on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

import msgspec

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.help import read_completion, read_inspection
from kernelbridge.jupyter.wire import BadFrame, Codec

KINDS: tuple[type[Any], ...] = (
    *(wire.Status, wire.Stream, wire.Display, wire.ClearOutput, wire.Failure, wire.ExecuteInput, wire.ExecuteReply),
    *(wire.ExpressionReply, wire.InputRequest, wire.KernelInfo, wire.SubshellReply, wire.CompleteReply),
    *(wire.InspectReply, wire.IsCompleteReply, wire.ReplyMetadata),
)
BETWEEN = b"\n--\n"
"""Separates the frames of one message in an input."""
SMALL: dict[str, Any] = {"LARGE": 24, "_PART": 16, "_COUNTED": 8, "_LONGEST_EVALUE": 32, "LINES": 3, "NAMES": 3}
"""Limits with which a small input is read as a large one."""
_CODEC = Codec(b"a key", "session")
T = TypeVar("T")

_HEADER = b'{"msg_id":"m","msg_type":"stream"}'
SEEDS = (
    *(bytes([number]) + b'{"status":"ok","execution_count":1}' for number in range(len(KINDS))),
    b'\x00{"execution_state":"idle"}',
    b'\x01{"name":"stdout","text":"caf\\u00e9 \xc3\xa9 \\ud83d\\ude00 and a longer text"}',
    b'\x01{"name":"stderr","text":"not UTF-8: \xff, half of a pair: \\ud83d, and more"}',
    b'\x02{"data":{"text/plain":"1","application/json":{"a":[1,NaN,1e999]}},"metadata":{},"transient":{"display_id":"d"}}',
    b'\x02{"data":{"a":"x","b":"y","c":"z","d":"\\\\","e":[[[[]]]]},"metadata":null}',
    b'\x03{"wait":true}',
    b'\x04{"ename":"E","evalue":"v","traceback":["one","two \\"quoted\\"","three","four"],"kernelbridge_final":true}',
    b'\x06{"status":"error","ename":"E","evalue":"v","traceback":["a"],"payload":[{"source":"page"}]}',
    b'\x07{"status":"ok","user_expressions":{"a":{"status":"ok"}}}',
    b'\x08{"prompt":"? ","password":true}',
    b'\x0b{"status":"ok","matches":["a"],"cursor_start":0,"cursor_end":1,"metadata":{}}',
    b'\x0e{"kernelbridge":{"cpu_ms":1.5,"oom_kills":0}}',
    BETWEEN.join([b"topic", wire.DELIMITER, b"0" * 64, _HEADER, b"{}", b"{}", b'{"name":"stdout"}', b"more"]),
    BETWEEN.join([_HEADER, b'{"msg_id":"p"}', b"{}", b"{}"]),
    BETWEEN.join([_HEADER, b"null", b"{}", b"{}", b"a buffer", wire.DELIMITER]),
)

TOKENS = (
    *sorted({f'"{name}":'.encode() for kind in KINDS for name in kind.__struct_encode_fields__}),
    *(
        BETWEEN,
        wire.DELIMITER,
        b"NaN",
        b"1e999",
        b"9" * 30,
        b"null",
        b"\\ud83d\\ude00",
        b"\\ud800",
        b"\xff",
        b"\\\\",
        b'"',
    ),
    *(b"[" * 250, b"{}", b",", b'"text/plain":'),
)


def fuzz(data: bytes) -> None:
    """Read frames that nobody signed, the same frames signed, and the content of each type, small and large."""
    frames = data.split(BETWEEN)
    assert _read(lambda: _CODEC.parse(frames)) is None
    if len(frames) >= 4:
        _check_signed(frames)
    kind, content = KINDS[data[0] % len(KINDS)] if data else KINDS[0], data[1:]
    found = _decode(content, kind)
    with mock.patch.multiple(wire, **SMALL):
        large = _decode(content, kind)
    if isinstance(found, wire.Stream) and isinstance(large, wire.Stream):
        assert large == found
    if isinstance(found, wire.Display) and isinstance(large, wire.Display) and len(found.data) <= SMALL["NAMES"]:
        for name, value in large.data.items():
            assert not isinstance(value, str) or "left out" in value or value == found.data[name]


def _check_signed(frames: list[bytes]) -> None:
    sent = [b"topic", wire.DELIMITER, _CODEC.sign(frames[:4]), *frames]
    if (message := _read(lambda: _CODEC.parse(sent))) is not None:
        assert (message.metadata, message.content) == (frames[2], frames[3])
        assert wire.raw_message(sent) == (*frames[:4], frames[4:])
        assert message.msg_id == json.loads(frames[0])["msg_id"]


def _decode(content: bytes, kind: type[T]) -> T | None:
    found, steps = None, 0
    work = wire.decoding(content, kind)
    try:
        while True:
            next(work)
            steps += 1
            assert steps <= 10 * len(content) + 10
    except StopIteration as end:
        found = end.value
    except BadFrame:
        return None
    assert isinstance(found, kind)
    json.loads(msgspec.json.encode(_sent_on(found)).decode())
    return found


def _sent_on(found: Any) -> Any:
    """Return what a client gets of it: raw JSON is read before."""
    if isinstance(found, wire.CompleteReply):
        return read_completion(found, 10)
    return read_inspection(found) if isinstance(found, wire.InspectReply) else found


def _read(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except BadFrame:
        return None
