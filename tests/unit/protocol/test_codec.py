"""Thirty malformed frames get a clear error each; ten thousand more never break the parser."""

import json
import re
import tracemalloc
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kernelbridge.errors import BadRequest
from kernelbridge.protocol import ClientMessage, codec, dump, json_schema, unknown
from kernelbridge.protocol.base import timestamp
from kernelbridge.protocol.cells import ExecuteCode, ExecutionResult
from kernelbridge.protocol.codec import read, reading
from kernelbridge.protocol.files import SaveFile
from kernelbridge.protocol.messages import Ping, Pong
from kernelbridge.protocol.terminals import TerminalCommand


def parse(frame: str) -> ClientMessage:
    return read(frame)[0]


def test_what_a_request_means_without_its_optional_fields() -> None:
    found = {
        (kind.__struct_config__.tag, field.encode_name): field.default
        for kind in get_args(ClientMessage)
        for field in structs.fields(kind)
        if field.default not in {None, msgspec.UNSET, msgspec.NODEFAULT}
    }
    assert found == {
        ("execute_code", "silent"): False,
        ("execute_code", "storeHistory"): True,
        ("execute_code", "allowStdin"): False,
        ("interrupt", "target"): "execution",
        ("interrupt", "queued"): False,
        ("interrupt", "escalate"): True,
        ("interrupt", "jobs"): False,
        ("inspect", "detail"): 0,
        ("open_terminal", "rows"): 24,
        ("open_terminal", "cols"): 80,
        ("read_file", "offset"): 0,
        ("list_files", "path"): "",
        ("list_files", "recursive"): False,
        ("list_files", "hidden"): False,
        ("delete_file", "recursive"): False,
        ("rename_file", "overwrite"): False,
        ("close_session", "deleteFiles"): False,
        ("resume", "after"): 0,
    }


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "execute_code", "sessionId": "s\n", "code": ""},
        {"type": "execute_code", "sessionId": "s", "code": "", "filename": "f\n"},
        {"type": "open_terminal", "sessionId": "s", "terminalId": "t\n"},
        {"type": "open_session", "sessionId": "s", "image": "i\n"},
        {"type": "open_session", "sessionId": "s", "kernel": "k\n"},
        {"type": "save_file", "sessionId": "s", "filename": "f", "content": "", "ifMatch": "0" * 64 + "\n"},
    ],
)
def test_no_name_ends_with_a_line_end(frame: dict[str, str]) -> None:
    """As `$` would allow."""
    *_, field = (name for name, value in frame.items() if value.endswith("\n"))
    with pytest.raises(BadRequest) as refused:
        parse(json.dumps(frame))
    assert refused.value.field == field
    frame[field] = frame[field].rstrip("\n")
    parse(json.dumps(frame))


def test_times_are_in_utc_with_milliseconds() -> None:
    assert timestamp(0.25) == "1970-01-01T00:00:00.250Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp())


DOCUMENTED = [
    (
        '{"type":"execute_code","sessionId":"workspace-uuid","code":"print(1)","filename":"main.py"}',
        ExecuteCode(session_id="workspace-uuid", code="print(1)", filename="main.py"),
    ),
    (
        '{"type":"terminal_command","sessionId":"workspace-uuid","command":"ls -la"}',
        TerminalCommand(session_id="workspace-uuid", command="ls -la"),
    ),
    (
        '{"type":"save_file","sessionId":"workspace-uuid","filename":"main.py","content":"x"}',
        SaveFile(session_id="workspace-uuid", filename="main.py", content="x"),
    ),
    ('{"type":"ping","requestId":"r"}', Ping(request_id="r")),
]

