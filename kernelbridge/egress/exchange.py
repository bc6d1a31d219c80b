"""Requests of a program for a host that has secrets, one after the other, and the answers.

The server ends TLS on both sides: the program verifies the sandbox's own authority, the server verifies the host. The
host's connection is the one that was dialled when the tunnel was opened. What is not clear HTTP/1.1 gets no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import h11

from kernelbridge.egress.authority import Authority
from kernelbridge.egress.dialling import UnreachableError
from kernelbridge.egress.http_request import HEAD_SECONDS, LONGEST_HEAD
from kernelbridge.egress.inner_request import NoSecretError, answer, interim, with_secrets
from kernelbridge.egress.meter import HALF_CLOSED_SECONDS, Meter
from kernelbridge.egress.policy import Admitted, Policy
from kernelbridge.egress.secrets import SecretHeader
from kernelbridge.egress.tls import CHUNK, Stream, TlsStream
from kernelbridge.egress.tunnel import first_of

HANDSHAKE_SECONDS = 10.0
HANDSHAKE_READS = 50
"""What it costs to begin TLS on both sides (2.5 ms), in reads: a user's sessions may do it 40 times a second."""
_LONGEST_ANSWER_HEAD = 64 << 10
_LONGEST_REASON = 100
_DRAIN_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class SecretHosts:
    """The hosts whose TLS the server ends, because requests for them get secrets."""

    headers: Mapping[tuple[str, int], tuple[SecretHeader, ...]]
    """By host and port."""
    authority: Authority
    """Trusted by sandboxes, and by nobody else."""
    trust: ssl.SSLContext
    """With which the server connects to the hosts."""

    def headers_of(self, admitted: Admitted) -> tuple[SecretHeader, ...]:
        """Return what requests for this host and port get; nothing for the others, whose TLS is not ended."""
        return self.headers.get((admitted.host, admitted.port), ())


class Exchange:
    """The requests on one connection. The caller closes both connections."""

    def __init__(
        self,
        inside: TlsStream,
        outside: Stream,
        meter: Meter,
        *,
        policy: Policy,
        admitted: Admitted,
        secrets: Sequence[SecretHeader],
        trust: ssl.SSLContext,
    ) -> None:
        """`inside` has had its handshake, `outside` is without TLS still. `meter` is being watched."""
        self._inside, self._meter = inside, meter
        self._policy, self._admitted, self._secrets = policy, admitted, secrets
        self._outside = TlsStream(outside, trust, server_name=admitted.host)
        self._program = h11.Connection(h11.SERVER, LONGEST_HEAD)
        self._host = h11.Connection(h11.CLIENT, _LONGEST_ANSWER_HEAD)

    async def run(self) -> None:
        """Serve requests until one side ends.

        Raises `Denied` and `UnreachableError` if the program can still be answered, otherwise `OSError`; `UsedUpError`.
        When cancelled, what is under way is lost.
        """
        reused = False
        while (request := await self._next_request()) is not None:
            try:
                outgoing = with_secrets(request, self._policy, self._admitted, self._secrets)
            except NoSecretError as exc:
                raise self._unreachable("the server has no secret for it any more; tell its operator", 503) from exc
            if not reused:
                await self._connect()
            try:
                await self._serve(outgoing)
            except OSError as exc:
                if reused or self._answered:
                    raise
                raise self._unreachable("it closed the connection without an answer") from exc
            if not self._both(h11.DONE):
                break
            self._program.start_next_cycle()
            self._host.start_next_cycle()
            reused = True
        await self._inside.end()

    @property
    def _answered(self) -> bool:
        """Whether the program has a part of an answer."""
        return self._program.our_state not in {h11.IDLE, h11.SEND_RESPONSE}

    def _both(self, state: type[h11.DONE]) -> bool:
        sides = (self._program, self._host)
        return all(each is state for side in sides for each in (side.our_state, side.their_state))

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self._outside.handshake()
        except ssl.SSLCertVerificationError as exc:
            raise self._unreachable(f"its certificate is not valid: {exc.verify_message}") from exc
        except OSError as exc:  # a TimeoutError is one, too
            raise self._unreachable("it does not begin TLS") from exc

    async def _next_request(self) -> h11.Request | None:
        """Return the next request; None when the program has sent its last one."""
        event = await self._from_program()
        return event if isinstance(event, h11.Request) else None

    async def _serve(self, request: h11.Request) -> None:
        await self._send_host(request)
        try:
            async with asyncio.TaskGroup() as group:
                body = group.create_task(self._pass_body())
                await self._pass_answer()
                body.cancel()  # the host has answered before it had everything
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None

    async def _pass_body(self) -> None:
        """Pass a request's body on; then wait whether the program ends."""
        while isinstance(event := await self._from_program(), h11.Data):
            await self._send_host(event)
        await self._send_host(h11.EndOfMessage())
        data = await self._inside.receive(CHUNK)
        self._program.receive_data(data)
        if not data:
            self._meter.half_closed()

    async def _pass_answer(self) -> None:
        while not isinstance(event := await self._from_host(), h11.EndOfMessage):
            match event:
                case h11.InformationalResponse():
                    await self._send_program(interim(event))
                case h11.Response():
                    await self._send_program(answer(event))
                case h11.Data():
                    await self._send_program(event)
                case _:
                    raise ConnectionResetError
        await self._send_program(h11.EndOfMessage())

    async def _from_program(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        try:
            async with asyncio.timeout(None) as limit:
                while (event := self._program.next_event()) is h11.NEED_DATA:
                    # A head, or what stands between chunks, is in memory until it is whole.
                    if limit.when() is None and self._program.trailing_data[0]:
                        limit.reschedule(asyncio.get_running_loop().time() + HEAD_SECONDS)
                    self._program.receive_data(await self._inside.receive(CHUNK))
        except (h11.RemoteProtocolError, TimeoutError) as exc:
            if self._answered:
                raise ConnectionAbortedError from exc
            if isinstance(exc, TimeoutError):
                why = f"the head of the request, or of a chunk in it, is not whole after {HEAD_SECONDS:g} s"
            else:
                why = f"the request is not HTTP/1.1 ({str(exc)[:_LONGEST_REASON]})"  # it may quote what came
            raise self._policy.denied("bad_request", self._admitted.host, self._admitted.port, why) from exc
        return event

    async def _from_host(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        try:
            while (event := self._host.next_event()) is h11.NEED_DATA:
                data = await self._outside.receive(CHUNK)
                if not data and not self._answered:
                    raise ConnectionResetError
                self._host.receive_data(data)
        except h11.RemoteProtocolError as exc:
            if self._answered:
                raise ConnectionAbortedError from exc
            raise self._unreachable("its answer is not HTTP/1.1") from exc
        return event

    async def _send_host(self, event: h11.Event) -> None:
        await self._outside.send(self._host.send(event) or b"")

    async def _send_program(self, event: h11.Event) -> None:
        await self._inside.send(self._program.send(event) or b"")

    def _unreachable(self, why: str, status: int = 502) -> UnreachableError:
        return UnreachableError(status, self._admitted.host, self._admitted.port, why)


async def drain(stream: Stream) -> None:
    """Read what still comes, until the other side ends: otherwise it might not get what was sent last."""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(HALF_CLOSED_SECONDS):
            left = _DRAIN_BYTES
            while left > 0 and (data := await stream.receive(CHUNK)):
                left -= len(data)
