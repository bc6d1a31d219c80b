from __future__ import annotations

import json
from collections.abc import Generator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.wire import BadFrame, Codec

KEY = b"a key"
texts = st.text(st.characters(exclude_categories=["Cs"]))
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda t: st.lists(t) | st.dictionaries(texts, t),
    max_leaves=10,
)


def message(content: bytes = b"{}", msg_type: str = "stream", parent: bytes = b'{"msg_id":"p"}') -> list[bytes]:
    header = json.dumps({"msg_id": "m", "msg_type": msg_type}).encode()
    parts = [header, parent, b"{}", content]
    return [wire.DELIMITER, Codec(KEY, "s").sign(parts), *parts]


@given(msg_type=texts, content=st.dictionaries(texts, trees), topic=st.lists(st.binary(max_size=8)))
def test_requests_can_be_parsed(msg_type: str, content: object, topic: list[bytes]) -> None:
    topic = [frame for frame in topic if frame != wire.DELIMITER]
    msg_id, frames = Codec(KEY, "s").request(msg_type, content, metadata={"kernelbridge": {"x": 1}})
    parsed = Codec(KEY, "other").parse([*topic, *frames, b"a buffer"])
    assert (parsed.msg_id, parsed.msg_type, parsed.parent_id) == (msg_id, msg_type, "")
    assert msgspec.json.decode(parsed.content) == content
    assert json.loads(parsed.metadata) == {"kernelbridge": {"x": 1}}


def test_a_request_says_when_in_protocol_5_3() -> None:
    codec = Codec(KEY, "session")
    ids = {codec.request("execute_request", {})[0] for _ in range(3)}
    assert ids == {"session_1", "session_2", "session_3"}
    header = json.loads(codec.request("execute_request", {})[1][2])
    assert header["version"] == "5.3"
    assert header["session"] == "session"
    assert header["date"].endswith("+00:00")


def test_text_that_is_not_unicode_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        Codec(KEY, "s").request("execute_request", {"code": "\ud800"})


@given(st.lists(st.binary(max_size=64), max_size=12))
def test_garbage_is_a_bad_frame(frames: list[bytes]) -> None:
    with pytest.raises(BadFrame):
        Codec(KEY, "s").parse(frames)


@given(
    parts=st.lists(st.binary(max_size=64) | trees.map(lambda t: json.dumps(t).encode()), min_size=4, max_size=6),
    kind=st.sampled_from(list(wire._decoders)),
)
def test_signed_garbage_is_a_bad_frame_or_a_message(parts: list[bytes], kind: type) -> None:
    codec = Codec(KEY, "s")
    try:
        wire.decode(codec.parse([wire.DELIMITER, codec.sign(parts[:4]), *parts]).content, kind)
    except BadFrame:
        return


@given(content=st.binary(max_size=200), kind=st.sampled_from(list(wire._decoders)))
def test_content_is_decoded_or_a_bad_frame(content: bytes, kind: type) -> None:
    try:
        assert isinstance(wire.decode(content, kind), kind)
    except BadFrame:
        return


def broken() -> dict[str, list[bytes]]:
    good = message()
    codec = Codec(KEY, "s")
    deep = b"[" * 100_000
    headers = [
        deep,
        b'{"msg_id":"m","msg_type":"x","y":' + b"[" * (wire.MAX_HEADER - 100),
        b"null",
        b"[]",
        b"{}",
        b'{"msg_id":1,"msg_type":"x"}',
        b'{"msg_id":"\\ud800","msg_type":"x"}',
        b"\xff",
        b'{"msg_id":"\xff","msg_type":"x"}',
        b'{"msg_id":"m","msg_type":"\xc3"}',
    ]
    cases = {
        "nothing": [],
        "no delimiter": good[1:],
        "no signature": [wire.DELIMITER],
        "parts missing": good[:-1],
        "wrong signature": [good[0], b"0" * 64, *good[2:]],
        "empty signature": [good[0], b"", *good[2:]],
        "changed content": [*good[:-1], b'{"a":1}'],
    }
    for header in headers:
        parts = [header, *good[3:]]
        cases[f"header {header[:40]!r}"] = [wire.DELIMITER, codec.sign(parts), *parts]
    for parent in (deep, b"5", b'{"msg_id":5}', b'{"msg_id":"\xff"}'):
        cases[f"parent {parent[:40]!r}"] = message(parent=parent)
    return cases