MALFORMED: list[tuple[str, str, str | None]] = [
    ("", "invalid_json", None),
    ("{", "invalid_json", None),
    ("nonsense", "invalid_json", None),
    ('{"type":"ping"} extra', "invalid_json", None),
    ("{'type':'ping'}", "invalid_json", None),
    ('{"type":"ping",}', "invalid_json", None),
    ('{"type":"execute_code","sessionId":"a","code":"\\ud800"}', "invalid_json", None),
    ('{"type":"ping","x":' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json", None),
    ("\ud800", "invalid_json", None),
    ('{"type":NaN}', "invalid_json", None),
    ("[]", "invalid_message", None),
    ("null", "invalid_message", None),
    ("5", "invalid_message", None),
    ('"ping"', "invalid_message", None),
    ("[" * 100_000, "invalid_message", None),
    ("{}", "missing_field", "type"),
    ('{"sessionId":"a","code":"1"}', "missing_field", "type"),
    ('{"type":5}', "unknown_type", "type"),
    ('{"type":null}', "unknown_type", "type"),
    ('{"type":["ping"]}', "unknown_type", "type"),
    ('{"type":"nope"}', "unknown_type", "type"),
    ('{"type":"Execute_Code","sessionId":"a","code":"1"}', "unknown_type", "type"),
    ('{"type":"execute_code"}', "missing_field", "sessionId"),
    ('{"type":"execute_code","sessionId":"a"}', "missing_field", "code"),
    ('{"type":"execute_code","sessionId":"a","code":5}', "invalid_field", "code"),
    ('{"type":"execute_code","sessionId":"a","code":null}', "invalid_field", "code"),
    ('{"type":"execute_code","sessionId":"","code":"1"}', "invalid_field", "sessionId"),
    ('{"type":"execute_code","sessionId":"a/b","code":"1"}', "invalid_field", "sessionId"),
    ('{"type":"execute_code","sessionId":"a\\n","code":"1"}', "invalid_field", "sessionId"),
    ('{"type":"execute_code","sessionId":"' + "a" * 129 + '","code":"1"}', "invalid_field", "sessionId"),
    ('{"type":"execute_code","sessionId":{"a":1},"code":"1"}', "invalid_field", "sessionId"),
    ('{"type":"execute_code","sessionId":"a","code":"1","filename":""}', "invalid_field", "filename"),
    ('{"type":"execute_code","sessionId":"a","code":"1","filename":"a\\nb"}', "invalid_field", "filename"),
    ('{"type":"execute_code","sessionId":"a","code":"1","requestId":7}', "invalid_field", "requestId"),
    ('{"type":"terminal_command","sessionId":"a"}', "missing_field", "command"),
    ('{"type":"terminal_command","sessionId":"a","command":["ls"]}', "invalid_field", "command"),
    ('{"type":"save_file","sessionId":"a","content":"x"}', "missing_field", "filename"),
    ('{"type":"save_file","sessionId":"a","filename":"x"}', "missing_field", "content"),
    (
        '{"type":"save_file","sessionId":"a","filename":"x","content":"y","encoding":"latin1"}',
        "invalid_field",
        "encoding",
    ),
]


@pytest.mark.parametrize(("frame", "message"), DOCUMENTED)
def test_documented_messages_are_understood(frame: str, message: object) -> None:
    assert parse(frame) == message


@pytest.mark.parametrize(("frame", "code", "field"), MALFORMED)
def test_malformed_frames_are_explained(frame: str, code: str, field: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(frame)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.reason
    if field is not None:
        assert repr(field) in caught.value.message


@pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
        ("execute_code", "filename", "without control characters"),
        ("open_terminal", "terminalId", "1-64 characters"),
        ("save_file", "ifMatch", "64 lower-case hexadecimal digits"),
        ("open_session", "image", "container image"),
        ("open_session", "kernel", "kernelspec"),
    ],
)
def test_a_name_of_the_wrong_form_is_told_the_right_one(kind: str, field: str, expected: str) -> None:
    given = {"type": kind, "sessionId": "a", "code": "1", "filename": "f", "content": ""}
    with pytest.raises(BadRequest, match=expected):
        parse(json.dumps({**given, field: "/\n"}))


def test_a_list_is_told_its_items() -> None:
    with pytest.raises(BadRequest, match="a list of at most 10000 items, each text of at most 256 characters, or null"):
        parse('{"type": "resume", "sessionId": "a", "requestIds": 5}')


