"""Requests about the principal's sessions: open with options, ask, list, close, resume.

Except for `open_session`, none of them opens a session. Another principal's session does not exist for them.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from msgspec import UNSET, structs

from kernelbridge.disk.limits import DiskLimits, Use
from kernelbridge.errors import KernelBridgeError, UnknownSession
from kernelbridge.protocol.base import timestamp
from kernelbridge.protocol.sessions import (
    CloseSession,
    CloseSessionReply,
    DiskUse,
    KernelStateName,
    LimitsInEffect,
    ListSessions,
    ListSessionsReply,
    OpenSession,
    Resume,
    SessionEntry,
    SessionInfo,
    SessionInfoReply,
    SessionReady,
    State,
)
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.server.websocket.handlers.request_context import (
    Client,
    PrincipalHandler,
    RequestContext,
    echoed,
    with_warnings,
)
from kernelbridge.workspace.options import Opening, SessionOptions
from kernelbridge.workspace.registry import Closed
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.states import KernelState, WorkspaceState
from kernelbridge.workspace.workspace import Workspace

LISTED = 1000
"""Most sessions in one `list_sessions_reply`."""


async def open_session(client: Client, message: OpenSession, warnings: list[str]) -> None:
    """Start the sandbox and the interpreter. Messages that arrive meanwhile wait for them."""
    key = SessionKey(client.principal, message.session_id)
    while (there := client.registry.find(key)) is not None and there.pausing.asleep:
        client.registry.attach(key, client.id)  # now, because the session may be about to end for lack of connections
        await there.pausing.awake()
    workspace = client.registry.open(key, client.id, _options(message))
    context = RequestContext(client, workspace, message.session_id, echoed(message.request_id), warnings)
    fresh = workspace.executions.state is not KernelState.READY
    workspace.executions.warm(lambda error: _opened(context, fresh, error))


def _opened(context: RequestContext, fresh: bool, error: KernelBridgeError | None) -> None:  # noqa: FBT001  the answer's own field
    if error is not None:
        context.fail(error)
        return
    workspace, choice = context.workspace, context.workspace.opening.choice
    context.answer(
        SessionReady(
            **context.ids,
            runtime=context.client.registry.runtime_name,
            image=choice.image,
            kernel=choice.kernel,
            language=workspace.opening.language or "",
            limits=_limits(workspace.opening),
            linger=workspace.opening.linger,
            keep_while_running=workspace.opening.keep_while_running,
            egress=workspace.opening.egress or UNSET,
            fresh=fresh,
            created=workspace.feed.created,
            last_seq=workspace.feed.last,
        )
    )
    # Only now: the answer says that it started.
    workspace.feed.join(context.client)


async def session_info(client: Client, message: SessionInfo, warnings: list[str]) -> None:
    """Describe one session."""
    registry = client.registry
    key = SessionKey(client.principal, message.session_id)
    stored = await registry.has_files(key)
    reply = SessionInfoReply(
        session_id=message.session_id,
        request_id=echoed(message.request_id),
        state="closing" if registry.closing(key) else "absent",
        kernel_state="absent",
        stored=stored,
        runtime=registry.runtime_name,
        disk=_disk(*await registry.disk(key)),
        max_linger=registry.most_linger,
        warnings=warnings or UNSET,
    )
    workspace = registry.find(key)
    client.send(reply if workspace is None else _described(reply, workspace, registry.connections(key)))


def _described(reply: SessionInfoReply, workspace: Workspace, connections: int) -> SessionInfoReply:
    choice = workspace.opening.choice
    cells, commands = workspace.queued
    run = workspace.executions.running
    return structs.replace(
        reply,
        state=_state(workspace),
        kernel_state=_kernel_state(workspace),
        image=choice.image,
        kernel=choice.kernel,
        language=workspace.opening.language or UNSET,
        limits=_limits(workspace.opening),
        linger=workspace.opening.linger,
        keep_while_running=workspace.opening.keep_while_running,
        egress=workspace.opening.egress or UNSET,
        connections=connections,
        queued_cells=cells,
        queued_commands=commands,
        running_since=UNSET if run is None else timestamp(run.since),
        terminals=workspace.terminals.ids,
        waiting_input=workspace.executions.prompt is not None,
        last_seq=workspace.feed.last,
        created=workspace.feed.created,
    )


async def list_sessions(client: Client, message: ListSessions, warnings: list[str]) -> None:
    """List all sessions of the connection's user: those that are open, and those with files."""
    stored = client.registry.stored(client.principal)
    live = {workspace.key.session_id: workspace for workspace in client.registry.live(client.principal)}
    names = sorted(stored | live.keys())
    client.send(
        ListSessionsReply(
            request_id=echoed(message.request_id),
            sessions=[_entry(name, live.get(name), stored=name in stored) for name in names[:LISTED]],
            truncated=len(names) > LISTED,
            warnings=warnings or UNSET,
        )
    )


