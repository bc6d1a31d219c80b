"""The server name in a ClientHello: those of this Python's TLS, and malformed ones."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.egress.client_hello import LONGEST, NotTlsError, read_client_hello


def client_hello(name: str | None) -> bytes:
    """Return the first bytes of a TLS client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """Divide a hello of one record into records of `size` bytes."""
    body = hello[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(hello[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def made(*extensions: tuple[int, bytes]) -> bytes:
    """Make a hello with these extensions."""
    block = b"".join(kind.to_bytes(2, "big") + len(text).to_bytes(2, "big") + text for kind, text in extensions)
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + len(block).to_bytes(2, "big") + block
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def server_name(*names: bytes) -> tuple[int, bytes]:
    entries = b"".join(b"\x00" + len(name).to_bytes(2, "big") + name for name in names)
    return 0, len(entries).to_bytes(2, "big") + entries


def test_the_name_that_a_client_sends() -> None:
    for name in ("pypi.org", None):
        found = read_client_hello(client_hello(name))
        assert found is not None
        assert found.server_name == name


def test_it_may_come_in_pieces_and_in_several_records() -> None:
    for size in (40, 100):
        hello = in_records(client_hello("pypi.org"), size)
        assert [read_client_hello(hello[:end]) for end in range(0, len(hello), 13)] == [None] * len(
            range(0, len(hello), 13)
        )
        found = read_client_hello(hello + b"more")
        assert found is not None
        assert found.server_name == "pypi.org"


def test_a_hello_in_very_many_records_is_refused() -> None:
    """Each piece that comes is looked at together with all before it."""
    hello = in_records(client_hello("pypi.org"), 8)
    assert read_client_hello(hello[:100]) is None
    with pytest.raises(NotTlsError):
        read_client_hello(hello)


def test_an_encrypted_hello_is_judged_by_its_outer_name() -> None:
    found = read_client_hello(made((0xFE0D, b"anything"), server_name(b"outer.example")))
    assert found is not None
    assert found.server_name == "outer.example"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x00\x02",  # of SSL 2
        b"\x15\x03\x03\x00\x02\x02\x28",  # an alert
        b"\x16\x02\x00\x00\x01\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",  # without fields
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # as long as can be
        made(server_name(b"a.example", b"b.example")),
        made(server_name(b"a.example"), server_name(b"b.example")),
        made((0, b"\x00\x09\x00\x00\x20short")),
    ],
)
def test_what_is_no_hello_is_refused(data: bytes) -> None:
    with pytest.raises(NotTlsError):
        read_client_hello(data)


def test_a_hello_without_end_is_refused() -> None:
    for piece in (1, 1000):
        hello = in_records(b"\x16\x03\x01\x00\x00\x01\x00\x7f\xff" + bytes(LONGEST), piece)
        with pytest.raises(NotTlsError):
            read_client_hello(hello)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_break_it(noise: bytes, at: int) -> None:
    hello = made(server_name(b"pypi.org"))
    for data in (noise, b"\x16\x03\x01\x00" + noise, hello[:at] + noise + hello[at:]):
        try:
            read_client_hello(data)
        except NotTlsError:
            continue
