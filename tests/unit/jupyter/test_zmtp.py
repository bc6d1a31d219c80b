"""The wire protocol of ZeroMQ: what its own library sends and takes is the judge."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.jupyter.zmtp import MAX_FRAMES, READY, SUBSCRIBE_ALL, BadPeer, Decoder, Ready, encode, opening

PATIENCE = 20
LIMIT = 1000
GREETING = opening("SUB")[:64]
READY_COMMAND = opening("SUB")[64:]
PING = bytes((4, 4 + 1 + 2 + 3)) + b"\x04PING\x00\x0aabc"
PONG = bytes((4, 4 + 1 + 3)) + b"\x04PONGabc"

Got = list[list[bytes] | bytes | Ready]


def everything(pieces: Sequence[bytes], limit: int = LIMIT) -> Got:
    """Read pieces as they come."""
    decoder, got = Decoder(limit), []
    for piece in pieces:
        decoder.feed(piece)
        while (read := decoder.read()) is not None:
            got.append(read)
        assert decoder.waiting < 64
    return got


def after_ready(data: bytes, limit: int = LIMIT) -> Got:
    got = everything([GREETING + READY_COMMAND + data], limit)
    assert got[0] is READY
    return got[1:]


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*(piece for piece in pieces if piece), data[at:]]


frames = st.lists(st.binary(max_size=300), min_size=1, max_size=8)


@given(st.lists(frames, max_size=4), st.lists(st.integers(1, 400), max_size=20))
def test_messages_cut_anywhere(messages: list[list[bytes]], sizes: list[int]) -> None:
    data = GREETING + READY_COMMAND + b"".join(map(encode, messages))
    assert everything(cut(data, sizes), 10_000) == [READY, *messages]


@pytest.mark.parametrize("size", [0, 1, 254, 255, 256, 257, 1000])
def test_sizes_of_frames(size: int) -> None:
    """One byte holds a size up to 255."""
    message = [b"x" * size]
    assert after_ready(encode(message)) == [message]
    assert everything([bytes((byte,)) for byte in GREETING + READY_COMMAND + encode(message)]) == [READY, message]


def test_what_has_come_is_handed_over_before_the_rest() -> None:
    decoder = Decoder(LIMIT)
    decoder.feed(GREETING + READY_COMMAND + encode([b"one"]) + encode([b"two", b"2"])[:-1])
    assert [decoder.read(), decoder.read(), decoder.read()] == [READY, [b"one"], None]
    decoder.feed(b"2")
    assert [decoder.read(), decoder.read()] == [[b"two", b"2"], None]


def test_the_limit_is_that_of_all_frames_together() -> None:
    assert after_ready(encode([b"x" * 400, b"x" * 600]) * 2) == [[b"x" * 400, b"x" * 600]] * 2
    with pytest.raises(BadPeer, match="too large"):
        after_ready(encode([b"x" * 400, b"x" * 601]))


def test_a_frame_that_is_too_large_is_refused_before_it_comes() -> None:
    with pytest.raises(BadPeer, match="too large"):
        after_ready(encode([b"x" * 1001])[:9])
    with pytest.raises(BadPeer, match="too large"):
        after_ready(b"\x02" + b"\xff" * 8)


def test_the_number_of_frames_is_limited() -> None:
    assert after_ready(encode([b""] * MAX_FRAMES)) == [[b""] * MAX_FRAMES]
    with pytest.raises(BadPeer, match="too many frames"):
        after_ready(encode([b""] * (MAX_FRAMES + 1)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n".ljust(64), "does not speak version 3"),
        (GREETING[:9] + b"\x7e" + GREETING[10:], "does not speak version 3"),
        (GREETING[:10] + b"\x01" + GREETING[11:], "does not speak version 3"),
        (GREETING.replace(b"NULL\0", b"CURVE"), "asks for a security mechanism"),
        (GREETING + encode([b"early"]), "sent a message before it was ready"),
        (GREETING + b"\x04\x06\x05ERROR", "refused the connection"),
        (GREETING + READY_COMMAND + b"\x08\x00", "sent a frame of an unknown kind"),
        (GREETING + READY_COMMAND + b"\x05\x05\x04PING", "sent a frame of an unknown kind"),
        # What versions 1 and 2 send first, and then wait.
        (b"\x05\x00name", "does not speak version 3"),
        (GREETING[:10] + b"\x01\x05\x00\x00", "does not speak version 3"),
        (GREETING + READY_COMMAND + b"\x06" + (4097).to_bytes(8, "big"), "sent a command of ZeroMQ that is too large"),
    ],
)
def test_who_does_not_speak_it(data: bytes, why: str) -> None:
    with pytest.raises(BadPeer, match=why):
        everything([data])


def test_a_ping_is_answered_and_an_unknown_command_is_not() -> None:
    unknown = b"\x04\x05\x04WHAT"
    empty = b"\x04\x00"
    assert after_ready(PING + unknown + empty + READY_COMMAND + encode([b"x"])) == [PONG, b"", b"", b"", [b"x"]]
    half = encode([b"a", b"b"])
    assert after_ready(half[:3] + PING + half[3:]) == [PONG, [b"a", b"b"]]


def test_ignored_commands_are_handed_over_one_by_one() -> None:
    """Otherwise one `read` lasts as long as the peer likes."""
    decoder = Decoder(LIMIT)
    decoder.feed(GREETING + READY_COMMAND + b"\x04\x00" * 1000)
    assert decoder.read() is READY
    assert decoder.read() == b""
    assert decoder.waiting == 999 * 2


def test_an_idle_connection_keeps_nothing() -> None:
    decoder = Decoder(LIMIT)
    decoder.feed(GREETING + READY_COMMAND + encode([b"x" * 500]))
    while decoder.read() is not None:
        pass
    assert (decoder.waiting, decoder.pieces, decoder._piece, decoder._frames) == (0, 0, b"", [])


# -- with the library ----------------------------------------------------------


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


class Client:
    """Our side of one connection, blocking, and the library's."""

    def __init__(self, library: zmq.Socket[bytes], path: Path, first: bytes) -> None:
        self._library = library
        library.rcvtimeo = library.sndtimeo = PATIENCE * 1000
        library.bind(f"ipc://{path}")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.socket.sendall(first)
        self.decoder = Decoder(10 << 20)
        assert self.read() is READY

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._library.close(linger=0)

    def read(self) -> list[bytes] | bytes | Ready:
        while (read := self.decoder.read()) is None:
            data = self.socket.recv(1 << 16)
            assert data
            self.decoder.feed(data)
        return read


