"""The proxy of one session: reads what a program wants, decides, connects and copies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

import structlog

from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.client_hello import ACCESS_DENIED, NotTlsError, read_client_hello
from kernelbridge.egress.connection import Connection
from kernelbridge.egress.dialling import Dialler, UnreachableError
from kernelbridge.egress.exchange import HANDSHAKE_READS, HANDSHAKE_SECONDS, Exchange, SecretHosts, drain
from kernelbridge.egress.hosts import Address, split_authority, written
from kernelbridge.egress.http_request import (
    ESTABLISHED,
    HEAD_SECONDS,
    BadRequestError,
    Connect,
    Forward,
    read_request,
    response,
)
from kernelbridge.egress.meter import Meter, MeteredStream, Moved, UsedUpError
from kernelbridge.egress.policy import HTTP, Admitted, Denied, Policy, admit, check_server_name
from kernelbridge.egress.shares import Shares
from kernelbridge.egress.tls import CHUNK, Stream, TlsStream
from kernelbridge.egress.tunnel import Tunnel

log = structlog.get_logger(__name__)

CONNECTIONS = 64
"""Connections that a session may have at the same time; more wait until one is closed."""
SHORTEST_TURN = 0.5
"""Seconds for which even the shortest connection counts as one of them: so there are not too many a second."""
RESOLVING = 4
"""Names that a session may have resolved at the same time."""
CONNECT_SECONDS = 10.0
CLIENT_HELLO_SECONDS = 5.0
FULL = "The sandboxes of this server, or of this user, have too many connections"
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 256 << 10

Outcome = Literal["opened", "closed", "denied", "failed"]


@dataclass(frozen=True, slots=True)
class Access:
    """What happened to one connection: for an audit, and to be counted."""

    outcome: Outcome
    host: str
    """Empty if what was asked for is not a host."""
    port: int
    reason: str = ""
    """Why it was denied, in one word, or failed, in a few."""
    sent: int = 0
    """Bytes to the host; of a connection that is closed."""
    received: int = 0


@dataclass(frozen=True, slots=True)
class Common:
    """What all sessions of a server have together."""

    connections: Shares = field(default_factory=Shares)
    """So they leave the server files to open for its clients."""
    resolving: Shares = field(default_factory=Shares)
    """Names that are resolved at the same time."""
    handshakes: WeakValueDictionary[Hashable, Allowance] = field(default_factory=WeakValueDictionary)
    """How often programs of each user that has sessions may begin TLS with the server itself."""


@dataclass(frozen=True, slots=True)
class _Way:
    """A connection of a program, and the one to the host that it leads to."""

    policy: Policy
    admitted: Admitted
    inside: Connection
    outside: Connection
    moved: Moved = field(default_factory=Moved)


class SessionProxy:
    """Serves the connections of one session's sandbox, each in a task of its own."""

    def __init__(
        self,
        dialler: Dialler,
        allowance: Allowance,
        common: Common,
        *,
        user: Hashable,
        policy: Callable[[], Policy],
        on_access: Callable[[Access], None],
        on_denied: Callable[[Denied], None],
        secret_hosts: SecretHosts | None = None,
    ) -> None:
        """Serve nothing yet.

        `common` is shared with other sessions, also with those of the same `user`. `policy` is asked for each
        connection. `on_access` is called with all that happens, and `on_denied` with each refusal; neither may raise.
        `secret_hosts` are those whose TLS it ends.
        """
        self._dialler, self._allowance = dialler, allowance
        self._common, self._user = common, user
        self._handshakes = common.handshakes.setdefault(user, Allowance(None, None))
        self._policy = policy
        self._secret_hosts = secret_hosts
        self._on_access, self._on_denied = on_access, on_denied
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resolving = asyncio.Semaphore(RESOLVING)

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._tasks)

    def serve(self, connection: socket.socket, released: Callable[[], object] = lambda: None) -> None:
        """Serve a connection that a program has made; owns it. `released` is called when another one may come."""
        inside = Connection(connection)
        if not self._common.connections.take(self._user):
            self._turn_away(connection)
            inside.close()
            self._loop.call_later(SHORTEST_TURN, released)
            return
        task = self._loop.create_task(self._serve(inside))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._served, inside, self._loop.time(), released))

    def end(self) -> None:
        """End all connections; returns at once."""
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """End all connections, and wait for that. Idempotent."""
        self.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _served(
        self, inside: Connection, since: float, released: Callable[[], object], task: asyncio.Task[None]
    ) -> None:
        inside.close()
        self._common.connections.give_back(self._user)
        self._tasks.discard(task)
        if not task.cancelled():
            if (error := task.exception()) is not None:
                log.error("egress_connection_failed", exc_info=error)
            self._loop.call_at(max(self._loop.time(), since + SHORTEST_TURN), released)

    def _turn_away(self, connection: socket.socket) -> None:
        self._on_access(Access("failed", "", 0, FULL))
        with contextlib.suppress(OSError):
            connection.send(response(503, FULL, f"{FULL}; try again later."), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def _serve(self, inside: Connection) -> None:
        # An OSError: the program or the host has gone away, or says nothing any more.
        with contextlib.suppress(OSError):
            await self._answering(inside, self._carry_out(inside))

    async def _answering(self, program: Stream, work: Awaitable[None]) -> None:
        """Do `work`, and tell the program if it was refused or failed."""
        try:
            await work
        except Denied as denied:
            self._report(denied)
            phrase = f"{denied.reason}: refused by the egress policy of this session"
            await self._refuse(program, response(denied.status, phrase, denied.sentence))
        except BadRequestError as bad:
            await self._refuse(program, response(bad.status, bad.sentence, bad.sentence))
        except UnreachableError as failed:
            self._on_access(Access("failed", failed.host, failed.port, failed.why))
            await self._refuse(program, response(failed.status, failed.sentence, failed.sentence))

    def _report(self, denied: Denied) -> None:
        self._on_access(Access("denied", denied.host, denied.port, denied.reason))
        self._on_denied(denied)

    async def _carry_out(self, inside: Connection) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            request, rest = await self._read_request(inside)
        policy = self._policy()
        plain = isinstance(request, Forward)
        admitted = await self._admit(policy, request.authority, plain=plain)
        if self._allowance.used_up:
            raise self._used_up(policy, admitted)
        with contextlib.closing(await self._dial(admitted)) as outside:
            self._on_access(Access("opened", admitted.host, admitted.port))
            way = _Way(policy, admitted, inside, outside)
            try:
                if isinstance(request, Connect):
                    await self._tunnel(way, rest)
                else:
                    await self._forward(way, request, rest)
            except UsedUpError:
                self._report(self._used_up(policy, admitted))
            finally:
                moved = way.moved
                access = Access("closed", admitted.host, admitted.port, sent=moved.sent, received=moved.received)
                self._on_access(access)

    async def _read_request(self, inside: Connection) -> tuple[Connect | Forward, bytes]:
        data = b""
        while (found := read_request(data)) is None:
            data += await self._receive(inside)
        return found

    async def _receive(self, inside: Connection) -> bytes:
        """Return what comes next; a program that has ended raises `ConnectionResetError`."""
        data = await inside.receive(CHUNK)
        if not data:
            raise ConnectionResetError
        await asyncio.sleep(self._allowance.spend(0, self._loop.time()))  # a tunnel counts the bytes
        return data

    async def _admit(self, policy: Policy, authority: str, *, plain: bool) -> Admitted:
        resolve = self._resolve if self._dialler.upstream is None else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await admit(policy, authority, plain=plain, resolve=resolve, is_own=self._dialler.is_own)
        except OSError as exc:  # a TimeoutError is one, too
            host, port = split_authority(authority, HTTP if plain else None)
            raise UnreachableError(502, host, port, f"its name: {exc.strerror or 'no answer in time'}") from exc

    async def _resolve(self, name: str) -> Sequence[Address]:
        await self._resolving.acquire()
        if not self._common.resolving.take(self._user):
            self._resolving.release()
            raise OSError(errno.EAGAIN, "the user's sessions ask for too many names that are not answered")
        # Nothing ends the system's question early; until it has answered, this session has one question less.
        resolving = asyncio.ensure_future(self._dialler.resolve(name))
        resolving.add_done_callback(self._resolved)
        return await asyncio.shield(resolving)

    def _resolved(self, _resolving: object) -> None:
        self._resolving.release()
        self._common.resolving.give_back(self._user)

    async def _dial(self, admitted: Admitted) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return Connection(await self._dialler.connect(admitted))
        except TimeoutError as exc:
            why = f"it did not answer within {CONNECT_SECONDS:g} s"
            raise UnreachableError(504, admitted.host, admitted.port, why) from exc
        except OSError as exc:
            raise UnreachableError(502, admitted.host, admitted.port, exc.strerror or str(exc)) from exc

    async def _tunnel(self, way: _Way, rest: bytes) -> None:
        """Open a tunnel, and let nothing through it before the program has begun TLS with the host's own name."""
        await way.inside.send(ESTABLISHED)
        try:
            first = await self._read_client_hello(way, rest)
        except Denied as denied:
            self._report(denied)
            await self._refuse(way.inside, ACCESS_DENIED)
            return
        hosts = self._secret_hosts
        if hosts is not None and hosts.headers_of(way.admitted):
            await self._end_tls(way, hosts, first)
        else:
            await Tunnel(way.inside, way.outside, self._meter(way)).run(first)

    async def _end_tls(self, way: _Way, hosts: SecretHosts, first: bytes) -> None:
        """Be the host for the program, and pass its requests on with the secrets of the host."""
        meter = self._meter(way)
        inside = MeteredStream(way.inside, meter, meter.sent)
        program = TlsStream(inside, hosts.authority.context(way.admitted.host), received=first)
        exchange = Exchange(
            program,
            MeteredStream(way.outside, meter, meter.received),
            meter,
            policy=way.policy,
            admitted=way.admitted,
            secrets=hosts.headers_of(way.admitted),
            trust=hosts.trust,
        )
        async with meter.watch():
            wait = self._handshakes.spend(0, self._loop.time(), reads=HANDSHAKE_READS)
            await asyncio.sleep(max(wait, meter.sent(len(first))))
            try:
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await program.handshake()
            except OSError as exc:  # most of all a program that does not trust the authority
                said = exc.reason if isinstance(exc, ssl.SSLError) else "it ended the connection"
                why = f"the program does not begin TLS: {said}"
                self._on_access(Access("failed", way.admitted.host, way.admitted.port, why))
                return
            await self._answering(program, self._exchanging(exchange, way.outside))
            await drain(inside)

    @staticmethod
    async def _exchanging(exchange: Exchange, outside: Connection) -> None:
        # A program that is refused may keep its side open; the host must not wait for it.
        with contextlib.closing(outside):
            await exchange.run()

    def _meter(self, way: _Way) -> Meter:
        return Meter(self._allowance, way.moved)

    async def _read_client_hello(self, way: _Way, data: bytes) -> bytes:
        """Return all that was read with the ClientHello."""
        try:
            async with asyncio.timeout(CLIENT_HELLO_SECONDS):
                while (hello := read_client_hello(data)) is None:
                    data += await self._receive(way.inside)
        except (NotTlsError, TimeoutError) as exc:
            why = "only TLS may go through a tunnel, and this is something else"
            raise way.policy.denied("no_tls", way.admitted.host, way.admitted.port, why) from exc
        check_server_name(way.policy, way.admitted, hello.server_name)
        return data

    async def _forward(self, way: _Way, request: Forward, rest: bytes) -> None:
        """Pass one request on, and its whole answer."""
        host, port = way.admitted.host, way.admitted.port
        head = request.head(written(host, port) if port != HTTP else written(host, port).removesuffix(f":{HTTP}"))
        body = rest[: request.length]
        copying = Tunnel(way.inside, way.outside, self._meter(way))
        await copying.run(head + body, body=request.length - len(body))

    def _used_up(self, policy: Policy, admitted: Admitted) -> Denied:
        why = "the session has moved all the bytes that it may (--egress-bytes)"
        return policy.denied("bytes", admitted.host, admitted.port, why)

    async def _refuse(self, inside: Stream, answer: bytes) -> None:
        """Send a last answer, and read what is still coming: otherwise the program might not get the answer."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await inside.send(answer)
                await inside.end()
                left = _DRAIN_BYTES
                while left > 0 and (data := await inside.receive(CHUNK)):
                    left -= len(data)
                    await asyncio.sleep(self._allowance.spend(0, self._loop.time()))
