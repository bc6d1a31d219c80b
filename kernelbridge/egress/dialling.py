"""Resolving names and connecting to addresses, from the server's own network."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

from aiohappyeyeballs import start_connection

from kernelbridge.egress.connection import Connection
from kernelbridge.egress.hosts import Address, literal_address, written
from kernelbridge.egress.policy import Admitted, Resolve

THREADS = 128
"""Names that are resolved at the same time. One user gets at most half of them (`Shares`)."""
_MOST_ADDRESSES = 16
_HAPPY_EYEBALLS_DELAY = 0.25
_ANSWER = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LONGEST_ANSWER = 16 << 10
BUFFER = 512 << 10
"""Bytes of a connection that the kernel may hold for each direction, in no session's limit. It takes twice as much for
its own needs, and not more than net.core.rmem_max and wmem_max allow."""


class UnreachableError(Exception):
    """A host that is allowed, but cannot be reached; `status` is that of the answer in HTTP."""

    def __init__(self, status: int, host: str, port: int, why: str) -> None:
        super().__init__(why)
        self.status, self.host, self.port, self.why = status, host, port, why

    @property
    def sentence(self) -> str:
        """The sentence for the user."""
        return f"{written(self.host, self.port)} is allowed, but cannot be reached: {self.why}."


@dataclass(frozen=True, slots=True)
class Dialler:
    """How the proxy reaches hosts."""

    resolve: Resolve
    is_own: Callable[[Address], bool]
    upstream: tuple[str, int] | None = None
    """Host and port of the operator's own proxy, through which all hosts are reached."""

    async def connect(self, admitted: Admitted) -> socket.socket:
        """Connect to a host, directly or through the operator's proxy; raises `OSError`, `UnreachableError`.

        The caller closes the socket.
        """
        if self.upstream is None:
            return await _connect(admitted.addresses, admitted.port)
        host, port = self.upstream
        literal = literal_address(host)
        connected = await _connect(await self.resolve(host) if literal is None else [literal], port)
        try:
            await _ask_for(Connection(connected), admitted)
        except BaseException:
            connected.close()
            raise
        return connected


async def _connect(addresses: Sequence[Address], port: int) -> socket.socket:
    """Connect to the first of the addresses that answers; raises `OSError`."""
    targets = [
        (socket.AF_INET if address.version == 4 else socket.AF_INET6, str(address))  # noqa: PLR2004 - of IP
        for address in addresses
    ]
    connected = await start_connection(
        [
            (
                family,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port, 0, 0)[: 2 if family == socket.AF_INET else 4],
            )
            for family, address in targets
        ],
        happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY,
        socket_factory=_bounded,
    )
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


async def _ask_for(proxy: Connection, admitted: Admitted) -> None:
    """Have a proxy open a tunnel to the host. Raises `OSError`, and `UnreachableError` if it does not."""
    target = written(admitted.host, admitted.port)
    await proxy.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = b""
    # Byte by byte: what follows the head belongs to the host.
    while not head.endswith(b"\r\n\r\n"):
        data = await proxy.receive(1)
        head += data
        if not data or len(head) > _LONGEST_ANSWER:
            break
    answer = _ANSWER.match(head)
    if answer is None or not answer[1].startswith(b"2"):
        said = "nothing that is HTTP" if answer is None else f"status {answer[1].decode()}"
        raise UnreachableError(502, admitted.host, admitted.port, f"the operator's proxy answers {said}")


def _bounded(info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """Make a socket whose buffers do not grow: a program that reads nothing would let them have many megabytes."""
    made = socket.socket(*info[:3])
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # before connecting, which settles how TCP scales its window
        made.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    return made


class SystemResolver:
    """Resolves names as this machine does, in threads of its own; `close` it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolve")

    async def __call__(self, host: str) -> Sequence[Address]:
        """Return the addresses of a name; raises `OSError`. When cancelled, the thread ends when the system answers."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, addresses_of, host)

    def close(self) -> None:
        """Resolve nothing more; does not wait."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def addresses_of(host: str) -> Sequence[Address]:
    """Return the addresses of a name; blocking. Raises `OSError`."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(sockaddr[0]) for *_, sockaddr in found))[:_MOST_ADDRESSES]


def is_own_address(address: Address) -> bool:
    """Return whether an address is one of this machine's: then packets to it would come from itself. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - of IP
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:  # there is no way to it
            return False
        return ip_address(probe.getsockname()[0]) == address
