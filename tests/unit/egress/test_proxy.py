"""A running proxy on real sockets: what it lets through, what it refuses, and what it does with broken connections."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme

from kernelbridge.egress import dialling, meter
from kernelbridge.egress import proxy as module
from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.dialling import Dialler, SystemResolver, addresses_of, is_own_address
from kernelbridge.egress.hosts import Address
from kernelbridge.egress.policy import Admitted, Policies, read_network, read_rule
from kernelbridge.egress.shares import Shares
from tests.unit.egress.hosts_of_the_test import (
    LOOPBACK,
    PATIENCE,
    NamesOfTheTest,
    Program,
    RebindingResolver,
    certified,
    host,
    proxy_for,
    read_all,
)
from tests.unit.egress.test_client_hello import client_hello

HELLO = b"hello from the host"


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the first line, and close."""
    await reader.readline()
    writer.write(HELLO)
    await writer.drain()


async def echo_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read until the client has said everything, and only then answer."""
    data = await reader.read()
    writer.write(b"%d bytes" % len(data))
    await writer.drain()


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its own text, and keep the connection open as long as the client wants."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = head + await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        if b"Connection: close\r\n" in head:
            return


async def in_tls(ours: socket.socket, authority: trustme.CA, name: str) -> bytes:
    """Begin TLS on a socket, send a line, and return the answer."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    reader, writer = await asyncio.open_connection(sock=ours, ssl=context, server_hostname=name)
    writer.write(b"anybody there?\n")
    data = await reader.read()
    writer.close()
    return data


async def test_a_tunnel_to_an_allowed_host() -> None:
    authority = trustme.CA()
    names = NamesOfTheTest()
    async with (
        host(greet, certified(authority, "a.example")) as port,
        proxy_for(f"a.example:{port}", resolve=names) as it,
    ):
        ours = await it.tunnel(f"A.Example.:{port}")
        assert await in_tls(ours, authority, "a.example") == HELLO
        await it.settled()
        assert names.asked == ["a.example"]
        opened, closed = it.accesses
        assert (opened.outcome, opened.host, opened.port) == ("opened", "a.example", port)
        assert closed.outcome == "closed"
        assert closed.sent > 200
        assert closed.received > len(HELLO)


# -- thirty refusals of thirty -----------------------------------------------------

PORT = 443
INSIDE = {
    "loopback.example": "127.0.0.1",
    "any.example": "0.0.0.0",
    "ten.example": "10.0.0.1",
    "home.example": "192.168.1.1",
    "metadata.example": "169.254.169.254",
    "alibaba.example": "100.100.100.200",
    "azure.example": "168.63.129.16",
    "mapped.example": "::ffff:127.0.0.1",
    "nat64.example": "64:ff9b::a9fe:a9fe",
    "sixtofour.example": "2002:7f00:1::",
    "ula.example": "fd00:ec2::254",
    "linklocal.example": "fe80::1",
    "multicast.example": "224.0.0.1",
}


def connect(authority: str) -> bytes:
    return f"CONNECT {authority} HTTP/1.1\r\n\r\n".encode()


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode()


