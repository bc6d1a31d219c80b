"""The head of a request to the proxy, read strictly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.egress.http_request import LONGEST_HEAD, BadRequestError, Connect, Forward, read_request, response


def test_connect() -> None:
    data = b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\nProxy-Connection: Keep-Alive\r\n\r\n\x16\x03"
    assert read_request(data) == (Connect("pypi.org:443"), b"\x16\x03")
    assert all(read_request(data[:end]) is None for end in range(len(data) - 2))


def test_a_request_that_is_passed_on() -> None:
    found = read_request(
        b"POST HTTP://APT.example.org:8080?q=1 HTTP/1.1\r\nHost: evil.example\r\nAccept: */*\r\nContent-Length: 5\r\n"
        b"Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: close\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\n"
        b"Keep-Alive: 5\r\nTE: trailers\r\nUpgrade: websocket\r\nAuthorization: Basic dQ==\r\n\r\nhello, and more"
    )
    assert found is not None
    request, rest = found
    assert isinstance(request, Forward)
    assert (request.authority, request.length, rest) == ("APT.example.org:8080", 5, b"hello, and more")
    assert request.head("apt.example.org:8080") == (
        b"POST /?q=1 HTTP/1.1\r\nHost: apt.example.org:8080\r\nAccept: */*\r\nContent-Length: 5\r\n"
        b"Authorization: Basic dQ==\r\nConnection: close\r\n\r\n"
    )


def test_no_connection_header_takes_the_length_of_a_body_away() -> None:
    """The server would read the body as another request, which nobody has judged."""
    found = read_request(
        b"POST http://a.example/ HTTP/1.1\r\nConnection: Content-Length, X\r\nContent-Length: 5\r\nX: 1\r\n\r\nhello"
    )
    assert found is not None
    request, _ = found
    assert isinstance(request, Forward)
    assert request.fields == (("Content-Length", "5"),)


GET = b"GET http://a.example/ HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),  # TLS to the proxy itself
        (b"\x05\x01\x00", 400),  # SOCKS
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
        (b"GET https://a.example/ HTTP/1.1\r\n\r\n", 400),
        (b"GET ftp://a.example/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://a.example/ HTTP/2.0\r\n\r\n", 400),
        (b"GET http://a.example/#x HTTP/1.1\r\n\r\n", 400),
        (b"GET  http://a.example/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://a.example/ x HTTP/1.1\r\n\r\n", 400),
        (b"GET http://a.ex\xc3\xa4mple/ HTTP/1.1\r\n\r\n", 400),
        (b"get http://a.example/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://a.example/ HTTP/1.1\nHost: a.example\r\n\r\n", 400),
        (b"TRACE http://a.example/ HTTP/1.1\r\n\r\n", 405),
        (GET + b"Host : a.example\r\n\r\n", 400),
        (GET + b" folded: yes\r\n\r\n", 400),
        (GET + b"A: 1\r\n folded\r\n\r\n", 400),
        (GET + b"A: 1\rB: 2\r\n\r\n", 400),
        (GET + b"A: 1\nB: 2\r\n\r\n", 400),
        (GET + b"A: \x00\r\n\r\n", 400),
        (GET + b"no colon\r\n\r\n", 400),
        (GET + b"A: 1\r\n" * 101 + b"\r\n", 400),
        (GET + b"Host: a\r\nHost: b\r\n\r\n", 400),
        (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (GET + b"Content-Length: 1, 2\r\n\r\n", 400),
        (GET + b"Content-Length: +1\r\n\r\n", 400),
        (GET + b"Content-Length: 0x1\r\n\r\n", 400),
        (GET + b"Content-Length: \xb2\r\n\r\n", 400),
        (GET + b"Transfer-Encoding: chunked\r\n\r\n", 411),
        (b"A" * (LONGEST_HEAD + 1), 431),
        (GET + b"A: " + b"x" * LONGEST_HEAD + b"\r\n\r\n", 431),
    ],
)
def test_what_is_malformed_or_doubtful_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(BadRequestError) as caught:
        read_request(data)
    assert caught.value.status == status
    assert caught.value.sentence.endswith(".")


@given(st.binary(max_size=300))
def test_no_bytes_break_it(noise: bytes) -> None:
    for data in (noise, noise + b"\r\n\r\n", GET + noise + b"\r\n\r\n", b"CONNECT " + noise + b" HTTP/1.1\r\n\r\n"):
        try:
            found = read_request(data)
        except BadRequestError:
            continue
        if found is not None and isinstance(found[0], Forward):
            head = found[0].head("a.example")
            assert b"\0" not in head
            assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r")


def test_a_response_is_one() -> None:
    answer = response(403, "ref\r\nused: \xe9", "Not this one.")
    assert answer.startswith(b"HTTP/1.1 403 ref used:  \r\n")
    assert b"Content-Length: 14\r\n" in answer
    assert answer.endswith(b"\r\n\r\nNot this one.\n")
