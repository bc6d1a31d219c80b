"""What a program sends to its proxy: what is accepted is what will be dialled, and what the other side will read."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from ipaddress import ip_address

import trustme

from kernelbridge.egress.client_hello import NotTlsError, read_client_hello
from kernelbridge.egress.hosts import (
    BadHostError,
    canonical_host,
    literal_address,
    not_public,
    split_authority,
    written,
)
from kernelbridge.egress.http_request import LONGEST_HEAD, BadRequestError, Connect, Forward, read_request, response

STATUSES = {400, 405, 411, 431}
_CANONICAL = re.compile(r"[a-z0-9_.:-]+")
_AUTHORITY = trustme.CA()
_SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
_AUTHORITY.issue_cert("pypi.org").configure_cert(_SERVER)


def hello(name: str) -> bytes:
    """Return the first bytes of a TLS client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


_HELLO = hello("pypi.org")
SEEDS = (
    b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\nProxy-Connection: keep-alive\r\n\r\n\x16\x03\x01",
    b"CONNECT [::ffff:10.0.0.1]:443 HTTP/1.0\r\n\r\n",
    b"CONNECT 0x7f.1:80 HTTP/1.1\r\n\r\n",
    b"GET http://a.example:8080/p?q HTTP/1.1\r\nHost: a.example\r\nConnection: close, X\r\nX: 1\r\nAccept: */*\r\n\r\n",
    b"POST HTTP://a.example?q HTTP/1.1\r\nContent-Length: 3\r\nTE: trailers\r\nCookie: \xe9\r\n\r\nabcd",
    b"PUT http://a.example HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PUT http://a.example/ HTTP/1.1\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc",
    b"a.example.",
    b"127.0.0.1",
    b"127.1:443",
    b"0x7f000001",
    b"0177.0.0.0x1:443",
    b"[2001:db8::1%eth0]:443",
    b"[64:ff9b::7f00:1]",
    b"xn--bcher-kva.example:65535",
    b"1.2.3.4.:443",
    _HELLO,
    _HELLO[:3] + b"\x00\x40" + _HELLO[5:69] + _HELLO[:3] + (len(_HELLO) - 69).to_bytes(2, "big") + _HELLO[69:],
    hello("A.Example"),
)

TOKENS = (
    *(
        b"CONNECT ",
        b"GET http://",
        b" HTTP/1.1\r\n",
        b"\r\n\r\n",
        b"\r\n",
        b"\n",
        b": ",
        b"Content-Length: ",
        b"Host: ",
    ),
    *(b"Transfer-Encoding: chunked", b"Connection: ", b"content-length", b"TE: ", b"Proxy-", b"@", b"#", b"?", b"\x00"),
    *(b"127.0.0.1", b"0x7f", b"017700000001", b"[::1]", b"::ffff:", b"64:ff9b::", b"%eth0", b".", b":443", b"xn--"),
    *(b"\x16\x03\x01", b"\x00\x00", b"\x00\x0b\x00\x09\x00\x00\x06", _HELLO[9:]),
)


def fuzz(data: bytes) -> None:
    """Read the same bytes as a request, as a ClientHello and as a host."""
    _check_request(data)
    _check_hello(data)
    _check_host(data.decode("utf-8", "replace"))


def _check_request(data: bytes) -> None:
    try:
        found = read_request(data)
    except BadRequestError as exc:
        bad = exc
    else:
        _check_accepted(data, found)
        return
    assert bad.status in STATUSES
    assert response(bad.status, bad.sentence, bad.sentence).count(b"\r\n\r\n") == 1


def _check_accepted(data: bytes, found: tuple[Connect | Forward, bytes] | None) -> None:
    if found is None:
        assert b"\r\n\r\n" not in data
        return
    request, rest = found
    head = data[: len(data) - len(rest)]
    assert data.endswith(rest)
    assert head.endswith(b"\r\n\r\n")
    assert len(head) <= LONGEST_HEAD + 4
    assert read_request(head[:-1]) is None
    assert read_request(data + b"more") == (request, rest + b"more")
    host = _check_host(request.authority)
    if isinstance(request, Forward) and host is not None:
        _check_passed_on(request, host)


def _check_passed_on(request: Forward, host: str) -> None:
    """Read what is sent to the server as a server does: one request, for this host, with a body of this length."""
    head = request.head(host)
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert head.count(b"\r\n\r\n") == 1
    assert first.count(b" ") == 2
    assert first.split(b" ")[1].startswith(b"/")
    names = [line.partition(b":")[0].lower() for line in lines]
    assert lines[0] == f"Host: {host}".encode()
    assert lines[-1] == b"Connection: close"
    assert (names.count(b"host"), names.count(b"connection")) == (1, 1)
    assert not {b"transfer-encoding", b"upgrade"}.intersection(names)
    assert not any(name.startswith(b"proxy-") for name in names)
    lengths = [line.partition(b":")[2] for line in lines if line.lower().startswith(b"content-length:")]
    assert [int(each) for each in lengths] == ([request.length] if lengths else [])
    assert lengths or request.length == 0
    again = head.replace(b" /", f" http://{request.authority}/".encode(), 1)
    assert read_request(again) == (request, b"")


def _check_hello(data: bytes) -> None:
    try:
        found = read_client_hello(data)
    except NotTlsError:
        return
    if found is None:
        return
    assert read_client_hello(data + b"more") == found
    for end in {0, 1, 5, len(data) // 2, len(data) - 1}:
        assert read_client_hello(data[:end]) in {None, found}
    seen = names_that_a_server_sees(data)
    assert seen == [] or (found.server_name or "").lower() == (seen[0] or "").lower()


def names_that_a_server_sees(data: bytes) -> list[str | None]:
    """Return the server name that OpenSSL finds in the first bytes of a client, or nothing if it refuses them."""
    seen: list[str | None] = []
    incoming = ssl.MemoryBIO()
    server = _SERVER.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    _SERVER.sni_callback = lambda _, name, __: seen.append(name)
    incoming.write(data)
    with contextlib.suppress(ssl.SSLError):
        server.do_handshake()
    return seen


def _check_host(text: str) -> str | None:
    """Return the canonical host of `host` or `host:port`, if it is one."""
    try:
        host, port = split_authority(text, 443)
    except BadHostError:
        return None
    assert 0 < port <= 65535
    assert _CANONICAL.fullmatch(host) is not None
    assert len(host) <= 253
    assert split_authority(written(host, port)) == (host, port)
    assert canonical_host(written(host, port).rpartition(":")[0]) == host
    literal = literal_address(host)
    assert literal is None or (str(literal) == host and isinstance(not_public(literal), str | None))
    assert _as_the_system_reads_it(host) == (literal and str(literal))
    return host


def _as_the_system_reads_it(host: str) -> str | None:
    """Return the address that the C library sees in a host without asking anybody, or None for a name."""
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return None
    return str(ip_address(found[0][4][0]))
