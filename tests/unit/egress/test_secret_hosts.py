"""Requests for a host that has secrets, through a running proxy on real sockets."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trustme

from kernelbridge.egress import exchange, meter
from kernelbridge.egress import proxy as module
from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.authority import Authority, client_context
from kernelbridge.egress.client_hello import ACCESS_DENIED
from kernelbridge.egress.exchange import SecretHosts
from kernelbridge.egress.policy import Policies, read_network, read_rule
from kernelbridge.egress.proxy import Common
from kernelbridge.egress.secrets import Secret, SecretHeader
from tests.unit.egress.hosts_of_the_test import (
    LOOPBACK,
    PATIENCE,
    NamesOfTheTest,
    Program,
    Serve,
    certified,
    host,
    proxy_for,
    read_all,
)

HOST, OTHER = "api.example", "other.example"
SECRET = b"Bearer k-1234567890"


@dataclass
class SecretFile:
    """The place of a secret, which the test may change."""

    value: Secret | None = field(default_factory=lambda: Secret(SECRET))


@dataclass
class Requests:
    """A host that keeps what it is sent, and answers each request with its body."""

    seen: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while head := await self._head(reader):
            body = await self._body(head, reader)
            self.seen.append(head)
            close = b"connection: close" in head.lower()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Seen: %d\r\n\r\n" % (len(body), len(self.seen)))
            writer.write(body)
            await writer.drain()
            if close:
                return

    @staticmethod
    async def _head(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    @staticmethod
    async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
        body = b""
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                body = await reader.readexactly(int(line[15:]))
            if line == b"transfer-encoding: chunked":
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
        return body


@dataclass
class House:
    """A proxy, a host behind it that has a secret, and what the program sees of both."""

    program: Program
    port: int
    authority: Authority
    outer: trustme.CA
    file: SecretFile

    @property
    def name(self) -> str:
        return f"{HOST}:{self.port}"

    async def stream(self, trusted: bytes | None = None) -> "Stream":
        """Open a tunnel and begin TLS in it."""
        context = ssl.create_default_context(cadata=(trusted or self.authority.certificate).decode())
        context.set_alpn_protocols(["h2", "http/1.1"])
        ours = await self.program.tunnel(self.name)
        async with asyncio.timeout(PATIENCE):
            return Stream(*await asyncio.open_connection(sock=ours, ssl=context, server_hostname=HOST))

    async def ask(self, *requests: bytes) -> bytes:
        """Send requests, and return all that comes until the end."""
        stream = await self.stream()
        stream.writer.write(b"".join(requests))
        async with asyncio.timeout(PATIENCE):
            return await stream.rest()

    def get(self, *fields: str, method: str = "GET", target: str = "/v1", host: str | None = None) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.name if host is None else host}", *fields]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Stream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def rest(self) -> bytes:
        data = await self.reader.read()
        self.writer.close()
        return data

    async def answer(self, request: bytes) -> tuple[bytes, bytes]:
        """Send a request, and return the head and the body of its answer, whose length it says."""
        self.writer.write(request)
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            [length] = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            return head, await self.reader.readexactly(length)


CLOSE = "Connection: close"


@asynccontextmanager
async def house(
    serve: Serve,
    *,
    header: str = "Authorization",
    allowance: Allowance | None = None,
    names: tuple[str, ...] = (HOST, OTHER),
    trusted: trustme.CA | None = None,
    plain: int | None = None,
    common: Common | None = None,
    user: str = "ada",
) -> AsyncIterator[House]:
    """Run a proxy before a host; with `plain`, HTTP without TLS is allowed there, too, at that port."""
    outer, authority, secret = trustme.CA(), Authority.make([HOST]), SecretFile()
    context = certified(outer, *names)
    context.set_alpn_protocols(["http/1.1"])
    async with host(serve, context) as port:
        rules = tuple(map(read_rule, (f"{HOST}:{port}", f"{OTHER}:{port}")))
        if plain is not None:
            rules = (*rules, read_rule(f"http://{HOST}:{plain}"))
        hosts = SecretHosts(
            {(HOST, port): (SecretHeader(header, secret),)},
            authority,
            client_context((trusted or outer).cert_pem.bytes()),
        )
        async with proxy_for(
            policies=Policies("packages", rules, networks=(read_network(LOOPBACK),)),
            allowance=allowance,
            common=common,
            user=user,
            secret_hosts=hosts,
        ) as program:
            yield House(program, port, authority, outer, secret)


async def test_the_host_gets_the_secret_and_the_program_never_has_it() -> None:
    requests = Requests()
    async with house(requests) as it:
        answer = await it.ask(it.get(CLOSE, "X-Mine: 1"))
        assert answer.startswith(b"HTTP/1.1 200")
        assert SECRET not in answer
        [head] = requests.seen
        assert head.startswith(b"GET /v1 HTTP/1.1\r\nHost: %s\r\n" % it.name.encode())
        assert head.count(SECRET) == 1
        assert b"\r\nAuthorization: %s\r\n" % SECRET in head
        assert b"X-Mine: 1\r\n" in head
        await it.program.settled()
        opened, closed = it.program.accesses
        assert (opened.outcome, closed.outcome) == ("opened", "closed")
        assert closed.sent > 500  # as much as a tunnel would have moved, handshakes included
        assert closed.received > 500


@pytest.mark.parametrize("own", ["Authorization: mine", "authorization: mine", "AUTHORIZATION: a\r\nauthorization: b"])
async def test_what_the_program_sends_in_its_place_is_replaced(own: str) -> None:
    requests = Requests()
    async with house(requests) as it:
        await it.ask(it.get(own, CLOSE))
        assert requests.seen[0].lower().count(b"authorization:") == 1
        assert SECRET in requests.seen[0]


async def test_a_twin_with_underscores_is_replaced_too() -> None:
    requests = Requests()
    async with house(requests, header="X-Api-Key") as it:
        await it.ask(it.get("X_Api_Key: mine", "X-api_key: mine", CLOSE))
        assert b"mine" not in requests.seen[0]
        assert b"\r\nX-Api-Key: %s\r\n" % SECRET in requests.seen[0]


async def test_fields_for_the_proxy_go_no_further_and_cannot_take_the_secret_away() -> None:
    requests = Requests()
    async with house(requests) as it:
        sent = (
            "Proxy-Authorization: mine",
            "Proxy-Connection: x",
            "Connection: close, Authorization, X-Hop",
            "X-Hop: y",
        )
        await it.ask(it.get(*sent))
        [head] = requests.seen
        assert SECRET in head
        for name in (b"proxy-", b"x-hop", b"connection"):
            assert name not in head.lower()


async def test_another_hosts_tls_is_not_touched() -> None:
    requests = Requests()
    async with house(requests) as it:
        context = ssl.create_default_context(cadata=it.outer.cert_pem.bytes().decode())
        ours = await it.program.tunnel(f"{OTHER}:{it.port}")
        reader, writer = await asyncio.open_connection(sock=ours, ssl=context, server_hostname=OTHER)
        writer.write(it.get(CLOSE, "Authorization: mine", "Proxy-Authorization: mine", host=OTHER))
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert b"\r\nAuthorization: mine\r\nProxy-Authorization: mine\r\n" in requests.seen[0]
        assert SECRET not in requests.seen[0]


async def test_the_secret_never_goes_without_tls() -> None:
    requests = Requests()
    async with house(requests) as it:
        target = f"http://{HOST}:{it.port}/"
        answer = await it.program.ask(f"GET {target} HTTP/1.1\r\nHost: {it.name}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403")
        ours = await it.program.tunnel(it.name)
        await asyncio.get_running_loop().sock_sendall(ours, it.get())
        assert await read_all(ours) == ACCESS_DENIED
        ours.close()
        assert requests.seen == []
        assert [each.reason for each in it.program.denied] == ["plain_http", "no_tls"]


async def test_it_does_not_go_without_tls_where_that_is_allowed() -> None:
    requests = Requests()
    async with host(requests) as plain, house(Requests(), plain=plain) as it:
        answer = await it.program.ask(f"GET http://{HOST}:{plain}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200")
        [head] = requests.seen
        assert b"authorization" not in head.lower()


async def test_the_secret_never_goes_to_a_host_that_is_not_verified() -> None:
    requests = Requests()
    async with house(requests, trusted=trustme.CA()) as it:
        answer = await it.ask(it.get())
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"its certificate is not valid" in answer
    async with house(requests, names=(OTHER,)) as it:
        answer = await it.ask(it.get())
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"its certificate is not valid: Hostname mismatch" in answer
        await it.program.settled()
        assert [each.outcome for each in it.program.accesses] == ["opened", "failed", "closed"]
    assert requests.seen == []


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    names = NamesOfTheTest({HOST: ["10.0.0.1"]})
    secret_hosts = SecretHosts(
        {(HOST, 443): (SecretHeader("Authorization", SecretFile()),)},
        Authority.make([HOST]),
        client_context(trustme.CA().cert_pem.bytes()),
    )
    async with proxy_for(HOST, resolve=names, secret_hosts=secret_hosts) as it:
        assert (await it.ask(f"CONNECT {HOST}:443 HTTP/1.1\r\n\r\n".encode())).startswith(b"HTTP/1.1 403")
        assert names.asked == [HOST]
        assert it.denied[0].reason == "private_address"


async def test_tls_for_another_name_is_refused_before_it_is_ended() -> None:
    async with house(Requests()) as it:
        ours = await it.program.tunnel(it.name)
        context = ssl.create_default_context(cadata=it.authority.certificate.decode())
        with pytest.raises(ssl.SSLError, match=r"(?i)access denied"):
            await asyncio.open_connection(sock=ours, ssl=context, server_hostname=OTHER)
        ours.close()
        assert it.program.denied[0].reason == "server_name"


REFUSED = {
    "another Host": (b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 421, "host_header"),
    "the Host without its port": (b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n", 421, "host_header"),
    "a Host that is none": (b"GET / HTTP/1.1\r\nHost: api.example@other.example\r\n\r\n", 421, "host_header"),
    "no Host in HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", 421, "host_header"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: %s\r\nHost: other.example\r\n\r\n", 400, "bad_request"),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: %s\r\n\r\n", 405, "method"),
    "TRACK": (b"TRACK / HTTP/1.1\r\nHost: %s\r\n\r\n", 405, "method"),
    "CONNECT": (b"CONNECT other.example:443 HTTP/1.1\r\nHost: %s\r\n\r\n", 405, "method"),
    "a whole URL": (b"GET https://other.example/ HTTP/1.1\r\nHost: %s\r\n\r\n", 400, "bad_request"),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        400,
        "bad_request",
    ),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "another coding": (
        b"POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "chunks that are none": (
        b"POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        400,
        "bad_request",
    ),
    "a length that is none": (b"POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: +1\r\n\r\na", 400, "bad_request"),
    "a space before the colon": (b"GET / HTTP/1.1\r\nHost: %s\r\nX : y\r\n\r\n", 400, "bad_request"),
    "a WebSocket": (
        b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        501,
        "upgrade",
    ),
    "a head without end": (b"GET / HTTP/1.1\r\nHost: %s\r\nX: " + b"y" * (17 << 10), 400, "bad_request"),
    "a line that is no field": (b"GET / HTTP/1.1\r\nHost: %s\r\n" + b"z" * 9000 + b"\r\n\r\n", 400, "bad_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
    "something else": (b"\x00\x01\x02\r\n\r\n", 400, "bad_request"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_doubtful_request_is_refused_with_a_reason(case: str) -> None:
    sent, status, reason = REFUSED[case]
    requests = Requests()
    async with house(requests) as it:
        answer = await it.ask(sent.replace(b"%s", it.name.encode()))
        assert answer.startswith(f"HTTP/1.1 {status} {reason}: refused".encode()), answer
        assert f"refuses {it.name}: ".encode() in answer
        [denied] = it.program.denied
        assert (denied.reason, denied.host, denied.port, denied.status) == (reason, HOST, it.port, status)
        assert denied.sentence.encode() in answer
        assert len(denied.sentence) < 400
        await it.program.settled()
        assert [each.outcome for each in it.program.accesses] == ["opened", "denied", "closed"]
        assert all(SECRET not in head or case == "chunks that are none" for head in requests.seen)


async def test_many_requests_on_one_connection() -> None:
    requests = Requests()
    async with house(requests) as it:
        stream = await it.stream()
        assert (await stream.answer(it.get()))[1] == b""
        assert (await stream.answer(it.get("Content-Length: 4", method="POST") + b"body"))[1] == b"body"
        chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        assert (await stream.answer(it.get("Transfer-Encoding: chunked", method="PUT") + chunks))[1] == b"abcde"
        # Two at once: the second waits for its turn.
        head, _ = await stream.answer(it.get() + it.get(CLOSE))
        assert b"X-Seen: 4" in head
        assert b"X-Seen: 5" in await stream.rest()
        assert requests.connections == 1
        assert all(head.count(SECRET) == 1 for head in requests.seen)
        refused = await it.ask(it.get(), it.get(host=OTHER))
        assert refused.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 421" in refused


async def test_a_new_secret_counts_from_the_next_request_on() -> None:
    requests = Requests()
    async with house(requests) as it:
        stream = await it.stream()
        await stream.answer(it.get())
        it.file.value = Secret(b"Bearer new")
        await stream.answer(it.get())
        assert [b"Bearer new" in head for head in requests.seen] == [False, True]
        it.file.value = None
        stream.writer.write(it.get())
        answer = await stream.rest()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the server has no secret for it any more" in answer
        assert len(requests.seen) == 2


async def test_a_host_need_not_wait_for_a_program_that_was_refused() -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        with contextlib.suppress(OSError):
            await reader.read()
        left.set()

    async with house(serve) as it:
        context = ssl.create_default_context(cadata=it.authority.certificate.decode())
        ours = await it.program.tunnel(it.name)
        ours.settimeout(PATIENCE)
        program = await asyncio.to_thread(context.wrap_socket, ours, server_hostname=HOST)

        def ask() -> bytes:
            program.sendall(it.get())
            return program.recv(1000)

        assert (await asyncio.to_thread(ask)).startswith(b"HTTP/1.1 200")
        it.file.value = None
        assert (await asyncio.to_thread(ask)).startswith(b"HTTP/1.1 503")
        async with asyncio.timeout(meter.HALF_CLOSED_SECONDS / 2):
            await left.wait()  # the program has not closed its own side
        program.close()


async def test_answers_pass_as_they_come_and_without_limit() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: x\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        begun.set()
        await go_on.wait()
        for _ in range(64):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with house(serve) as it:
        stream = await it.stream()
        stream.writer.write(it.get(CLOSE))
        async with asyncio.timeout(PATIENCE):
            head = await stream.reader.readuntil(b"\r\n\r\n")
            assert b"keep-alive: x" not in head.lower()
            assert await stream.reader.readexactly(10) == b"5\r\nfirst\r\n"
            go_on.set()
            rest = await stream.rest()
        assert rest.count(b"x") == 64 * 65536
        assert rest.endswith(b"0\r\n\r\n")


async def test_answers_without_a_body() -> None:
    heads = (b"200 OK\r\nContent-Length: 7", b"304 Not Modified\r\nContent-Length: 7", b"204 No Content")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for head in heads:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + head + b"\r\n\r\n")
            await writer.drain()
        await reader.read()

    async with house(serve) as it:
        stream = await it.stream()
        for method, head in zip(("HEAD", "GET", "GET"), heads, strict=True):
            stream.writer.write(it.get(method=method))
            async with asyncio.timeout(PATIENCE):
                assert await stream.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 " + head + b"\r\n\r\n"
        stream.writer.close()


async def test_an_answer_that_ends_with_its_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"y" * 100_000)
        await writer.drain()

    async with house(serve) as it:
        answer = await it.ask(it.get())
        assert answer.count(b"y") == 100_000
        assert answer.endswith(b"0\r\n\r\n")
        assert b"connection: close" in answer.lower()


async def test_an_answer_that_is_cut_off_is_not_taken_for_a_whole_one() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await writer.drain()
        writer.transport.abort()

    async with house(serve) as it:
        stream = await it.stream()
        stream.writer.write(it.get())
        got = b""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                while more := await stream.reader.read(1000):
                    got += more
        stream.writer.close()
        assert not got.endswith(b"0\r\n\r\n")
        await it.program.settled()


@pytest.mark.parametrize("answer", [b"", b"hello\r\n\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"])
async def test_a_host_that_does_not_answer_in_http(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with house(serve) as it:
        got = await it.ask(it.get())
        assert got.startswith(b"HTTP/1.1 502")
        assert SECRET not in got
        await it.program.settled()
        assert [each.outcome for each in it.program.accesses] == ["opened", "failed", "closed"]


async def test_an_early_answer_ends_a_request_that_is_still_being_sent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read(1 << 20)

    async with house(serve) as it:
        answer = await it.ask(it.get("Content-Length: 100000000", method="POST"), b"z" * 100_000)
        assert answer.startswith(b"HTTP/1.1 413")
        assert answer.endswith(b"no")


async def test_a_program_that_is_answered_early_may_go_on_sending_for_a_while() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()

    def send(ours: socket.socket, head: bytes, context: ssl.SSLContext) -> bytes:
        ours.settimeout(PATIENCE)
        with context.wrap_socket(ours, server_hostname=HOST) as tls:
            tls.sendall(head + b"z" * 100_000)
            answer = b""
            while data := tls.recv(1000):
                answer += data
            for _ in range(5):  # the second one after a reset fails
                tls.sendall(b"z" * 1000)
                time.sleep(0.02)
            return answer

    async with house(serve) as it:
        context = ssl.create_default_context(cadata=it.authority.certificate.decode())
        head = it.get("Content-Length: 100000000", method="POST")
        answer = await asyncio.to_thread(send, await it.program.tunnel(it.name), head, context)
        assert answer.startswith(b"HTTP/1.1 413")
        await it.program.settled()


async def test_a_program_that_waits_before_it_sends_a_body() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"expect: 100-continue" in head.lower()
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        body = await reader.readexactly(4)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + body)
        await writer.drain()

    async with house(serve) as it:
        stream = await it.stream()
        stream.writer.write(it.get("Expect: 100-continue", "Content-Length: 4", method="POST"))
        async with asyncio.timeout(PATIENCE):
            assert (await stream.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            stream.writer.write(b"body")
            assert (await stream.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await stream.reader.readexactly(4) == b"body"
        stream.writer.close()


async def test_a_program_that_ends_ends_its_request_at_the_host() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):
            await reader.read()
        ended.set()

    async with house(serve) as it:
        stream = await it.stream()
        stream.writer.write(it.get())
        await stream.writer.drain()
        while it.program.accesses[-1].outcome != "opened":  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)
        stream.writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        await it.program.settled()


async def test_a_session_that_has_used_up_its_bytes() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

    async with house(serve, allowance=Allowance(None, 1 << 20)) as it:
        stream = await it.stream()
        stream.writer.write(it.get())
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                assert len(await stream.rest()) < 2 << 20
        await it.program.settled()
        assert [denied.reason for denied in it.program.denied] == ["bytes"]


async def test_the_rate_of_a_session_holds() -> None:
    rate, size = 1 << 20, 2 << 20
    loop = asyncio.get_running_loop()
    async with house(Requests(), allowance=Allowance(rate, None)) as it:
        stream = await it.stream()
        began = loop.time()
        _, body = await stream.answer(it.get(f"Content-Length: {size}", method="POST") + b"x" * size)
        assert len(body) == size
        assert loop.time() - began > 2.5  # both directions together, and one second may be used at once
        stream.writer.close()


async def test_a_connection_that_stands_still_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter.Meter.__init__, "__kwdefaults__", {"idle": 0.5, "half_closed": 0.5})
    monkeypatch.setattr(exchange, "HALF_CLOSED_SECONDS", 0.5)
    async with house(Requests()) as it:
        stream = await it.stream()
        await stream.answer(it.get())
        await it.program.settled()
        stream.writer.transport.abort()


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /v1 HTTP/1.1\r\nX: ",
        b"POST /v1 HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1;",
    ],
    ids=["a head", "what is between chunks"],
)
async def test_what_is_kept_until_it_is_whole_is_limited_in_time(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(exchange, "HEAD_SECONDS", 0.2)
    async with house(Requests()) as it:
        stream = await it.stream()
        await stream.answer(it.get())
        stream.writer.write(begun.replace(b"%s", it.name.encode()))
        async with asyncio.timeout(PATIENCE):
            answer = await stream.rest()
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"is not whole after 0.2 s" in answer
        assert b"not HTTP/1.1" not in answer
        await it.program.settled()
        assert [denied.reason for denied in it.program.denied] == ["bad_request"]


async def test_a_pause_between_requests_or_in_a_body_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, middle = 0.2, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            middle.set()
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.setattr(exchange, "HEAD_SECONDS", limit)
    async with house(serve) as it:
        stream = await it.stream()
        for _ in range(2):
            await asyncio.sleep(1.5 * limit)
            middle.clear()
            stream.writer.write(it.get("Content-Length: 4", method="POST") + b"ab")
            async with asyncio.timeout(PATIENCE):
                await middle.wait()
            await asyncio.sleep(1.5 * limit)
            head, _ = await stream.answer(b"cd")
            assert head.startswith(b"HTTP/1.1 200")
        stream.writer.close()


async def test_all_sessions_of_a_user_together_begin_tls_at_one_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_READS", 3000)  # 1.5 s each, and one second may be used at once
    common, loop = Common(), asyncio.get_running_loop()
    async with (
        house(Requests(), common=common) as one,
        house(Requests(), common=common) as two,
        house(Requests(), common=common, user="eve"),
    ):
        began = loop.time()
        for stream in await asyncio.gather(one.stream(), two.stream()):
            stream.writer.close()
        assert loop.time() - began > 1.9
        assert common.handshakes["eve"].spend(0, loop.time()) == 0


async def test_a_program_that_does_not_trust_the_authority_is_noted() -> None:
    async with house(Requests()) as it:
        with pytest.raises(ssl.SSLCertVerificationError):
            await it.stream(it.outer.cert_pem.bytes())
        await it.program.settled()
        failed = it.program.accesses[1]
        assert failed.outcome == "failed"
        assert failed.reason.startswith("the program does not begin TLS: ")


async def test_a_blocking_socket_of_the_program_blocks_nobody() -> None:
    requests = Requests()
    async with house(requests) as it:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        also_theirs = theirs.dup()
        also_theirs.setblocking(True)  # noqa: FBT003
        it.program.proxy.serve(theirs)
        ours.settimeout(0)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, f"CONNECT {it.name} HTTP/1.1\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            await loop.sock_recv(ours, 1000)
            context = ssl.create_default_context(cadata=it.authority.certificate.decode())
            stream = Stream(*await asyncio.open_connection(sock=ours, ssl=context, server_hostname=HOST))
            also_theirs.setblocking(True)  # noqa: FBT003
            await stream.answer(it.get())
        stream.writer.close()
        also_theirs.close()
        assert len(requests.seen) == 1
