"""A client's bytes are cut into whole messages, however they come, and what RFC 6455 forbids is seen."""

import random
import struct

import pytest
from aiohttp import WSCloseCode
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.server.websocket.frames import BINARY, CLOSE, CONTINUATION, FRAMES_AT_ONCE, PING, TEXT, Frames, Taken
from tests.unit.server.conftest import masked

LIMIT = 1000


def fed(frames: Frames, data: bytes) -> list[Taken]:
    """Return bytes as a connection does: what was not taken is given again."""
    taken = []
    while True:
        taken.append(frames.take(data))
        data = data[taken[-1].used :]
        if not taken[-1].more:
            return taken


def fragments(payloads: list[bytes], opcode: int) -> list[bytes]:
    """Return a message in one frame for each payload."""
    last = len(payloads) - 1
    return [masked(CONTINUATION if n else opcode, each, fin=n == last) for n, each in enumerate(payloads)]


MESSAGES = st.lists(
    st.tuples(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.sampled_from([TEXT, BINARY]), st.booleans())
)


@given(messages=MESSAGES, seed=st.integers(0, 99))
def test_whole_messages_come_out_in_order_whatever_pieces_they_come_in(
    messages: list[tuple[list[bytes], int, bool]], seed: int
) -> None:
    chance, frames = random.Random(seed), Frames(LIMIT)
    sent, expected, pings = b"", b"", 0
    for payloads, opcode, pinged in messages:
        whole = fragments(payloads, opcode)
        expected += b"".join(whole)
        if pinged:  # between two fragments
            whole.insert(1, masked(PING, b"?"))
            pings += 1
        sent += b"".join(whole)
    out, size, count, rest = b"", 0, 0, b""
    while sent:
        cut = chance.choice([1, 2, 7, 50, 1000])
        rest, sent = rest + sent[:cut], sent[cut:]
        for taken in fed(frames, rest):
            assert taken.violation is None
            out += b"".join(map(bytes, taken.whole))
            size, count, rest = size + taken.size, count + taken.messages, rest[taken.used :]
    assert (rest, frames.held, frames.unfinished) == (b"", 0, False)
    assert out.count(masked(PING, b"?")) >= pings
    assert out.replace(masked(PING, b"?"), b"") == expected.replace(masked(PING, b"?"), b"")
    assert (size, count) == (sum(len(each) for payloads, *_ in messages for each in payloads), len(messages))


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536])
def test_lengths_at_which_the_header_changes(length: int) -> None:
    frames, data = Frames(1 << 20), masked(TEXT, bytes(length))
    for pieces in ([data], [data[:1], data[1:3], data[3:9], data[9:]]):
        rest, size, count = b"", 0, 0
        for piece in pieces:
            rest += piece
            for taken in fed(frames, rest):
                assert taken.violation is None
                size, count, rest = size + taken.size, count + taken.messages, rest[taken.used :]
        assert (size, count, rest) == (length, 1, b"")


def test_a_ping_between_fragments_is_handed_on_before_the_message() -> None:
    frames = Frames(LIMIT)
    assert fed(frames, masked(TEXT, b"be", fin=False) + masked(PING))[0].whole == [masked(PING)]
    assert (frames.held, frames.unfinished) == (8, True)
    (end,) = fed(frames, masked(CONTINUATION, b"gun"))
    assert (end.size, end.messages, bytes(end.whole[0])) == (5, 1, b"".join(fragments([b"be", b"gun"], TEXT)))
    assert (frames.held, frames.unfinished) == (0, False)


def test_exactly_the_limit_is_no_more_than_the_limit() -> None:
    assert fed(Frames(LIMIT), masked(TEXT, bytes(LIMIT)))[0].size == LIMIT
    for data in (
        masked(TEXT, length=LIMIT + 1),
        masked(TEXT, bytes(600), fin=False) + masked(CONTINUATION, length=401),
        masked(BINARY, length=1 << 63),
    ):
        violation = fed(Frames(LIMIT), data)[-1].violation
        assert violation is not None
        assert violation.code == WSCloseCode.MESSAGE_TOO_BIG


def test_what_follows_a_message_that_is_too_large_is_only_looked_through_for_a_close() -> None:
    frames = Frames(LIMIT)
    fed(frames, masked(TEXT, length=LIMIT + 1))
    taken = fed(frames, bytes(LIMIT + 1) + masked(TEXT, b"x") + masked(CLOSE))[-1]
    assert (taken.whole, taken.closes, taken.violation, frames.held) == ([], True, None, 0)


def test_fragments_without_end_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelbridge.server.websocket.frames._SPARE", 1000)
    frames = Frames(LIMIT)
    fed(frames, masked(TEXT, fin=False))
    nothing = masked(CONTINUATION, fin=False)
    taken = fed(frames, nothing * 1000)
    assert taken[-1].violation is not None
    assert taken[-1].violation.code == WSCloseCode.MESSAGE_TOO_BIG


def test_many_small_frames_are_taken_some_at_a_time() -> None:
    frames, ping = Frames(LIMIT), masked(PING)
    first = frames.take(ping * (FRAMES_AT_ONCE + 1))
    assert (first.used, first.more) == (len(ping) * FRAMES_AT_ONCE, True)
    assert not frames.take(ping).more


def test_dropping_forgets_and_keeps_nothing() -> None:
    frames = Frames(LIMIT)
    fed(frames, masked(TEXT, bytes(500), length=900))
    assert frames.held == 508
    frames.drop()
    assert frames.held == 0
    taken = fed(frames, bytes(400) + masked(TEXT, b"x") + masked(TEXT, length=5000))[-1]
    assert (taken.whole, taken.violation, frames.held) == ([], None, 0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x81\x01x", id="unmasked"),
        pytest.param(b"\x89\x00", id="unmasked ping"),
        pytest.param(b"\xc1\x80\0\0\0\0", id="rsv1"),
        pytest.param(b"\xa1\x80\0\0\0\0", id="rsv2"),
        pytest.param(b"\x91\x80\0\0\0\0", id="rsv3"),
        pytest.param(masked(0x3), id="opcode 3"),
        pytest.param(masked(0xB), id="opcode 11"),
        pytest.param(masked(PING, fin=False), id="fragmented ping"),
        pytest.param(masked(PING, bytes(126)), id="long ping"),
        pytest.param(masked(CLOSE, struct.pack("!H", 1000) + bytes(124)), id="long close"),
        pytest.param(masked(CONTINUATION, b"x"), id="nothing to continue"),
        pytest.param(masked(TEXT, fin=False) + masked(TEXT, b"x"), id="a message within a message"),
        pytest.param(masked(TEXT, b"x", fin=False) + masked(BINARY, b"x", fin=False), id="likewise, begun"),
        pytest.param(masked(CLOSE, b"\x03"), id="half a code"),
        *(
            pytest.param(masked(CLOSE, struct.pack("!H", code)), id=f"close {code}")
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
        ),
    ],
)
def test_what_the_rfc_forbids_is_a_protocol_error(data: bytes) -> None:
    violation = fed(Frames(LIMIT), masked(TEXT, b"before") + data)[-1].violation
    assert violation is not None
    assert violation.code == WSCloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999])
def test_codes_that_a_client_may_close_with(code: int) -> None:
    masked_code = bytes(a ^ b for a, b in zip(struct.pack("!H", code), b"\x5a\xa5", strict=True))
    taken = fed(Frames(LIMIT), b"\x88\x84\x5a\xa5\x00\x00" + masked_code + b"ok")[-1]
    assert (taken.violation, taken.closes) == (None, True)