def _entry(session_id: str, workspace: Workspace | None, *, stored: bool) -> SessionEntry:
    return SessionEntry(
        session_id=session_id,
        state="absent" if workspace is None else _state(workspace),
        kernel_state="absent" if workspace is None else _kernel_state(workspace),
        stored=stored,
        created=UNSET if workspace is None else workspace.feed.created,
    )


async def close_session(client: Client, message: CloseSession, warnings: list[str]) -> None:
    """Close a session. Messages that arrive meanwhile open it again."""
    key = SessionKey(client.principal, message.session_id)
    done = functools.partial(_closed, client, message, warnings)
    ending = client.registry.close(key, client, delete_files=message.delete_files, done=done)
    if ending is not None:
        await asyncio.wait({ending})


def _closed(client: Client, message: CloseSession, warnings: list[str], outcome: Closed | KernelBridgeError) -> None:
    request_id = echoed(message.request_id)
    if isinstance(outcome, KernelBridgeError):
        client.send(with_warnings(answers.error_message(outcome, message.session_id, request_id), warnings))
        return
    client.send(
        CloseSessionReply(
            session_id=message.session_id,
            request_id=request_id,
            closed=outcome.was_open,
            files_deleted=outcome.files_deleted,
            warnings=warnings or UNSET,
        )
    )


async def resume(client: Client, message: Resume, warnings: list[str]) -> None:
    """Replay a session's events to a connection, then send it all new ones."""
    key = SessionKey(client.principal, message.session_id)
    if client.registry.find(key) is None and not client.registry.was_closed(key):
        raise UnknownSession(
            "The session is not open",
            "it was closed, or never opened, so there is nothing to resume; any other request opens it,"
            " and its files, if it has some, are there",
        )
    workspace = client.registry.attach(key, client.id)
    workspace.pausing.wake()
    awaits = message.request_ids or ()
    workspace.feed.follow(client, message.after, echoed(message.request_id), warnings or UNSET, awaits)


def _options(message: OpenSession) -> SessionOptions:
    limits = message.limits
    return SessionOptions(
        image=message.image,
        kernel=message.kernel,
        env=message.env,
        memory=None if limits is None else limits.memory,
        cpus=None if limits is None else limits.cpus,
        pids=None if limits is None else limits.pids,
        disk=None if limits is None else limits.disk,
        linger=message.linger,
        keep_while_running=message.keep_while_running,
        egress=message.egress,
    )


def _disk(use: Use, limits: DiskLimits) -> DiskUse:
    return DiskUse(used=use.size, limit=limits.size or UNSET, files=use.files, max_files=limits.files or UNSET)


def _limits(opening: Opening) -> LimitsInEffect:
    limits = opening.choice.limits
    return LimitsInEffect(memory=limits.memory, cpus=limits.cpus, pids=limits.pids, disk=opening.disk or UNSET)


_STATES: Mapping[WorkspaceState, State] = MappingProxyType(
    {WorkspaceState.CLOSED: "absent", WorkspaceState.PAUSING: "active", WorkspaceState.RESUMING: "paused"}
)
"""States of a workspace that the protocol has no word for."""


def _state(workspace: Workspace) -> State:
    state = workspace.state
    return _STATES.get(state) or cast("State", state.value)


_KERNEL_STATES: Mapping[KernelState, KernelStateName] = MappingProxyType(
    {KernelState.ADOPTING: "starting", KernelState.REPLACING: "restarting"}
)
"""The same for interpreters."""


def _kernel_state(workspace: Workspace) -> KernelStateName:
    state = workspace.executions.state
    return _KERNEL_STATES.get(state) or cast("KernelStateName", state.value)


HANDLERS: Mapping[type, PrincipalHandler] = {
    OpenSession: open_session,
    SessionInfo: session_info,
    ListSessions: list_sessions,
    CloseSession: close_session,
    Resume: resume,
}
