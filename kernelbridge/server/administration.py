"""What an administrator sees and ends, whoever's it is.

GET    /api/sessions                  all open sessions
DELETE /api/workspaces/{id}           close one; its files stay
GET    /api/workspaces/{id}/events    the latest frames that it has sent
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from kernelbridge.audit.audit import By
from kernelbridge.errors import KernelBridgeError
from kernelbridge.identity.logins import Login
from kernelbridge.identity.principal import Identity
from kernelbridge.protocol.administration import JournalEvent, JournalEvents, SessionRow, SessionTable
from kernelbridge.server.access import cross_site_refusal, refusal
from kernelbridge.server.principal import ADMISSION, Anyone, proven
from kernelbridge.server.refusals import note_refusal
from kernelbridge.settings.settings import is_loopback
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.workspace import Workspace

log = structlog.get_logger(__name__)

PATIENCE: Final = 2.0
"""Seconds in which the runtime must say how much memory the sandboxes use."""
CLOSED_WITHIN: Final = 20.0
"""Seconds after which a close that is not complete is answered with 202."""
EVENTS: Final = 200
"""Events that are sent if the request does not say how many."""
MOST_EVENTS: Final = 10_000
_DIGITS: Final = 5
LARGEST: Final = 64 << 10
"""Bytes of a frame that is sent again; of a larger one only its type and size are."""
_FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
"""What proxies add."""
_NOT_ONE: Final = "you are not one; ask the operator to name you with --admin, or to write admin in your token's line"


def administrator_problem(request: web.Request, named: Collection[str]) -> str | None:
    """Return why a request is not an administrator's, or None.

    With authentication, the credential says so, or the operator has `named` its user. Without it, everybody on this
    machine is one, but nobody whom a proxy or a web page brings here: the first looks as if it came from this machine.
    """
    has_origin = hdrs.ORIGIN in request.headers  # it was checked already
    reason = cross_site_refusal(request.headers.getall("Sec-Fetch-Site", []), has_origin=has_origin)
    if reason is not None:
        return reason
    admission = request.get(ADMISSION)
    if not isinstance(admission, Anyone):
        is_one = isinstance(admission, Login) and _is_administrator(admission.identity, named)
        return None if is_one else _NOT_ONE
    if request.remote and not is_loopback(request.remote):
        return "the request comes from another machine"
    if any(name in request.headers for name in _FORWARDED):
        return "the request was passed on by a proxy"
    if has_origin:
        return "the request comes from a web page"
    # The guard has also accepted the names of `--allow-origin`: a proxy passes them on.
    return refusal(request.headers.getall("Host", []), [], ())


def _is_administrator(identity: Identity, named: Collection[str]) -> bool:
    # A server takes the tokens of one issuer at most, so the name alone says who it is.
    return identity.admin or identity.principal.subject in named


class Administration:
    """The handlers of the routes."""

    def __init__(self, registry: Registry, administrators: Collection[str] = ()) -> None:
        """`administrators` are names of users; others may have a credential that says it."""
        self._registry = registry
        self._administrators = frozenset(administrators)

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/api/sessions", self._for_administrators(self.sessions))
        app.router.add_delete("/api/workspaces/{id}", self._for_administrators(self.kill))
        app.router.add_get("/api/workspaces/{id}/events", self._for_administrators(self.events))

    async def sessions(self, request: web.Request) -> web.StreamResponse:
        """List all open sessions."""
        self._registry.audit.administered(_by(request), "list")
        workspaces = self._registry.everything()
        asked = [asyncio.ensure_future(_memory(workspace)) for workspace in workspaces]
        if asked:
            await asyncio.wait(asked, timeout=PATIENCE)
        for task in asked:
            task.cancel()
        rows = [
            self._row(workspace, task.result() if task.done() and not task.cancelled() else None)
            for workspace, task in zip(workspaces, asked, strict=True)
        ]
        return _json(SessionTable(rows))

    async def kill(self, request: web.Request) -> web.StreamResponse:
        """Close a session, and wait for the end of its sandbox."""
        workspace = self._find(request)
        key = workspace.key
        self._registry.audit.administered(_by(request, key.session_id), "kill", owner=key.principal)
        log.warning("session_killed", user_id=key.principal.subject, session=key.session_id, peer=request.remote)
        try:
            async with asyncio.timeout(CLOSED_WITHIN):
                await self._registry.kill(key)
        except TimeoutError:
            return web.json_response({"closed": False, "reason": "its sandbox has not ended yet"}, status=202)
        return web.json_response({"closed": True})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send the latest frames of a session."""
        workspace = self._find(request)
        last = request.query.get("last", str(EVENTS))
        if not (last.isascii() and last.isdigit() and len(last) <= _DIGITS and 1 <= int(last) <= MOST_EVENTS):
            raise web.HTTPBadRequest(text=f"last must be a number from 1 to {MOST_EVENTS}.\n")
        key = workspace.key
        self._registry.audit.administered(_by(request, key.session_id), "logs", owner=key.principal)
        return _json(JournalEvents([_event(entry.seq, entry.frame) for entry in workspace.feed.latest(int(last))]))

    def _find(self, request: web.Request) -> Workspace:
        wanted = request.match_info["id"]
        for workspace in self._registry.everything():
            if workspace.key.workspace_id == wanted:
                return workspace
        raise web.HTTPNotFound(text="No session with this id is open.\n")

    def _row(self, workspace: Workspace, memory: int | None) -> SessionRow:
        cells, commands = workspace.queued
        return SessionRow(
            id=workspace.key.workspace_id,
            user=workspace.key.principal.subject,
            session=workspace.key.session_id,
            state=workspace.state.value,
            kernel_state=workspace.executions.state.value,
            created=workspace.feed.created,
            connections=self._registry.connections(workspace.key),
            running=list(workspace.running()),
            queued_cells=cells,
            queued_commands=commands,
            memory=memory,
            disk=workspace.disk_size,
        )

    def _for_administrators(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if (problem := administrator_problem(request, self._administrators)) is not None:
                reason = f"only an administrator may do that: {problem}"
                metrics, audit = self._registry.metrics, self._registry.audit
                note_refusal(request, metrics, audit, code="forbidden", reason=reason, principal=proven(request))
                return web.json_response({"error": "forbidden", "reason": reason}, status=403)
            return await handler(request)

        return handle


async def _memory(workspace: Workspace) -> int | None:
    sandbox = workspace.sandbox.current
    try:
        return None if sandbox is None else await sandbox.memory()
    except KernelBridgeError as exc:
        log.info("memory_not_known", workspace=workspace.key.workspace_id, reason=str(exc))
        return None


def _event(seq: int, frame: bytes) -> JournalEvent:
    kept = frame if len(frame) <= LARGEST else b"null"
    return JournalEvent(seq=seq, type=_type(frame), size=len(frame), frame=msgspec.Raw(kept))


def _type(frame: bytes) -> str:
    """Return the type of a frame without decoding it: the server writes it first."""
    start = b'{"type":"'
    return frame[len(start) : frame.find(b'"', len(start))].decode() if frame.startswith(start) else ""


def _by(request: web.Request, session: str | None = None) -> By:
    return By(proven(request), session, address=request.remote)


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