@pytest.mark.parametrize("frames", broken().values(), ids=list(broken()))
def test_broken_frames(frames: list[bytes]) -> None:
    with pytest.raises(BadFrame):
        Codec(KEY, "s").parse(frames)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (wire.Stream, b'{"name":"stdout","text":5}'),
        (wire.Stream, b'{"name":"stdout"}'),
        (wire.Status, b'{"execution_state":null}'),
        (wire.Display, b'{"data":[]}'),
        (wire.Display, b'{"data":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
        (wire.Display, b'{"data":{"a":' + b"[" * 300 + b"]" * 300 + b"}}"),
        (wire.Display, b'{"data":{},"metadata":{"a":' + b'{"b":' * 300 + b"1" + b"}" * 300 + b"}}"),
        (wire.ExecuteReply, b'{"status":"ok","execution_count":"1"}'),
        (wire.ExecuteReply, b'{"status":"error","traceback":[1]}'),
        (wire.Failure, b'{"ename":5}'),
        (wire.Stream, b""),
        (wire.Stream, b'{"name":"stdout","text":"a"'),
    ],
)
def test_content_of_the_wrong_shape(kind: type, content: bytes) -> None:
    with pytest.raises(BadFrame, match=f"{kind.__name__} message|MIME bundle"):
        wire.decode(content, kind)


def test_content_of_correct_kernels_that_is_not_strict_json_is_repaired() -> None:
    # `print(os.listdir())` of a name that is not UTF-8, and a figure with NaN in it
    assert wire.decode(b'{"name":"stdout","text":"a\xffb"}', wire.Stream).text == "a\ufffdb"
    assert wire.decode(b'{"name":"stdout","text":"a\\ud800b"}', wire.Stream).text == "a?b"
    assert wire.decode(b'{"data":{"application/json":{"x":NaN}}}', wire.Display).data == {
        "application/json": {"x": None}
    }


def test_null_means_no_parent() -> None:
    assert Codec(KEY, "s").parse(message(parent=b"null")).parent_id == ""


def test_a_display_id_that_is_not_text_is_none() -> None:
    assert wire.decode(b'{"data":{},"transient":{"display_id":7}}', wire.Display).display_id is None
    assert wire.decode(b'{"data":{},"transient":null}', wire.Display).display_id is None
    assert wire.decode(b'{"data":{},"transient":{"display_id":"d"}}', wire.Display).display_id == "d"


def test_the_size_of_a_header_is_limited() -> None:
    def sized(size: int) -> bytes:
        header = b'{"msg_id":"m","msg_type":"x"}'
        return header[:-1] + b" " * (size - len(header)) + b"}"

    codec = Codec(KEY, "s")
    for header, parent in ((wire.MAX_HEADER, 40), (40, wire.MAX_HEADER)):
        parts = [sized(header), sized(parent), b"{}", b"{}"]
        assert codec.parse([wire.DELIMITER, codec.sign(parts), *parts]).parent_id == "m"
    for header, parent in ((wire.MAX_HEADER + 1, 40), (40, wire.MAX_HEADER + 1)):
        parts = [sized(header), sized(parent), b"{}", b"{}"]
        with pytest.raises(BadFrame, match="header of more than"):
            codec.parse([wire.DELIMITER, codec.sign(parts), *parts])


def test_numbers_with_too_many_digits_become_null() -> None:
    display = wire.decode(b'{"data":{"x":[1e999,-1e999,' + b"1" * 5000 + b",123]}}", wire.Display)
    assert display.data == {"x": [None, None, None, 123]}


def test_large_bundles_that_are_not_unicode_are_repaired() -> None:
    filler = b'"' + b"x" * wire.LARGE + b'"'
    display = wire.decode(b'{"data":{"x":["a\xffb",' + filler + b"]}}", wire.Display)
    assert json.loads(msgspec.json.encode(display.data))["x"][0] == "a\ufffdb"


@pytest.mark.parametrize("size", [10, wire.LARGE])
def test_text_that_is_not_unicode_is_repaired_whatever_its_size(size: int) -> None:
    text, expected = b'"' + b"x" * size + b'\xff"', "x" * size + "\ufffd"
    assert wire.decode(b'{"name":"stdout","text":' + text + b"}", wire.Stream).text == expected
    assert wire.decode(b'{"data":{"text/plain":' + text + b"}}", wire.Display).data == {"text/plain": expected}
    failure = wire.decode(b'{"evalue":"\xff","traceback":[' + text + b"]}", wire.Failure)
    assert (failure.evalue, failure.traceback) == ("\ufffd", [expected])