REFUSED = {
    **{f"an allowed name that leads to {address}": (connect(f"{name}:443"), 403) for name, address in INSIDE.items()},
    "a host that is not allowed": (connect("other.example:443"), 403),
    "an allowed host at another port": (connect("a.example:22"), 403),
    "port 0": (connect("a.example:0"), 400),
    "a port that is none": (connect("a.example:99999"), 400),
    "no port": (connect("a.example"), 400),
    "the port of the server": (connect("a.example:8001"), 403),
    "an IPv4 address": (connect("93.184.216.34:443"), 403),
    "an IPv6 address": (connect("[2606:2800:220:1::1]:443"), 403),
    "a short form of an address": (connect("127.1:443"), 400),
    "a hexadecimal address": (connect("0x7f000001:443"), 400),
    "an octal address": (connect("0177.0.0.1:443"), 400),
    "a decimal address": (connect("2130706433:443"), 400),
    "an IPv6 address with a zone": (connect("[fe80::1%25eth0]:443"), 400),
    "a name with a user": (connect("a.example@other.example:443"), 400),
    "a name with a NUL": (b"CONNECT a.example\0.other.example:443 HTTP/1.1\r\n\r\n", 400),
    "a name in Unicode": ("CONNECT a\u3002example:443 HTTP/1.1\r\n\r\n".encode(), 400),
    "HTTP without TLS": (get("http://a.example/"), 403),
    "HTTP to another host": (get("http://other.example/"), 403),
    "a request that is not for a proxy": (get("/"), 400),
    "two lengths": (b"POST http://plain.example/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a question to a name server": (bytes.fromhex("001c0001010000010000000000000161076578616d706c650000010001"), 400),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_refused_at_once_and_nothing_is_dialled(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, status = REFUSED[kind]
    dialled: list[object] = []
    monkeypatch.setattr(Dialler, "connect", lambda _self, admitted: dialled.append(admitted))
    names = NamesOfTheTest({name: [address] for name, address in INSIDE.items()})
    allowed = [read_rule(name) for name in (*INSIDE, "a.example", "http://plain.example")]
    policies = Policies("none", tuple(allowed), own_ports=frozenset({8001}))
    async with proxy_for(policies=policies, resolve=names) as it:
        async with asyncio.timeout(5):
            answer = await it.ask(data)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert len(it.denied) == (answer.startswith(b"HTTP/1.1 403") or b"The host cannot be used" in answer)
        if status == 403:
            assert b"refused by the egress policy" in answer.split(b"\r\n")[0]
            assert any(
                words in answer for words in (b"elsewhere, does not help", b"Use https.", b"Use the name of the host")
            )
    assert dialled == []
    assert names.asked == [name for name in INSIDE if name.encode() in data]


def test_these_are_enough() -> None:
    assert len(REFUSED) >= 30


# -- what only the tunnel can tell ----------------------------------------------------


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (client_hello("other.example"), "server_name"),
        (client_hello(None), "server_name"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no_tls"),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "no_tls"),
    ],
    ids=["another name", "no name", "ssh", "http"],
)
async def test_nothing_but_tls_for_the_host_goes_through_a_tunnel(first: bytes, reason: str) -> None:
    arrived: list[bytes] = []

    async def collect(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read())

    async with host(collect) as port, proxy_for(f"a.example:{port}") as it:
        with await it.tunnel(f"a.example:{port}") as ours:
            await asyncio.get_running_loop().sock_sendall(ours, first)
            async with asyncio.timeout(PATIENCE):
                assert await read_all(ours) == b"\x15\x03\x03\x00\x02\x02\x31"
        await it.settled()
        assert [denied.reason for denied in it.denied] == [reason]
    assert arrived in ([], [b""])


async def test_a_tunnel_in_which_nothing_comes_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENT_HELLO_SECONDS", 0.05)
    async with host(greet) as port, proxy_for(f"a.example:{port}") as it:
        with await it.tunnel(f"a.example:{port}") as ours:
            assert await read_all(ours) == b"\x15\x03\x03\x00\x02\x02\x31"
        assert [denied.reason for denied in it.denied] == ["no_tls"]


async def test_a_request_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.05)
    async with proxy_for() as it:
        assert await it.ask(b"CONNECT a.exa") == b""


async def test_an_address_that_changes_after_the_check_is_not_dialled() -> None:
    names = RebindingResolver("127.0.0.1", "10.0.0.1")
    authority = trustme.CA()
    async with (
        host(greet, certified(authority, "a.example")) as port,
        proxy_for(f"a.example:{port}", resolve=names) as it,
    ):
        assert await in_tls(await it.tunnel(f"a.example:{port}"), authority, "a.example") == HELLO
        assert names.asked == 1
        assert b"leads to 10.0.0.1" in await it.ask(connect(f"a.example:{port}"))


async def test_one_relay_behind_another_changes_nothing() -> None:
    async with proxy_for("a.example") as it:

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await it.ask(await reader.readuntil(b"\r\n\r\n")))
            await writer.drain()

        async with host(relay) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(connect("other.example:443"))
            assert b"403" in await reader.readline()
            writer.close()


# -- HTTP without TLS -------------------------------------------------------------------


