"""Hosts on this machine's loopback, and a program's end of a connection to the proxy."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import trustme

from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.dialling import Dialler, is_own_address
from kernelbridge.egress.exchange import SecretHosts
from kernelbridge.egress.hosts import Address
from kernelbridge.egress.policy import Denied, Policies, read_network, read_rule
from kernelbridge.egress.proxy import Access, Common, SessionProxy

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PATIENCE = 30.0
LOOPBACK = "127.0.0.1/32"


@dataclass
class NamesOfTheTest:
    """A resolver: every name leads to the loopback unless the test says otherwise. It counts what it is asked."""

    addresses: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        return [ip_address(each) for each in self.addresses.get(host, ["127.0.0.1"])]


class RebindingResolver:
    """Gives a public-looking address first, and one inside when it is asked again."""

    def __init__(self, first: str, then: str) -> None:
        self._answers = [first, then]
        self.asked = 0

    async def __call__(self, _host: str) -> Sequence[Address]:
        self.asked += 1
        return [ip_address(self._answers[min(self.asked, len(self._answers)) - 1])]


@asynccontextmanager
async def host(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run a server on a free port of the loopback, with TLS if there is a context."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Return the context of a server with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@dataclass
class Program:
    """A program's end of its connections to a proxy."""

    proxy: SessionProxy
    accesses: list[Access]
    denied: list[Denied]

    def connect(self) -> socket.socket:
        """Make a connection, as the agent would pass it on."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        ours.settimeout(0)
        self.proxy.serve(theirs)
        return ours

    async def ask(self, data: bytes) -> bytes:
        """Send `data` and return all that comes back."""
        async with asyncio.timeout(PATIENCE):
            with self.connect() as ours:
                await asyncio.get_running_loop().sock_sendall(ours, data)
                return await read_all(ours)

    async def tunnel(self, authority: str) -> socket.socket:
        """Open a tunnel; fails if it is refused."""
        loop = asyncio.get_running_loop()
        ours = self.connect()
        await loop.sock_sendall(ours, f"CONNECT {authority} HTTP/1.1\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            answer = await loop.sock_recv(ours, 1000)
        assert answer == b"HTTP/1.1 200 Connection established\r\n\r\n"
        return ours

    async def settled(self) -> None:
        """Wait until no connection is left."""
        async with asyncio.timeout(PATIENCE):
            while self.proxy.open:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.01)


async def read_all(ours: socket.socket) -> bytes:
    data = b""
    while more := await asyncio.get_running_loop().sock_recv(ours, 1 << 16):
        data += more
    return data


@asynccontextmanager
async def proxy_for(
    *allowed: str,
    policies: Policies | None = None,
    resolve: Callable[[str], Awaitable[Sequence[Address]]] | None = None,
    allowance: Allowance | None = None,
    common: Common | None = None,
    user: str = "ada",
    secret_hosts: SecretHosts | None = None,
    upstream: tuple[str, int] | None = None,
) -> AsyncIterator[Program]:
    """Run a proxy that allows some hosts, and the loopback."""
    made = policies or Policies("packages", tuple(map(read_rule, allowed)), networks=(read_network(LOOPBACK),))
    accesses: list[Access] = []
    denied: list[Denied] = []
    proxy = SessionProxy(
        Dialler(resolve or NamesOfTheTest(), is_own_address, upstream),
        allowance or Allowance(None, None),
        common or Common(),
        user=user,
        policy=lambda: made.of_session(None),
        on_access=accesses.append,
        on_denied=denied.append,
        secret_hosts=secret_hosts,
    )
    yield Program(proxy, accesses, denied)
    await proxy.aclose()