@pytest.mark.parametrize("size", [0, 255, 256, 3 << 20])
def test_a_router_takes_and_sends(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], size: int) -> None:
    router = context.socket(zmq.ROUTER)
    client = Client(router, tmp_path / "s", opening("DEALER", b"our name"))
    with client:
        client.socket.sendall(encode([b"x" * size, b"", b"last"]))
        assert router.recv_multipart() == [b"our name", b"x" * size, b"", b"last"]
        router.send_multipart([b"our name", b"", b"y" * size])
        assert client.read() == [b"", b"y" * size]


@pytest.mark.parametrize("kind", [zmq.PUB, zmq.XPUB])
def test_a_publisher_takes_the_subscription(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], kind: zmq.SocketType
) -> None:
    publisher = context.socket(kind)
    client = Client(publisher, tmp_path / "s", opening("SUB"))
    with client:
        client.socket.sendall(encode([SUBSCRIBE_ALL]))
        if kind == zmq.XPUB:
            assert publisher.recv() == SUBSCRIBE_ALL
        heard = False
        client.socket.settimeout(0.05)
        while not heard:  # a PUB socket tells nobody that it has taken it
            publisher.send_multipart([b"topic", b"text"])
            try:
                heard = client.read() == [b"topic", b"text"]
            except TimeoutError:
                continue


def test_heartbeats_are_answered(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router = context.socket(zmq.ROUTER)
    router.heartbeat_ivl, router.heartbeat_timeout = 20, PATIENCE * 1000
    client = Client(router, tmp_path / "s", opening("DEALER", b"name"))
    with client:
        for _ in range(3):
            pong = client.read()
            assert isinstance(pong, bytes)
            client.socket.sendall(pong)
        client.socket.sendall(encode([b"still here"]))
        assert router.recv_multipart() == [b"name", b"still here"]
