"""Fields that the protocol does not have: told by every answer, refused where that was asked for."""

import json
import tracemalloc
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.errors import BadRequest
from kernelbridge.protocol import ClientMessage, json_schema, unknown
from kernelbridge.protocol.codec import read
from kernelbridge.protocol.unknown import NAME_LENGTH, NAMED, SCANNED
from tests.unit.protocol.test_codec import kinds, needed, parse


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        ("execute_code", {"timeuot": 1}, "'timeuot' is unknown and was ignored; did you mean 'timeout'?"),
        ("execute_code", {"Timeout": 1}, "did you mean 'timeout'?"),
        ("execute_code", {"store_history": False}, "did you mean 'storeHistory'?"),
        ("execute_code", {"session_id": "a"}, "did you mean 'sessionId'?"),
        ("execute_code", {"": 1}, "the field '' is unknown"),
        ("execute_code", {"zzz": 1}, "execute_code has 'allowStdin', 'code',"),
        ("ping", {"future": [1, {"a": None}]}, "ping has 'requestId'"),
        (
            "open_session",
            {"limits": {"memroy": 1}},
            "'limits.memroy' is unknown and was ignored; did you mean 'limits.memory'?",
        ),
        ("open_session", {"limits": {"image": "i"}}, "did you mean 'image'?"),
        ("open_session", {"memory": 1}, "did you mean 'limits.memory'?"),
        ("open_session", {"limit": {}}, "did you mean 'limits'?"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_known_one(kind: str, given: dict[str, Any], named: str) -> None:
    frame = {"type": kind, **needed(kind)}
    message, (warning,) = read(json.dumps({**frame, **given}))
    assert named in warning
    limits: dict[str, Any] = {"limits": {}} if "limits" in given else {}
    assert message == parse(json.dumps({**frame, **limits}))


@pytest.mark.parametrize("kind", sorted(kinds))
def test_every_request_takes_unknown_fields_and_refuses_them_where_that_is_asked_for(kind: str) -> None:
    frame = {"type": kind, **needed(kind)}
    assert read(json.dumps(frame), strict=True) == (parse(json.dumps(frame)), [])
    message, warnings = read(json.dumps({"unheardOf": 1, **frame, "requestID": "r"}))
    assert type(message) is kinds[kind]
    assert [warning.split("'")[1] for warning in warnings] == ["unheardOf", "requestID"]
    assert "'requestId'" in warnings[1]
    with pytest.raises(BadRequest) as caught:
        read(json.dumps({**frame, "requestID": "r"}), strict=True)
    assert (caught.value.code, caught.value.field) == ("unknown_field", "requestID")
    assert caught.value.message == "The field 'requestID' is unknown"
    assert "requestId" in caught.value.reason


@pytest.mark.parametrize("first", ['{"zzz":1}', '{"zzz":1,"yyy":{}}'])
@pytest.mark.parametrize("last", ["null", "{}", '{"memory":1}'])
def test_an_unknown_field_of_an_object_that_comes_twice_is_told(first: str, last: str) -> None:
    frame = f'{{"type":"open_session","sessionId":"b","limits":{first},"limits":{last}}}'
    with pytest.raises(BadRequest) as caught:
        read(frame, strict=True)
    assert (caught.value.code, caught.value.field) == ("unknown_field", "limits.zzz")
    message, warnings = read(frame)
    assert message == parse(f'{{"type":"open_session","sessionId":"b","limits":{last}}}')
    assert [warning.split("'")[1] for warning in warnings] == ["limits.zzz"]


def test_what_a_variable_is_called_is_no_field() -> None:
    assert read('{"type":"open_session","sessionId":"a","env":{"timeuot":"1"}}', strict=True)[1] == []


def test_a_request_that_is_refused_for_something_else_is_told_too() -> None:
    with pytest.raises(BadRequest) as caught:
        parse('{"type":"execute_code","sessionId":"a","cdoe":"1"}')
    assert caught.value.field == "code"
    assert "did you mean 'code'?" in caught.value.warnings[0]
    with pytest.raises(BadRequest) as caught:
        parse('{"type":"execute_code","sessionId":"a","code":1,"timeuot":1}')
    assert caught.value.field == "code"
    assert "timeuot" in caught.value.warnings[0]


def test_warnings_are_bounded() -> None:
    frame = {"type": "ping", **{f"field{number}": 1 for number in range(NAMED)}}
    assert len(read(json.dumps(frame))[1]) == NAMED
    _, warnings = read(json.dumps({**frame, "x" * 1_000_000: 1}))
    assert len(warnings) == NAMED + 1
    assert warnings[-1] == "1 more unknown field was ignored"
    _, (warning,) = read(json.dumps({"type": "ping", "x" * 1_000_000: 1}))
    assert repr("x" * NAME_LENGTH + "…") in warning
    assert len(warning) < 2 * NAME_LENGTH + 50


def test_the_nearest_field_is_looked_for_only_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is slow, and ten thousand such searches would keep everybody waiting."""
    looked: list[str] = []

    def count(path: str, _kind: type) -> str:
        looked.append(path)
        return ""

    monkeypatch.setattr(unknown, "nearest", count)
    read(json.dumps({"type": "ping", **{f"field{number}": 1 for number in range(5_000)}}))
    assert looked == [f"field{number}" for number in range(NAMED)]


def test_an_unknown_field_of_a_large_request_costs_little() -> None:
    """As many lists as fit into a frame, and as many fields: neither becomes an object for each."""
    lists = '{"type":"ping","lists":[' + "[]," * 5_000_000 + "[]]}"
    fields = '{"type":"ping",' + ",".join(f'"x{number}":1' for number in range(1_000_000)) + "}"
    text = json.dumps(
        {"type": "save_file", "sessionId": "a", "filename": "f", "content": ":" * 15_000_000, "filname": 1}
    )
    for frame in (lists, fields, text):
        tracemalloc.start()
        _, (warning,) = read(frame)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert warning.startswith("the field ")
        assert most < 4 * len(frame)


def test_up_to_where_all_fields_are_named() -> None:
    def many(colons: int) -> str:
        return json.dumps({"type": "ping", "first": ":" * (colons - 3), "second": 1})

    assert len(read(many(SCANNED))[1]) == 2
    assert len(read(many(SCANNED + 1))[1]) == 1


def test_every_request_is_one_of_those_that_are_looked_at() -> None:
    assert all(kind.__struct_config__.forbid_unknown_fields for kind in get_args(ClientMessage))


def test_the_schema_allows_unknown_fields_and_has_the_warnings() -> None:
    definitions = json_schema()["$defs"]
    for name in (*(kind.__name__ for kind in kinds.values()), "LimitsChoice"):
        assert "additionalProperties" not in definitions[name]
    for name in ("ExecutionResult", "TerminalOutput", "SaveResult", "ErrorMessage", "Pong", "SessionReady"):
        assert definitions[name]["properties"]["warnings"] == {"type": "array", "items": {"type": "string"}}
        assert "warnings" not in definitions[name]["required"]


@given(
    st.sampled_from(sorted(kinds)), st.dictionaries(st.text(max_size=30), st.none() | st.text(max_size=5), max_size=15)
)
def test_nothing_that_is_unknown_changes_a_request(kind: str, others: dict[str, Any]) -> None:
    known = {"type", *kinds[kind].__struct_encode_fields__}
    strange = {name: value for name, value in others.items() if name not in known}
    frame = {"type": kind, **needed(kind)}
    message, warnings = read(json.dumps({**strange, **frame}))
    assert message == parse(json.dumps(frame))
    assert len(warnings) == min(len(strange), NAMED + 1)