async def test_plain_http_goes_to_a_host_that_is_allowed_with_it() -> None:
    async with host(answer_http) as port, proxy_for(f"http://a.example:{port}") as it:
        request = (
            f"POST http://a.example:{port}/x?y HTTP/1.1\r\nHost: other.example\r\nContent-Length: 3\r\n"
            "Proxy-Authorization: Basic c2VjcmV0\r\n\r\nabc"
        )
        answer = await it.ask(request.encode() + b"GET http://other.example/ HTTP/1.1\r\n\r\n")
        head = f"POST /x?y HTTP/1.1\r\nHost: a.example:{port}\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        assert answer.partition(b"\r\n\r\n")[2] == head.encode() + b"abc"


async def test_a_second_request_on_a_connection_is_not_passed_on() -> None:
    async with host(answer_http) as port, proxy_for(f"http://a.example:{port}") as it:
        target = get(f"http://a.example:{port}/")
        answer = await it.ask(target + get("http://other.example/"))
        assert answer.count(b"HTTP/1.1 200") == 1
        assert b"other.example/" not in answer


async def test_a_body_that_comes_in_pieces_ends_where_its_length_says() -> None:
    arrived = asyncio.Event()

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nhel")
        arrived.set()
        await reader.readexactly(2)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async with host(answer_late) as port, proxy_for(f"http://a.example:{port}") as it:
        loop = asyncio.get_running_loop()
        with it.connect() as ours:
            async with asyncio.timeout(PATIENCE):
                head = f"PUT http://a.example:{port}/ HTTP/1.1\r\nContent-Length: 5\r\n\r\n"
                await loop.sock_sendall(ours, head.encode() + b"hel")
                await arrived.wait()
                await loop.sock_sendall(ours, b"lo" + get("http://other.example/"))
                assert (await read_all(ours)).startswith(b"HTTP/1.1 204")
        await it.settled()
        passed_on = f"PUT / HTTP/1.1\r\nHost: a.example:{port}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        assert it.accesses[-1].sent == len(passed_on)


# -- both ways, until the end --------------------------------------------------------------


async def test_a_client_that_has_said_everything_gets_the_whole_answer() -> None:
    async with host(echo_at_the_end) as port, proxy_for(f"a.example:{port}") as it:
        loop = asyncio.get_running_loop()
        hello = client_hello("a.example")
        with await it.tunnel(f"a.example:{port}") as ours:
            await loop.sock_sendall(ours, hello + bytes(1 << 20))
            ours.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(PATIENCE):
                assert await read_all(ours) == b"%d bytes" % (len(hello) + (1 << 20))


async def test_a_tunnel_that_stands_still_is_closed_and_one_way_is_enough_to_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter.Meter.__init__, "__kwdefaults__", {"idle": 1.2, "half_closed": 1.2})

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for _ in range(18):
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.1)
        await reader.read()

    async with host(trickle) as port, proxy_for(f"a.example:{port}") as it:
        with await it.tunnel(f"a.example:{port}") as ours:
            await asyncio.get_running_loop().sock_sendall(ours, client_hello("a.example"))
            async with asyncio.timeout(PATIENCE):
                assert await read_all(ours) == b"." * 18


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_time_limits_of_the_beginning_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "CONNECT_SECONDS", "CLIENT_HELLO_SECONDS"):
        monkeypatch.setattr(module, name, 0.3)

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await asyncio.sleep(0.6)
        writer.write(HELLO)
        await writer.drain()

    async with host(answer_late) as port, proxy_for(f"a.example:{port}") as it:
        with await it.tunnel(f"a.example:{port}") as ours:
            await asyncio.get_running_loop().sock_sendall(ours, client_hello("a.example"))
            async with asyncio.timeout(PATIENCE):
                assert await read_all(ours) == HELLO


