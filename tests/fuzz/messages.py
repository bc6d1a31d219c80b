"""The frames of clients: every one is a message or a `BadRequest`, and what is written can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import cast, get_args

import msgspec

from kernelbridge.errors import BadRequest
from kernelbridge.protocol import codec, unknown
from kernelbridge.protocol.messages import ClientMessage, ErrorMessage
from kernelbridge.protocol.sessions import OpenSession

LONGEST_TEXT = 2000
"""Characters of a sentence in an answer, whatever was received."""
STEPS = 10
"""Steps in which a frame is read, at most."""
CODES = {"invalid_json", "invalid_message", "invalid_field", "missing_field", "unknown_type", "unknown_field"}
_SURROGATE = re.compile("[\ud800-\udfff]")

SEEDS = (
    b'{"type":"ping"}',
    b'{"type":"ping","requestId":"\\u00fc","typ":1}',
    b'{"type":"execute_code","sessionId":"s","code":"x=1","stream":true,"timeout":1.5,"storeHistory":false}',
    b'{"type":"execute_code","sessionId":"s","requestId":"r"}',
    b'{"type":"execute_code","sessionId":"s s","code":1}',
    b'{"type":"input_reply","sessionId":"s","value":"\\ud83d\\ude00","requestId":"q"}',
    b'{"type":"terminal_command","sessionId":"s","command":"ls","timeout":0}',
    b'{"type":"open_terminal","sessionId":"s","terminalId":"t","rows":24,"cols":80}',
    b'{"type":"terminal_input","sessionId":"s","terminalId":"t","data":"\\u0003"}',
    b'{"type":"save_file","sessionId":"s","filename":"a/b","content":"eA==","encoding":"base64","mode":"append"}',
    b'{"type":"read_file","sessionId":"s","filename":"a","offset":9007199254740991,"length":1}',
    b'{"type":"list_files","sessionId":"s","path":"","recursive":true,"hidden":true}',
    b'{"type":"rename_file","sessionId":"s","filename":"a","newFilename":"b","overwrite":true}',
    b'{"type":"open_session","sessionId":"s","env":{"A":"b"},"egress":"none","memory":"1g","disk":1}',
    b'{"type":"resume","sessionId":"s","since":3}',
    b'{"type":"close_session","sessionId":"s","unkown":[[[[]]]],"requestId":"\\ud800"}',
    b'[{"type":"ping"}]',
    b'{"type":"ping"',
    b'{"type":"\xff"}',
    b'{"type":"ping","requestId":"\xed\xa0\x80"}',
    b"\xef\xbb\xbf{}",
    b'{"type":"ping","requestId":"\\ud8',
)

TOKENS = (
    *(f'"{kind.__struct_config__.tag}"'.encode() for kind in get_args(ClientMessage)),
    *sorted({f'"{name}":'.encode() for kind in get_args(ClientMessage) for name in kind.__struct_encode_fields__}),
    *(
        b'"type":',
        b"null",
        b"true",
        b"1e999",
        b"-0",
        b'"\\ud800"',
        b"\xff",
        b"{}",
        b"[]",
        b",",
        b'"utf-8"',
        b'"base64"',
    ),
)

Outcome = tuple[ClientMessage, list[str]] | BadRequest


def fuzz(data: bytes) -> None:
    """Read one frame as bytes and as text, leniently and strictly, small and large; write its text."""
    found, strict = outcome(data), outcome(data, strict=True)
    if isinstance(found, BadRequest):
        _check_refusal(found)
        assert isinstance(strict, BadRequest)
    else:
        message, warnings = found
        assert isinstance(message, get_args(ClientMessage))
        _check_sentences(warnings)
        assert outcome(msgspec.json.encode(message)) == (message, [])
        if not warnings:
            assert strict == found
    if isinstance(strict, BadRequest):
        _check_refusal(strict)
    if len(data) % 8 == 0:
        _check_large(data, found)
    _check_text(data)


def outcome(frame: str | bytes, *, strict: bool = False) -> Outcome:
    """Read a frame, in few steps."""
    steps = codec.reading(frame, strict=strict)
    for _ in range(STEPS):
        try:
            next(steps)
        except StopIteration as end:
            return cast("Outcome", end.value)
        except BadRequest as refusal:
            return refusal
    raise AssertionError("it took too many steps")


def _check_refusal(refusal: BadRequest) -> None:
    assert refusal.code in CODES | {"bad_request"}
    assert refusal.session_id is None or len(refusal.session_id) <= 128
    assert refusal.request_id is None or len(refusal.request_id) <= 256
    _check_sentences([refusal.message, refusal.reason, refusal.field or "", *refusal.warnings])
    answer = ErrorMessage(message=refusal.message, error=refusal.reason, session_id=refusal.session_id)
    assert json.loads(codec.dump(answer))["message"] == refusal.message


def _check_sentences(sentences: Sequence[str]) -> None:
    assert len(sentences) <= unknown.NAMED + 5
    for sentence in sentences:
        assert len(sentence) <= LONGEST_TEXT
        sentence.encode()


def _check_large(data: bytes, found: Outcome) -> None:
    """Read the same frame with as much white space at its end as makes it a large one."""
    large = outcome(data + b" " * codec.LARGE)
    if not isinstance(large, BadRequest):
        assert large == found
        assert not isinstance(large[0], OpenSession)
    else:
        _check_refusal(large)
        assert isinstance(found, BadRequest) or isinstance(found[0], OpenSession)


def _check_text(data: bytes) -> None:
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    sent = outcome(text)
    if _SURROGATE.search(text) is not None:
        assert isinstance(sent, BadRequest)
        assert sent.code == "invalid_json"
    else:
        assert _shown(sent) == _shown(outcome(text.encode()))
    written = json.loads(codec.dump(ErrorMessage(message=text, error=text, session_id=text)))
    assert written["message"] == written["sessionId"] == _SURROGATE.sub("\ufffd", text)


def _shown(found: Outcome) -> object:
    return str(found) if isinstance(found, BadRequest) else found