@pytest.mark.parametrize(
    ("kind", "field", "least", "most", "beyond"),
    [
        ("execute_code", "sessionId", "a", "a" * 128, ["", "a" * 129]),
        ("execute_code", "requestId", "", "r" * 256, ["r" * 257]),
        ("execute_code", "timeout", 5e-324, 7 * 86400, [0, 0.0, -1, 7 * 86400 + 0.01]),
        ("execute_code", "filename", "f", "f" * 1024, ["", "f" * 1025]),
        ("terminal_command", "timeout", 5e-324, 7 * 86400, [0, 0.0, -1, 7 * 86400 + 0.01]),
        ("complete", "cursor", 0, 2**53 - 1, [-1, 2**53]),
        ("inspect", "cursor", 0, 2**53 - 1, [-1, 2**53]),
        ("inspect", "detail", 0, 1, [-1, 2]),
        ("open_terminal", "rows", 1, 1000, [0, 1001]),
        ("open_terminal", "cols", 1, 1000, [0, 1001]),
        ("terminal_resize", "rows", 1, 1000, [0, 1001]),
        ("terminal_resize", "cols", 1, 1000, [0, 1001]),
        ("open_terminal", "terminalId", "t", "t" * 64, ["", "t" * 65]),
        ("read_file", "offset", 0, 2**53 - 1, [-1, 2**53]),
        ("read_file", "length", 0, 2**53 - 1, [-1, 2**53]),
        ("save_file", "ifMatch", "0" * 64, "f" * 64, ["0" * 63, "0" * 65]),
        ("open_session", "image", "i", "i" * 512, ["", "i" * 513]),
        ("open_session", "kernel", "k", "k" * 128, ["", "k" * 129]),
        ("open_session", "limits", {"memory": 0}, {"memory": 2**53 - 1}, [{"memory": -1}, {"memory": 2**53}]),
        ("open_session", "limits", {"pids": 0}, {"pids": 2**53 - 1}, [{"pids": -1}, {"pids": 2**53}]),
        ("resume", "after", 0, 2**53 - 1, [-1, 2**53]),
        ("resume", "requestIds", [], ["r" * 256] * 10_000, ["r", [5], ["r" * 257], ["r"] * 10_001]),
        ("interrupt", "runId", "", "r" * 256, ["r" * 257]),
    ],
)
def test_bounds_are_where_they_are_declared(kind: str, field: str, least: Any, most: Any, beyond: list[Any]) -> None:
    frame = {"type": kind, **needed(kind)}
    for value in (least, most):
        parse(json.dumps({**frame, field: value}))
    for value in beyond:
        with pytest.raises(BadRequest) as caught:
            parse(json.dumps({**frame, field: value}))
        assert caught.value.code == "invalid_field"


PROGRAMMERS_WORDS = re.compile(
    r"[|`]|\b(float|int|str|bool|dict|array|NoneType|regex|enum|Object|Input|codec|Expected|JSON is malformed)\b"
)
"""What only those understand who know the decoder, or Python."""


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("timeout", "1", "expected a number of more than 0 and at most 604800, or null; got text"),
        ("timeout", 0, "expected a number of more than 0 and at most 604800, or null"),
        ("timeout", [], "expected a number of more than 0 and at most 604800, or null; got a list"),
        ("stream", "true", "expected true or false, or null; got text"),
        ("silent", None, "expected true or false; got null"),
        ("silent", 0, "expected true or false; got a number"),
        ("code", 5, "expected text; got a number"),
        ("code", {}, "expected text; got an object"),
        ("requestId", "r" * 257, "expected text of at most 256 characters, or null"),
        ("filename", "", "expected a name of 1-1024 characters without control characters, or null"),
        ("cursor", 1.5, "expected a whole number from 0 to 9007199254740991, or null; got a number"),
        ("detail", 2, "expected 0 or 1"),
        ("target", "x", "expected 'execution' or 'terminal'"),
        ("env", {"a": 1}, "expected an object whose values are text, or null"),
        ("env", 1, "expected an object whose values are text, or null; got a number"),
        ("limits", {"cpus": "2"}, "expected a number, or null; got text"),
        ("limits", 2, "expected an object, or null; got a number"),
        ("mode", "truncate", "expected 'append' or 'create' or 'overwrite', or null"),
    ],
)
def test_what_a_field_takes_is_said_in_peoples_words(field: str, value: object, reason: str) -> None:
    kind = next(name for name, kind in kinds.items() if field in kind.__struct_encode_fields__)
    with pytest.raises(BadRequest) as caught:
        parse(json.dumps({"type": kind, **needed(kind), field: value}))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("frame", "ids"),
    [
        ('{"type":"nope","sessionId":"s","requestId":"r"}', ("s", "r")),
        ('{"sessionId":7,"requestId":[]}', (None, None)),
        ('{"sessionId":"' + "s" * 128 + '","requestId":"' + "r" * 256 + '"}', ("s" * 128, "r" * 256)),
        ('{"sessionId":"' + "s" * 129 + '","requestId":"' + "r" * 257 + '"}', (None, None)),
        ('{"type":"ping","requestId":"' + "\\u00e9" * 256 + '","zzz":1}', (None, "é" * 256)),
        ("{", (None, None)),
        ("[1]", (None, None)),
    ],
)
def test_a_refused_frame_still_says_whose_it_was(frame: str, ids: tuple[str | None, str | None]) -> None:
    with pytest.raises(BadRequest) as caught:
        read(frame, strict=True)
    assert (caught.value.session_id, caught.value.request_id) == ids


