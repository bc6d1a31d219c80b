"""Hosts that are reached through the operator's own proxy."""

import asyncio
from dataclasses import dataclass, field

import pytest
import trustme

from tests.unit.egress.hosts_of_the_test import NamesOfTheTest, certified, host, proxy_for
from tests.unit.egress.test_proxy import HELLO, answer_http, connect, get, greet, in_tls


@dataclass
class OperatorsProxy:
    """Opens every tunnel to one port of this machine, whatever it is asked for, if its answer is 200."""

    port: int
    answer: bytes = b"HTTP/1.1 200 OK\r\nVia: it\r\n\r\n"
    asked: list[bytes] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        await writer.drain()
        if b" 200 " not in self.answer:
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_an_allowed_host_is_reached_and_not_resolved_here() -> None:
    authority, names = trustme.CA(), NamesOfTheTest()
    async with host(greet, certified(authority, "a.example")) as port:
        theirs = OperatorsProxy(port)
        async with (
            host(theirs) as upstream,
            proxy_for("a.example", resolve=names, upstream=("proxy.example", upstream)) as it,
        ):
            assert await in_tls(await it.tunnel("a.example:443"), authority, "a.example") == HELLO
            assert theirs.asked == [b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"]
            assert names.asked == ["proxy.example"]
            assert b"403 host" in await it.ask(connect("other.example:443"))
            assert b"403 ip_literal" in await it.ask(connect("10.0.0.1:443"))
            assert len(theirs.asked) == 1


async def test_without_tls_too() -> None:
    async with host(answer_http) as port:
        theirs = OperatorsProxy(port)
        async with host(theirs) as upstream, proxy_for("http://a.example", upstream=("127.0.0.1", upstream)) as it:
            assert b"GET / HTTP/1.1\r\nHost: a.example\r\n" in await it.ask(get("http://a.example/"))
            assert theirs.asked == [b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"status 407"),
        (b"HTTP/1.0 403 Forbidden\r\n\r\n", b"status 403"),
        (b"SSH-2.0\r\n\r\n", b"nothing that is HTTP"),
        (b"", b"nothing that is HTTP"),
        (b"HTTP/1.1 503 x\r\n" + b"y" * 20_000, b"status 503"),
    ],
)
async def test_what_the_proxy_refuses_is_not_reached(answer: bytes, said: bytes) -> None:
    async with host(OperatorsProxy(1, answer)) as port, proxy_for("a.example", upstream=("127.0.0.1", port)) as it:
        got = await it.ask(connect("a.example:443"))
        assert got.startswith(b"HTTP/1.1 502 a.example:443 is allowed, but cannot be reached: the operator's proxy")
        assert said in got
        assert it.denied == []
