"""Who a request is from. Everything is refused that is not said to be open here, so a new route is closed by itself.

Credentials are looked at when a connection or request begins. Afterwards one timer a second ends what has expired or
was revoked; the path of a message has nothing of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from aiohttp import WSMsgType, hdrs, web
from aiohttp.typedefs import Handler

from kernelbridge.audit.audit import Audit, CarriedBy
from kernelbridge.errors import KernelBridgeError, Unauthorized
from kernelbridge.identity.credentials import bearer_token, is_token, protocols, subprotocol_problem
from kernelbridge.identity.logins import Login, Logins
from kernelbridge.identity.principal import Identity, Principal, Refused, Verdict, name_refusal
from kernelbridge.identity.proxied import UNIX, Malformed, bucket_of, client_address, is_trusted, proxied_name
from kernelbridge.identity.sources import Checker
from kernelbridge.metrics import Metrics
from kernelbridge.protocol import dump
from kernelbridge.protocol.codec import read
from kernelbridge.protocol.messages import Authenticate
from kernelbridge.server import page
from kernelbridge.server.access import origin_headers
from kernelbridge.server.login_record import LoginRecord
from kernelbridge.server.principal import ADMISSION, Admission, Anyone, Unproven, user_id
from kernelbridge.server.refusals import note_refusal
from kernelbridge.server.waiting_logins import End, WaitingLogins
from kernelbridge.server.websocket.handlers.login import authenticated
from kernelbridge.server.websocket.socket import LOGIN_END, Socket
from kernelbridge.settings.settings import Settings
from kernelbridge.watched_file import WatchedFile

log = structlog.get_logger(__name__)

OPEN = frozenset({"/healthz"}) | page.ROUTES
"""Routes for everybody: that the process lives is known to whoever can connect, and the files of the page are public.
`/readyz` is not among them: it tells of the engine, the image and the disk, and makes the server look at them."""
WEBSOCKET = "/ws"
FIRST_MESSAGE = 5.0
"""Seconds that a WebSocket has to log in, if the request that opened it had no credential."""
FIRST_MESSAGE_SIZE = 16 << 10
"""Bytes of that message."""
SWEEP = 1.0
"""Seconds between two looks at what has expired, and at the files of tokens and keys. A change of a file takes effect
at the second look."""

_NEEDED = "log in: send `Authorization: Bearer TOKEN`"


class Authentication:
    """The server's one gate. `source` checks tokens; None for `--auth none` and `proxy`."""

    def __init__(self, settings: Settings, source: WatchedFile[Checker] | None, audit: Audit, metrics: Metrics) -> None:
        self._mode = settings.auth
        self._header = settings.user_header
        self._trusted = settings.trusted_proxy
        self._source = source
        self._record = LoginRecord(audit, metrics)
        self._logins = Logins(lambda identity: source is None or source.value.still(identity))
        self._waiting = WaitingLogins()
        self._audit = audit
        self._metrics = metrics

    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle a request, or refuse it."""
        admission = self._admit(request)
        if isinstance(admission, web.Response):
            admission.headers.update(origin_headers(request.headers))
            return admission
        if admission is not None:
            request[ADMISSION] = admission
        if not isinstance(admission, Login) or self._source is None or _opens_websocket(request):
            return await handler(request)
        return await self._serve_while_valid(request, admission, handler)

    async def first_message(self, ws: Socket, request: web.Request) -> Login | None:
        """Open a WebSocket and wait for its `authenticate`. Returns None if it did not log in; then it is closed."""
        address, named = self._address(request), user_id(request)
        with self._waiting.of(bucket_of(address), ws.end_login) as admitted:
            if not admitted:
                full = web.HTTPServiceUnavailable(
                    text="Too many connections wait for their first message; send the token with the request.\n",
                    headers={hdrs.RETRY_AFTER: "5"},
                )
                full.force_close()  # its bytes are routed to the WebSocket already
                raise full
            await ws.prepare(request)
            try:
                async with asyncio.timeout(FIRST_MESSAGE):
                    message = await ws.receive()
            except TimeoutError:
                await _turn_away(ws, f"no `authenticate` came within {FIRST_MESSAGE:g} s")
                return None
        if ws.closing or message.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
            await ws.close()  # it is gone, or sent what no client may
            await ws.cut_off_done()
            return None
        try:
            wanted, warnings = read(message.data) if message.type is WSMsgType.TEXT else (None, [])
        except KernelBridgeError:
            wanted, warnings = None, []
        ws.inbox.handled(len(message.data))
        if not isinstance(wanted, Authenticate):
            await _turn_away(ws, "the first message must be `authenticate`, with a token")
            return None
        verdict = self._judge(wanted.token, address, "message")
        if isinstance(verdict, _Failure):
            await _turn_away(ws, verdict.reason)
            return None
        if (reason := self._name_refusal(request, named, verdict.principal)) is not None:
            await _turn_away(ws, reason)
            return None
        ws.logged_in()
        with contextlib.suppress(ConnectionError):
            await ws.send_frame(dump(authenticated(verdict, wanted, warnings)), WSMsgType.TEXT)
        return self._login(verdict, address)

    def watched(self, login: Login, end: End) -> contextlib.AbstractContextManager[None]:
        """While the context is open, call `end` once if the credential of the login expires or is revoked."""
        if self._source is None:
            return contextlib.nullcontext()

        def ended(reason: str) -> None:
            self._record.ended(login.identity.principal, reason)
            end(Unauthorized("You are not logged in any more", f"{reason}; connect again with a valid one"))

        return self._logins.watched(login, ended)

    @contextlib.asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """While the context is open, end what has expired or was revoked."""
        if self._mode == "none":
            yield
            return
        sweeping = asyncio.get_running_loop().create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait([sweeping])

    def end_waiting(self) -> None:
        """End the WebSockets that have not logged in: the server stops."""
        self._waiting.end_all("the server stops")

    async def _sweep(self) -> None:
        # A thread of its own: those of the event loop may all be busy for long, with directories that are removed.
        thread = ThreadPoolExecutor(1, thread_name_prefix="credentials")
        try:
            await self._sweep_with(thread)
        finally:
            thread.shutdown(wait=False)

    async def _sweep_with(self, thread: ThreadPoolExecutor) -> None:
        refreshing: asyncio.Future[None] | None = None
        while True:
            await asyncio.sleep(SWEEP)
            try:
                if self._source is not None:
                    if refreshing is None or refreshing.done():
                        refreshing = asyncio.get_running_loop().run_in_executor(thread, self._source.refresh)
                    # What has expired ends also while the file system does not answer.
                    await asyncio.wait([refreshing], timeout=SWEEP)
                self._logins.sweep(time.time())
                self._record.sweep()
                if refreshing is not None and refreshing.done():
                    refreshing.result()
            except Exception:  # without it, nothing would expire any more
                log.exception("sweep_failed")

    async def _serve_while_valid(self, request: web.Request, login: Login, handler: Handler) -> web.StreamResponse:
        """Handle a request, a transfer perhaps, until its login ends: then it is answered with 401, or cut off."""
        task = asyncio.current_task()
        ended: list[KernelBridgeError] = []

        def end(error: KernelBridgeError) -> None:
            ended.append(error)
            if request.writer.output_size:  # the answer has begun
                if request.transport is not None:
                    request.transport.abort()
            elif task is not None:
                task.cancel()

        with self.watched(login, end):
            try:
                return await handler(request)
            except asyncio.CancelledError:
                if not ended or task is None:
                    raise
                task.uncancel()
                if (transport := request.transport) is not None:
                    # aiohttp would read much longer what the client still sends of its body.
                    asyncio.get_running_loop().call_later(LOGIN_END, transport.abort)
                return _unauthorized(ended[0].reason)

    # -- the verdict ---------------------------------------------------------------

    def _admit(self, request: web.Request) -> Admission | web.Response | None:
        """Return how a request is admitted, or the answer that refuses it; None for a route that is open."""
        if _route(request) in OPEN:
            return None
        offers = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
        if (problem := subprotocol_problem(offers)) is not None:
            return _answer(400, "bad_request", problem)
        if self._mode == "none":
            return Anyone()
        return self._proxied(request) if self._mode == "proxy" else self._with_token(request, protocols(offers))

    def _with_token(self, request: web.Request, offered: list[str]) -> Admission | web.Response:
        if _is_preflight(request):
            return Unproven()  # browsers send it without credentials, and it says nothing of any session
        authorization = request.headers.getall(hdrs.AUTHORIZATION, [])
        token = bearer_token(authorization, offered, request.query.keys())
        if token is None and _opens_websocket(request):
            return Unproven()
        if token is None:
            return _unauthorized(_NEEDED)
        address = self._address(request)
        if isinstance(token, Refused):
            return self._admitted(request, self._fail(token, address, None), address)
        verdict = self._judge(token, address, "header" if authorization else "subprotocol")
        return self._admitted(request, verdict, address)

    def _proxied(self, request: web.Request) -> Login | web.Response:
        peer = _peer(request)
        verdict: Principal | Refused | Malformed
        if is_trusted(peer, self._trusted):
            verdict = proxied_name(request.headers.items(), self._header)
        else:
            verdict = Refused("this server takes requests from its proxy only; connect to the proxy")
        address = self._address(request)
        if isinstance(verdict, Principal):
            self._record.accepted(verdict, address=address, carried_by="proxy")
            return self._admitted(request, Identity(verdict), address)
        return self._admitted(request, self._fail(verdict, address, "proxy"), address)

    def _admitted(self, request: web.Request, verdict: Identity | _Failure, address: str) -> Login | web.Response:
        if isinstance(verdict, _Failure):
            return verdict.answer()
        if (reason := self._name_refusal(request, user_id(request), verdict.principal)) is not None:
            return _answer(403, "forbidden", reason)
        return self._login(verdict, address)

    def _name_refusal(self, request: web.Request, named: str | None, principal: Principal) -> str | None:
        """Return why a request may not have the `user_id` that it names, and note it; None if it may."""
        reason = name_refusal(named, principal)
        if reason is not None:
            note_refusal(request, self._metrics, self._audit, code="forbidden", reason=reason, principal=principal)
        return reason

    def _login(self, identity: Identity, address: str) -> Login:
        if self._source is None:
            return Login(identity)

        def renewed(token: str) -> Verdict:
            verdict = self._judge(token, address, "message", of=identity.principal)
            return Refused(verdict.reason) if isinstance(verdict, _Failure) else verdict

        return Login(identity, renewed)

    def _judge(
        self, token: str, address: str, carried_by: CarriedBy, of: Principal | None = None
    ) -> Identity | _Failure:
        """Check a token; with `of`, one that renews the login of that principal."""
        if self._source is None:
            raise AssertionError(self._mode)
        verdict: Verdict = Refused("the token has characters that no token has")
        if is_token(token):
            verdict = self._source.value.judge(token, time.time())
        if isinstance(verdict, Identity) and of not in {None, verdict.principal}:
            verdict = Refused("the token belongs to another user than this connection; open a new one")
        if isinstance(verdict, Refused):
            return self._fail(verdict, address, carried_by)
        self._record.accepted(verdict.principal, address=address, carried_by=carried_by, renewed=of is not None)
        return verdict

    def _fail(self, refused: Refused | Malformed, address: str, carried_by: CarriedBy | None) -> _Failure:
        wait = self._record.failed(refused.reason, address=address, carried_by=carried_by)
        return _Failure(refused.reason, wait, malformed=isinstance(refused, Malformed))

    def _address(self, request: web.Request) -> str:
        return client_address(_peer(request), request.headers.getall("X-Forwarded-For", []), self._trusted)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A credential that was refused and counted."""

    reason: str
    wait: float
    """Seconds that the client should wait before it tries again; 0 while its failures are few."""
    malformed: bool = False
    """Whether the request is one that no proxy should pass on."""

    def answer(self) -> web.Response:
        if not self.wait:
            return _answer(400, "bad_request", self.reason) if self.malformed else _unauthorized(self.reason)
        response = _answer(429, "too_many_failures", "too many logins failed; valid credentials are still accepted")
        response.headers[hdrs.RETRY_AFTER] = str(math.ceil(self.wait))
        return response


def is_websocket(request: web.Request) -> bool:
    """Return whether a request wants to open a WebSocket."""
    return request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"


def _route(request: web.Request) -> str | None:
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical


def _opens_websocket(request: web.Request) -> bool:
    """Return whether it is answered by the one handler that waits for a login before it does anything."""
    return _route(request) == WEBSOCKET and is_websocket(request)


def _is_preflight(request: web.Request) -> bool:
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in request.headers  # it has been checked already
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        and request.match_info.http_exception is None
    )


def _peer(request: web.Request) -> str:
    """Return the address of the other end, or `unix`."""
    own = None if request.transport is None else request.transport.get_extra_info("socket")
    return UNIX if own is not None and own.family == socket.AF_UNIX else request.remote or ""


async def _turn_away(ws: Socket, reason: str) -> None:
    ws.end_login(Unauthorized("You are not logged in", reason))
    await ws.cut_off_done()


def _unauthorized(reason: str) -> web.Response:
    response = _answer(401, "unauthorized", reason)
    response.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="kernelbridge"'
    return response


def _answer(status: int, error: str, reason: str) -> web.Response:
    response = web.json_response({"error": error, "reason": reason}, status=status)
    response.force_close()  # nothing of the request's body is read
    return response
