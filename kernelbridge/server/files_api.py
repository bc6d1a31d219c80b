"""`GET|HEAD|PUT /api/sessions/{id}/files/{path}`: files of any size. The session need not be open."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from email.utils import formatdate
from types import MappingProxyType
from typing import Literal, Protocol
from urllib.parse import quote, unquote_to_bytes

import structlog
from aiohttp import ETag, hdrs, web
from aiohttp.typedefs import Handler

from kernelbridge.audit.audit import Audit, By
from kernelbridge.errors import (
    BadRequest,
    DirectoryNotEmpty,
    DiskFull,
    FileConflict,
    FileExists,
    FilesDeleted,
    FileTooLarge,
    IsDirectory,
    KernelBridgeError,
    LimitExceeded,
    NoSuchFile,
    NotADirectory,
    NotAFile,
    RuntimeUnavailable,
    TooMuchBuffered,
)
from kernelbridge.identity.principal import Principal
from kernelbridge.metrics import Metrics
from kernelbridge.rates import Pace, Paces
from kernelbridge.server.access import cross_site_refusal, origin_headers
from kernelbridge.server.principal import login_of, proven
from kernelbridge.server.refusals import note_refusal, what_was_asked
from kernelbridge.server.websocket.tcp import Counted, TcpConnection
from kernelbridge.workspace.files.reading import OpenFile
from kernelbridge.workspace.files.service import Download, SessionFiles, Upload
from kernelbridge.workspace.files.versions import Condition
from kernelbridge.workspace.session_key import SessionKey

log = structlog.get_logger(__name__)

ROUTE = r"/api/sessions/{session_id}/files/{path:[\s\S]*}"  # a name may have lines

_CHUNK = 512 << 10
"""Bytes that are read or written at a time."""
_STALL = 60.0
"""Seconds without progress after which a transfer is ended."""
_AT_ONCE = 16
"""Transfers that one user may have at a time."""
_PATH = re.compile(r"/api/sessions/(?P<session>[^/]*)/files/(?P<path>.*)", re.DOTALL)
_SESSION = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ANY = "*"
_NOTHING = "\0"
"""A version that no file has."""

_STATUS: Mapping[type[KernelBridgeError], int] = MappingProxyType(
    {
        BadRequest: 400,
        NoSuchFile: 404,
        IsDirectory: 409,
        NotADirectory: 409,
        NotAFile: 409,
        DirectoryNotEmpty: 409,
        FilesDeleted: 409,
        FileConflict: 412,
        FileExists: 412,
        FileTooLarge: 413,
        LimitExceeded: 429,
        TooMuchBuffered: 503,
        DiskFull: 507,
        RuntimeUnavailable: 503,
    }
)


class HoldFiles(Protocol):
    """Holds the files of a session (`Registry.using`)."""

    def __call__(self, key: SessionKey, *, writes: bool) -> AbstractAsyncContextManager[None]:
        """Use them while the context is open; `writes` says whether to change them. Raises `LimitExceeded`."""
        ...


class Transfers:
    """The handlers of the route. `files` returns the files of a session; `using` is entered while they are used."""

    def __init__(
        self,
        files: Callable[[SessionKey], SessionFiles],
        using: HoldFiles,
        audit: Audit,
        metrics: Metrics,
        paces: Paces,
    ) -> None:
        self._paces = paces
        self._files = files
        self._using = using
        self._audit = audit
        self._metrics = metrics
        self._running: Counter[Principal] = Counter()

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get(ROUTE, self._answering(self.get))  # and HEAD
        app.router.add_put(ROUTE, self._answering(self.put))
        app.router.add_options(ROUTE, self._answering(self.options))

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Send a file, or one range of it."""
        key, path = _target(request)
        async with self._place(request, key, "download", path), self._files(key).download(path) as download:
            file = download.file
            headers = _headers(request, file, path)
            if (settled := _settled(request, file, headers)) is not None:
                return settled
            asked = _range(request, file)
            if asked.start is not None and asked.start >= file.size:
                headers[hdrs.CONTENT_RANGE] = f"bytes */{file.size}"
                return web.Response(status=416, headers=headers)
            start, end, _ = asked.indices(file.size)
            status = 200
            if end - start != file.size:
                status = 206
                headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{file.size}"
            response = web.StreamResponse(status=status, headers=headers)
            response.content_length = end - start
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                await _send(request, response, download, start, end)
            return response

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Receive a file. It replaces the old one when it is complete."""
        key, path = _target(request)
        for name in (hdrs.CONTENT_RANGE, hdrs.CONTENT_ENCODING):
            if name in request.headers:
                raise BadRequest(
                    "The file cannot be accepted in this form",
                    f"send it whole and unencoded, without the header {name}",
                )
        place = self._place(request, key, "save", path)
        async with place, self._files(key).upload(path, _condition(request)) as upload:
            announced = request.content_length
            await upload.announce(announced or 0)
            received = await _receive(request, upload, self._paces.connection(key.principal))
            if announced is not None and received != announced:
                raise BadRequest("The file is incomplete", f"{received} of {announced} bytes arrived")
            saved = await upload.commit()
        log.info("file_received", user_id=key.principal.subject, session=key.session_id, size=saved.size)
        return web.json_response(
            {"filename": path, "size": saved.size, "sha256": saved.sha256},
            status=201 if saved.created else 200,
            headers={hdrs.ETAG: f'"{saved.version}"', **origin_headers(request.headers)},
        )

    async def options(self, request: web.Request) -> web.StreamResponse:
        """Answer the preflight request of a page whose origin may connect."""
        headers = {
            hdrs.ALLOW: "GET, HEAD, PUT, OPTIONS",
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, HEAD, PUT",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type, If-Match, If-None-Match, If-Range, Range",
            **origin_headers(request.headers),
        }
        return web.Response(status=204, headers=headers)

    @contextlib.asynccontextmanager
    async def _place(
        self, request: web.Request, key: SessionKey, action: Literal["download", "save"], path: str
    ) -> AsyncIterator[None]:
        if self._running[key.principal] >= _AT_ONCE:
            raise LimitExceeded(
                "Too many transfers are running for this user", f"the limit is {_AT_ONCE}; wait until one has ended"
            )
        self._running[key.principal] += 1
        try:
            await asyncio.sleep(self._paces.user(key.principal).wait(requests=1))
            # Not sooner: what is refused above, or waits, would fill the audit log as fast as a client can ask.
            self._audit.file(_by(request, key), action, path, size=request.content_length)
            # Two chunks: one is read or sent while the other is written or waits.
            with Counted(request, key.principal, 2 * _CHUNK):
                async with self._using(key, writes=action == "save"):
                    yield
        finally:
            self._running[key.principal] -= 1
            if not self._running[key.principal]:
                del self._running[key.principal]

    def _answering(self, handler: Handler) -> Handler:
        """Answer failures with the codes of the `error` message."""

        async def handle(request: web.Request) -> web.StreamResponse:
            sites = request.headers.getall("Sec-Fetch-Site", [])
            reason = cross_site_refusal(sites, has_origin=hdrs.ORIGIN in request.headers)
            if reason is not None:
                metrics, audit = self._metrics, self._audit
                note_refusal(request, metrics, audit, code="forbidden", reason=reason, principal=proven(request))
                return web.json_response({"error": "forbidden", "reason": reason}, status=403)
            try:
                return await handler(request)
            except web.RequestPayloadError as exc:
                reason = next(iter(str(exc).splitlines()), "").rstrip(":")
                TcpConnection.of(request).warn("malformed_request", reason=reason[:200])
                return self._failure(request, BadRequest("The body cannot be read", reason[:200]), 400)
            except TimeoutError:
                stalled = BadRequest("The transfer stalled", f"nothing moved for {_STALL:.0f} s")
                return self._failure(request, stalled, 408)
            except KernelBridgeError as exc:
                status = next((_STATUS[kind] for kind in type(exc).__mro__ if kind in _STATUS), 500)
                return self._failure(request, exc, status)

        return handle

    def _failure(self, request: web.Request, error: KernelBridgeError, status: int) -> web.Response:
        self._refused(request, error.code, error.message)
        return _failure(request, error, status)

    def _refused(self, request: web.Request, code: str, reason: str) -> None:
        self._metrics.refused(code)
        by = By(proven(request), address=request.remote)
        self._audit.refused(by, what=what_was_asked(request), code=code, reason=reason)


async def _send(request: web.Request, response: web.StreamResponse, download: Download, at: int, end: int) -> None:
    while at < end:
        data = await download.read(at, min(_CHUNK, end - at))
        if not data:
            # The file became shorter than the Content-Length that was sent; the client must notice that.
            _abort(request)
            return
        at += len(data)
        try:
            async with asyncio.timeout(_STALL):
                await response.write(data)
        except TimeoutError:
            _abort(request)
            return
        except ConnectionError:
            return  # the client is gone
    await response.write_eof()


async def _receive(request: web.Request, upload: Upload, pace: Pace) -> int:
    received = 0
    waiting = bytearray()
    while True:
        async with asyncio.timeout(_STALL):
            data = await request.content.readany()
        received += len(data)
        waiting += data
        if len(waiting) >= _CHUNK or (waiting and not data):
            await upload.write(waiting)
            await asyncio.sleep(pace.wait(size=len(waiting)))
            waiting = bytearray()
        if not data:
            return received


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _target(request: web.Request) -> tuple[SessionKey, str]:
    found = _PATH.fullmatch(request.rel_url.raw_path)
    if found is None:
        raise web.HTTPNotFound
    try:
        session, path = (unquote_to_bytes(found[part]).decode() for part in ("session", "path"))
    except UnicodeDecodeError as exc:
        raise BadRequest("The path cannot be read", "expected UTF-8, percent-encoded", field="path") from exc
    if _SESSION.fullmatch(session) is None:
        raise BadRequest(
            "The session id is wrong",
            "expected 1-128 characters of letters, digits, '.', '_', '-'",
            field="sessionId",
            code="invalid_field",
        )
    try:
        return SessionKey(login_of(request).identity.principal, session), path
    except web.HTTPBadRequest as exc:
        raise BadRequest(
            "The user_id is wrong", (exc.text or "").strip(), field="user_id", code="invalid_field"
        ) from exc


def _by(request: web.Request, key: SessionKey) -> By:
    return By(key.principal, key.session_id, address=request.remote)


def _condition(request: web.Request) -> Condition:
    match, none_match = request.if_match, request.if_none_match
    if none_match is not None:
        if match is not None or not _names(none_match, _ANY):
            raise BadRequest(
                "The header If-None-Match is not supported here", "a PUT accepts If-Match, or If-None-Match: *"
            )
        return Condition(absent=True)
    if match is None:
        return Condition()
    if _names(match, _ANY):
        return Condition(versions=frozenset())
    # A weak tag does not identify the exact bytes, so it never matches here.
    strong = frozenset(tag.value for tag in match if not tag.is_weak)
    hashes = frozenset(filter(_SHA256.fullmatch, strong))
    return Condition(versions=strong - hashes | {_NOTHING}, sha256=hashes)


def _settled(request: web.Request, file: OpenFile, headers: dict[str, str]) -> web.Response | None:
    """Return the answer to a request whose conditions leave nothing to send, or None. Raises `FileConflict`."""
    match, none_match = request.if_match, request.if_none_match
    if match is not None and not _names([tag for tag in match if not tag.is_weak], _ANY, file.version):
        raise FileConflict("The file is not sent", "it is another version than If-Match names")
    if none_match is not None and _names(none_match, _ANY, file.version):
        return web.Response(status=304, headers=headers)
    return None


def _names(tags: Iterable[ETag], *values: str) -> bool:
    return any(tag.value in values for tag in tags)


def _range(request: web.Request, file: OpenFile) -> slice:
    """Return the part that is asked for. Anything but one range of bytes is ignored, as RFC 9110 allows."""
    whole = slice(None)
    if request.headers.get(hdrs.IF_RANGE, f'"{file.version}"') != f'"{file.version}"':
        return whole
    try:
        return request.http_range
    except ValueError:
        return whole


def _headers(request: web.Request, file: OpenFile, path: str) -> dict[str, str]:
    name = quote(path.rpartition("/")[2], safe="")
    return {
        hdrs.ETAG: f'"{file.version}"',
        hdrs.LAST_MODIFIED: _http_date(file.modified),
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CACHE_CONTROL: "private, no-cache",
        # A workspace file must never act as a page of this server: it is not shown, run or embedded.
        hdrs.CONTENT_TYPE: "application/octet-stream",
        hdrs.CONTENT_DISPOSITION: f"attachment; filename*=UTF-8''{name}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        **origin_headers(request.headers),
    }


def _http_date(seconds: float) -> str:
    try:
        return formatdate(seconds, usegmt=True)
    except (OverflowError, ValueError, OSError):
        return formatdate(0, usegmt=True)  # outside the calendar


def _failure(request: web.Request, error: KernelBridgeError, status: int) -> web.Response:
    response = web.json_response(
        {
            "code": error.code,
            "message": error.message,
            "error": error.reason or error.message,
            "retryable": error.retryable,
        },
        status=status,
        headers=origin_headers(request.headers),
    )
    if request.can_read_body:
        response.force_close()  # the rest of the body is not needed
    return response