async def test_descriptors_come_back_whatever_becomes_of_the_clients() -> None:
    async def hold(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with host(hold) as port, proxy_for(f"a.example:{port}", f"http://a.example:{port}") as it:
        before = descriptors()
        loop = asyncio.get_running_loop()
        for kind in range(20):
            ours = await it.tunnel(f"a.example:{port}")
            if kind % 2:
                await loop.sock_sendall(ours, client_hello("a.example"))
            if kind % 3:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            ours.close()
        await it.settled()
        async with asyncio.timeout(PATIENCE):
            while descriptors() > before:  # noqa: ASYNC110 - those of the host, too
                await asyncio.sleep(0.01)


async def test_closing_ends_what_is_open() -> None:
    async with host(greet) as port, proxy_for(f"a.example:{port}") as it:
        with await it.tunnel(f"a.example:{port}") as ours:
            await it.proxy.aclose()
            assert it.proxy.open == 0
            assert await read_all(ours) == b""


# -- bounds ----------------------------------------------------------------------------------


async def test_a_session_that_has_moved_all_its_bytes_is_refused() -> None:
    async with (
        host(echo_at_the_end) as port,
        proxy_for(f"a.example:{port}", allowance=Allowance(None, 100_000)) as it,
    ):
        loop = asyncio.get_running_loop()
        with await it.tunnel(f"a.example:{port}") as ours:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_sendall(ours, client_hello("a.example"))
                with contextlib.suppress(ConnectionError):
                    while True:
                        await loop.sock_sendall(ours, bytes(50_000))
        await it.settled()
        assert [denied.reason for denied in it.denied] == ["bytes"]
        assert it.proxy._allowance.moved < 300_000
        assert b"--egress-bytes" in await it.ask(connect(f"a.example:{port}"))


async def test_a_turn_lasts_a_while_so_connections_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_TURN", 0.2)
    loop = asyncio.get_running_loop()
    released: asyncio.Future[float] = loop.create_future()
    async with proxy_for() as it:
        began = loop.time()
        theirs, ours = socket.socketpair()
        with ours:
            it.proxy.serve(theirs, lambda: released.set_result(loop.time()))
        assert await released - began >= 0.2


async def test_all_sessions_together_leave_the_server_files_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_TURN", 0.0)
    common = module.Common(Shares(2))
    async with proxy_for(common=common) as one, proxy_for(common=common, user="bob") as other:
        first, second = one.connect(), other.connect()
        assert await turned_away(other)
        first.close()
        await one.settled()
        second.close()
        await other.settled()
        assert b"403" in await other.ask(connect("other.example:443"))
    assert common.connections.free == 2


async def test_the_connections_of_one_user_leave_some_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_TURN", 0.0)
    common = module.Common(Shares(6))
    async with (
        proxy_for(common=common) as one,
        proxy_for(common=common) as another,
        proxy_for(common=common, user="bob") as bobs,
    ):
        held = [one.connect(), one.connect(), another.connect()]
        assert await turned_away(one)
        assert await turned_away(another)
        assert b"403" in await bobs.ask(connect("other.example:443"))
        for each in held:
            each.close()


async def turned_away(program: Program) -> bool:
    """Try a connection that there is no place for."""
    theirs, ours = socket.socketpair()
    released = asyncio.Event()
    program.proxy.serve(theirs, released.set)
    ours.settimeout(0)
    async with asyncio.timeout(PATIENCE):
        answer = await read_all(ours)
        await released.wait()
    ours.close()
    return answer.startswith(b"HTTP/1.1 503 The sandboxes of this server, or of this user, have too many")


async def test_names_that_are_never_answered_leave_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)
    common = module.Common(resolving=Shares(4))
    answered = asyncio.Event()

    async def never_answered(_name: str) -> Sequence[Address]:
        await answered.wait()
        return [ip_address("127.0.0.1")]

    async with (
        proxy_for("a.example", common=common, resolve=never_answered) as one,
        proxy_for("a.example", common=common, resolve=never_answered) as another,
        proxy_for("a.example", common=common, user="bob") as bobs,
    ):
        for program in (one, another):
            assert b"its name: no answer in time" in await program.ask(connect("a.example:443"))
        for program in (one, another):
            assert b"ask for too many names" in await program.ask(connect("a.example:443"))
        assert b"its name" not in await bobs.ask(connect("a.example:443"))
        answered.set()
        async with asyncio.timeout(PATIENCE):
            while common.resolving.free < 4:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.01)
        assert b"its name" not in await one.ask(connect("a.example:443"))


# -- hosts that cannot be reached ------------------------------------------------------------