HALF_A_PAIR = "a string has half of a surrogate pair (\\ud800-\\udfff), which is not Unicode text"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ('{"type":"ping"', "it ends too early"),
        ('{"type":"ping","x":"\\ud83d\\ude00', "it ends too early"),
        ('{"type":"ping",}', "at byte 15"),
        ('{"type":"ping"} extra', "trailing characters at byte 17"),
        ('{"type":"ping","requestId":"\\ud800"}', HALF_A_PAIR),
        ('{"type":"ping","requestId":"\\ud800abcdef"}', HALF_A_PAIR),
        ('{"type":"ping","requestId":"\\ud800\\u0041"}', HALF_A_PAIR),
        ('{"type":"ping","requestId":"\\udc00"}', HALF_A_PAIR),
        ('{"type":"ping","unknown":"\\ud800","requestId":"r"}', HALF_A_PAIR),
    ],
)
def test_where_a_frame_stops_being_json_is_said(frame: str, reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(frame)
    assert caught.value.code == "invalid_json"
    assert reason in caught.value.reason


def test_a_frame_that_is_refused_is_looked_at_once_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a large frame takes a while, in which no other client is served."""
    looks: list[str] = []

    class Counted:
        def __init__(self, name: str, decoder: Any) -> None:
            self.name, self.decoder = name, decoder

        def decode(self, frame: bytes) -> Any:
            looks.append(self.name)
            return self.decoder.decode(frame)

    for module, name in ((codec, "_DECODER"), (codec, "_envelope"), (codec, "_LENIENT"), (unknown, "_object")):
        monkeypatch.setattr(module, name, Counted(name, getattr(module, name)))
    steps, before = (
        reading(json.dumps({"type": "save_file", "sessionId": "a", "filename": "f", "content": "", "x": 1})),
        0,
    )
    for _ in steps:
        assert len(looks) == before + 1
        before = len(looks)
    assert looks == ["_DECODER", "_envelope", "_object", "_LENIENT"]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (
            '{"type":"open_session","sessionId":"a","env":{' + ",".join(f'"{n}":""' for n in range(300_000)) + "}}",
            "bad_request",
        ),
        ('{"type":"ping","lists":[' + "[]," * 1_000_000 + '"\\ud800"]}', "invalid_json"),
    ],
)
def test_a_large_frame_that_is_refused_costs_little(frame: str, code: str) -> None:
    """Its parts do not become one object each, which would also take seconds."""
    data = frame.encode()
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest) as caught:
            read(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert most < len(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
kinds: dict[str, type[msgspec.Struct]] = {str(kind.__struct_config__.tag): kind for kind in get_args(ClientMessage)}
fields = sorted({field for kind in kinds.values() for field in kind.__struct_encode_fields__} - {"sessionId"})
near_values = st.text() | json_values | st.sampled_from(["a", "utf-8", "base64", "terminal", "append", 0, 1, -1, 1.5])
near_messages = st.builds(
    lambda named, others: {**others, **named},
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from([*kinds, "x"]) | json_values,
            "sessionId": st.sampled_from(["a", "", "a b", "x" * 200]) | json_values,
        },
    ),
    st.dictionaries(st.sampled_from(fields), near_values, max_size=5),
)


def needed(kind: str) -> dict[str, Any]:
    """Return what a message of a kind must have, beside its type."""
    info = msgspec.inspect.type_info(kinds[kind])
    assert isinstance(info, msgspec.inspect.StructType)
    types = {field.encode_name: field.type for field in info.fields if field.required}
    return {
        name: 1 if isinstance(getattr(kind, "type", kind), msgspec.inspect.IntType) else "a"
        for name, kind in types.items()
    }


# Messages of every kind with all that they need, of which one field may be wrong.
almost_right = st.sampled_from(sorted(kinds)).flatmap(
    lambda kind: st.dictionaries(st.sampled_from(fields), near_values, max_size=1).map(
        lambda wrong: {"type": kind, **needed(kind), **wrong}
    )
)


@given(
    st.text()
    | near_messages.map(json.dumps)
    | almost_right.map(json.dumps)
    | json_values.map(json.dumps)
    | st.binary().map(lambda b: b.decode("latin1"))
)
def test_no_frame_breaks_the_parser(frame: str) -> None:
    try:
        message = parse(frame)
    except BadRequest as exc:
        explained = exc.message, exc.reason
        assert all(explained)
        assert PROGRAMMERS_WORDS.search(" ".join(explained)) is None
    else:
        assert type(message) in kinds.values()
        session_id = getattr(message, "session_id", None)
        if session_id is not None:
            assert 1 <= len(session_id) <= 128
            assert session_id.isascii()


@pytest.mark.parametrize("kind", sorted(kinds))
def test_every_kind_of_message_names_the_field_that_is_missing(kind: str) -> None:
    assert type(parse(json.dumps({"type": kind, **needed(kind)}))) is kinds[kind]
    for missing in needed(kind):
        frame = {name: value for name, value in needed(kind).items() if name != missing}
        with pytest.raises(BadRequest) as caught:
            parse(json.dumps({"type": kind, **frame}))
        assert (caught.value.code, caught.value.field) == ("missing_field", missing)


def test_additive_fields_appear_only_when_they_say_something() -> None:
    frame = json.loads(dump(ExecutionResult(success=True, output="", error=None, timestamp="t", session_id="s")))
    assert frame == {
        "type": "execution_result",
        "success": True,
        "output": "",
        "error": None,
        "timestamp": "t",
        "sessionId": "s",
    }


def test_lone_surrogates_from_user_code_become_replacement_characters() -> None:
    message = ExecutionResult(
        success=True,
        output="\ud800a",
        error=None,
        timestamp="t",
        session_id="s",
        results=[{"data": {"k\udfff": ["\ud800"]}}],
    )
    frame = json.loads(dump(message))
    assert frame["output"] == "\ufffda"
    assert frame["results"] == [{"data": {"k\ufffd": ["\ufffd"]}}]


def test_the_schema_describes_every_message() -> None:
    schema: dict[str, Any] = json_schema()
    assert msgspec.json.encode(schema)
    definitions = schema["$defs"]
    assert {ref["$ref"].rsplit("/", 1)[1] for ref in definitions["ClientMessage"]["oneOf"]} == {
        kind.__name__ for kind in get_args(ClientMessage)
    }
    assert definitions["ExecuteCode"]["properties"]["type"] == {"enum": ["execute_code"]}
    assert definitions["ExecuteCode"]["required"] == ["type", "sessionId", "code"]
    assert set(definitions["ExecutionResult"]["required"]) == {
        "type",
        "success",
        "output",
        "error",
        "timestamp",
        "sessionId",
    }


def test_pong_has_the_documented_shape() -> None:
    assert json.loads(dump(Pong(timestamp="t", request_id="r"))) == {"type": "pong", "timestamp": "t", "requestId": "r"}
