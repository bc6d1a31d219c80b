"""What a kernel's sockets send: messages within their limits or a `BadPeer`, however it is cut into pieces."""

from __future__ import annotations

from kernelbridge.jupyter.zmtp import BadPeer, Decoder, Ready, encode, opening

LIMIT = 600
"""Bytes of one message."""
_START = opening("SUB")

SEEDS = (
    b"\x00" + _START + encode([b"topic", b"x" * 300]) + encode([b"", b"\x01"]),
    b"\x07" + _START + b"\x04\x0a\x04PING\x00\x0aabc" + encode([b"y"] * 30),
    b"\x40" + _START + encode([b"x" * 601]),
    b"\x01" + _START + b"\x02\x00\x00\x00\x00\x00\x00\x00\x05short",
    b"\x00" + _START[:64] + b"\x04\x06\x05ERROR",
    b"\x00" + b"HTTP/1.1 200 OK\r\n\r\n" * 10,
)

TOKENS = (_START[:10], _START[:64], _START[64:], b"\x04\x0a\x04PING\x00\x0a", b"\x02" + bytes(7), b"\x03" + bytes(7))


def fuzz(data: bytes) -> None:
    """Read what comes in one piece, and once more in pieces whose size is the first byte."""
    size, sent = (data[0] or 1, data[1:]) if data else (1, b"")
    whole = _read([sent])
    assert _read([sent[at : at + size] for at in range(0, len(sent), size)]) == whole
    messages = [got for got in whole[0] if isinstance(got, list)]
    assert all(sum(map(len, message)) <= LIMIT for message in messages)
    again, failure = _read([_START, *map(encode, messages)])
    assert ([got for got in again if isinstance(got, list)], failure) == (messages, None)


def _read(pieces: list[bytes]) -> tuple[list[list[bytes] | bytes | Ready], str | None]:
    decoder = Decoder(LIMIT)
    got: list[list[bytes] | bytes | Ready] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (read := decoder.read()) is not None:
                got.append(read)
            assert decoder.waiting <= 64
    except BadPeer as exc:
        return got, str(exc)
    return got, None