async def test_a_name_that_does_not_resolve_and_a_host_that_does_not_answer_are_no_refusals() -> None:
    async def unknown(_host: str) -> Sequence[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with proxy_for("a.example", resolve=unknown) as it:
        answer = await it.ask(connect("a.example:443"))
        assert answer.startswith(b"HTTP/1.1 502 a.example:443 is allowed, but cannot be reached: its name: Name or")
        assert it.denied == []
        assert [access.outcome for access in it.accesses] == ["failed"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with proxy_for(f"a.example:{port}") as it:
        assert b"HTTP/1.1 502" in await it.ask(connect(f"a.example:{port}"))


class SilentDialler(Dialler):
    """Reaches no host, and is told so by nobody."""

    async def connect(self, _admitted: Admitted) -> socket.socket:
        never: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        return await never


async def test_what_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)

    async def silent(_host: str) -> Sequence[Address]:
        never: asyncio.Future[Sequence[Address]] = asyncio.get_running_loop().create_future()
        return await never

    async with proxy_for("a.example", resolve=silent) as it:
        assert b"HTTP/1.1 502 a.example:443 is allowed, but cannot be reached: its name: no" in await it.ask(
            connect("a.example:443")
        )
        it.proxy._dialler = SilentDialler(NamesOfTheTest(), is_own_address)
        assert b"HTTP/1.1 504" in await it.ask(connect("a.example:443"))


async def test_a_host_that_nobody_reads_from_fills_no_large_buffers() -> None:
    async def hold(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with host(hold) as port:
        there = Admitted("a.example", port, (ip_address("127.0.0.1"),))
        with await Dialler(NamesOfTheTest(), is_own_address).connect(there) as connected:
            for option, name in ((socket.SO_RCVBUF, "rmem_max"), (socket.SO_SNDBUF, "wmem_max")):
                most = min(dialling.BUFFER, int(Path("/proc/sys/net/core", name).read_text()))
                assert connected.getsockopt(socket.SOL_SOCKET, option) == 2 * most


async def test_a_name_that_is_not_answered_keeps_its_place_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)
    answered = threading.Event()
    asked: list[str] = []

    def never_answered(name: str) -> Sequence[Address]:
        asked.append(name)
        answered.wait(PATIENCE)
        return [ip_address("127.0.0.1")]

    monkeypatch.setattr(dialling, "addresses_of", never_answered)
    with contextlib.closing(SystemResolver()) as resolver:
        async with proxy_for("a.example", resolve=resolver) as it:
            for _ in range(module.RESOLVING + 2):
                assert b"its name: no answer in time" in await it.ask(connect("a.example:443"))
            assert len(asked) == module.RESOLVING
            answered.set()
            monkeypatch.setattr(module, "CONNECT_SECONDS", PATIENCE)
            assert b"its name" not in await it.ask(connect("a.example:443"))


async def test_what_is_read_after_a_refusal_is_a_read_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAIN_BYTES", 3)
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 10 * PATIENCE)
    allowance = Allowance(None, None)
    spent: list[int] = []

    def spend(count: int, _now: float) -> float:
        spent.append(count)
        return 0.0

    monkeypatch.setattr(allowance, "spend", spend)
    async with proxy_for("a.example", allowance=allowance) as it:
        with it.connect() as ours:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(ours, connect("other.example:443"))
            async with asyncio.timeout(PATIENCE):
                assert b"403" in await read_all(ours)
                before = len(spent)
                await loop.sock_sendall(ours, b"...")
                await it.settled()
        assert len(spent) > before


async def test_the_server_s_own_port_is_refused_also_where_its_network_is_allowed() -> None:
    own = 8001
    policies = Policies(
        "none", (read_rule(f"a.example:{own}"),), networks=(read_network(LOOPBACK),), own_ports=frozenset({own})
    )
    async with proxy_for(policies=policies) as it:
        assert b"403 own_port" in await it.ask(connect(f"a.example:{own}"))


def test_this_machine_knows_its_own_addresses() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.99", 9))
        mine = probe.getsockname()[0]
    assert is_own_address(ip_address(mine))
    assert is_own_address(ip_address("127.0.0.1"))
    assert not is_own_address(ip_address("192.0.2.99"))
    assert ip_address("127.0.0.1") in addresses_of("localhost")