def test_text_that_is_not_unicode_is_repaired_in_small_steps() -> None:
    """Each byte that is not UTF-8 costs a hundred times as much as one that is."""
    work = wire.decoding(b'{"name":"stdout","text":"' + b"\xff" * (4 << 20) + b'"}', wire.Stream)
    assert sum(1 for _ in work) >= (4 << 20) // wire._PART


def _steps(monkeypatch: pytest.MonkeyPatch, raw: bytes, kind: type) -> tuple[object, list[int]]:
    """Decode; return the result, and how many texts each step decoded."""
    counted, text_of = [0], wire._text

    def text(raw: msgspec.Raw) -> Generator[None, None, str | None]:
        counted[-1] += 1
        return (yield from text_of(raw))

    monkeypatch.setattr(wire, "_text", text)
    work: Generator[None, None, object] = wire.decoding(raw, kind)
    while True:
        try:
            next(work)
        except StopIteration as exc:
            return exc.value, counted
        counted.append(0)


@pytest.mark.parametrize("kind", [wire.Failure, wire.ExecuteReply])
def test_a_traceback_of_many_lines_is_decoded_in_small_steps(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    lines = [f"line {number}".ljust(40) for number in range(wire.LINES)]
    found, counted = _steps(monkeypatch, msgspec.json.encode({"status": "error", "traceback": lines}), kind)
    assert isinstance(found, wire.Failure | wire.ExecuteReply)
    assert found.traceback == lines
    assert sum(counted) == wire.LINES
    assert max(counted) <= 200


@pytest.mark.parametrize("end", ['"', "\\", "é", ""])
def test_long_texts_of_a_traceback_are_complete(end: str) -> None:
    lines = ["a" * (wire.LARGE - 2) + end, "", ("\\" + end) * wire.LARGE, end]
    assert wire.decode(json.dumps({"traceback": lines}).encode(), wire.Failure).traceback == lines


@pytest.mark.parametrize("line", ["", "x", '\\"', ",", '","', "\\", "é\n"])
def test_of_a_traceback_of_too_many_lines_the_first_are_kept(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    lines = ["first", *[line] * 300_000]
    found, counted = _steps(monkeypatch, msgspec.json.encode({"traceback": lines}), wire.Failure)
    assert isinstance(found, wire.Failure)
    assert found.traceback is not None
    assert found.traceback[:-1] == lines[: wire.LINES]
    assert "lines" in found.traceback[-1]
    assert len(found.traceback) == wire.LINES + 1
    assert max(counted) <= 200


@pytest.mark.parametrize(
    "traceback",
    [b"[" + b"1," * 200_000 + b"1]", b"[" + b'"a",' * 200_000, b'["a"' + b" " * 300_000 + b"]", b"{" + b" " * 300_000],
)
def test_a_large_traceback_that_is_no_list_of_texts_is_refused(traceback: bytes) -> None:
    with pytest.raises(BadFrame):
        wire.decode(b'{"traceback":' + traceback + b"}", wire.Failure)


def test_a_display_of_many_names_is_left_out_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {f"text/{number}": "x" * 300 for number in range(1000)}
    found, counted = _steps(monkeypatch, msgspec.json.encode({"data": few}), wire.Display)
    assert isinstance(found, wire.Display)
    assert found.data == few
    assert max(counted) <= 200
    many = {str(number): "" for number in range(90_000)}
    found, counted = _steps(monkeypatch, msgspec.json.encode({"data": many}), wire.Display)
    assert isinstance(found, wire.Display)
    assert "left out" in found.data["text/plain"]
    assert max(counted) <= 200


def test_repairing_takes_several_steps() -> None:
    filler = b'"' + b"x" * wire.LARGE + b'"'
    work = wire.decoding(b'{"data":{"x":[NaN,' + filler + b"]}}", wire.Display)
    assert sum(1 for _ in work) >= 5


def test_names_are_counted_however_they_are_written() -> None:
    for colon in (" :", "\t:", "\n \r:"):
        names = ",".join(f'"{number}"{colon}1' for number in range(wire.MANY + 1))
        with pytest.raises(ValueError, match="too many parts"):
            for _ in wire._large_display(f'{{"data":{{{names}}}}}'.encode()):
                pass
