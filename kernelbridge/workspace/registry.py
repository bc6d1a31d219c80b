"""All live workspaces of a server: found or made by session, closed when nobody comes back."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

import structlog

from kernelbridge.errors import LimitExceeded, SandboxError
from kernelbridge.runtimes.base import Runtime
from kernelbridge.workspace.layout import DataDirectory, SessionKey
from kernelbridge.workspace.tasks import TaskSet
from kernelbridge.workspace.workspace import Workspace, WorkspaceSettings

log = structlog.get_logger(__name__)


class _Entry:
    """A live workspace and who is attached to it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.connections: set[str] = set()
        self.linger: asyncio.TimerHandle | None = None

    def stay(self) -> None:
        if self.linger is not None:
            self.linger.cancel()
            self.linger = None


class Registry:
    """Maps (principal, sessionId) to its workspace."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        data: DataDirectory,
        settings: WorkspaceSettings,
        executor: Executor,
        linger: float,
        max_sessions_per_user: int,
    ) -> None:
        self._runtime = runtime
        self._data = data
        self._settings = settings
        self._executor = executor
        self._linger = linger
        self._max_sessions_per_user = max_sessions_per_user
        self._entries: dict[SessionKey, _Entry] = {}
        self._closing: dict[SessionKey, Workspace] = {}
        self._tasks = TaskSet()
        self._stopping = False

    def __len__(self) -> int:
        return len(self._entries)

    def attach(self, key: SessionKey, connection_id: str) -> Workspace:
        """Find or make the workspace and note that the connection uses it. Raises `LimitExceeded`."""
        if self._stopping:
            raise SandboxError("The server is stopping", "connect again when it is back")
        entry = self._entries.get(key)
        if entry is None:
            live = sum(1 for other in self._entries if other.principal == key.principal)
            if live >= self._max_sessions_per_user:
                raise LimitExceeded(
                    "Too many sessions are open for this user",
                    f"the limit is {self._max_sessions_per_user}; close a connection that uses one, or wait until"
                    " an unused one has ended",
                )
            workspace = Workspace(
                key,
                runtime=self._runtime,
                data=self._data,
                settings=self._settings,
                executor=self._executor,
                # A session that is just being closed is finished first; what comes now waits for that.
                predecessor=self._closing.get(key),
            )
            entry = self._entries[key] = _Entry(workspace)
        entry.stay()
        entry.connections.add(connection_id)
        return entry.workspace

    def detach(self, connection_id: str) -> None:
        """Note that a connection is gone; a session without any ends after `linger` seconds."""
        for key, entry in list(self._entries.items()):
            if connection_id not in entry.connections:
                continue
            entry.connections.discard(connection_id)
            if not entry.connections:
                loop = asyncio.get_running_loop()
                entry.linger = loop.call_later(self._linger, self._expire, key)

    async def aclose(self) -> None:
        """Close every workspace; what runs is answered with cause `session_closed`. Idempotent."""
        self._stopping = True
        for key in list(self._entries):
            self._expire(key)
        await asyncio.gather(*(workspace.close() for workspace in list(self._closing.values())), return_exceptions=True)
        await self._tasks.aclose()

    def _expire(self, key: SessionKey) -> None:
        entry = self._entries.pop(key)
        entry.stay()
        self._closing[key] = entry.workspace
        self._tasks.create(self._close(key, entry.workspace))

    async def _close(self, key: SessionKey, workspace: Workspace) -> None:
        try:
            await workspace.close()
        finally:
            if self._closing.get(key) is workspace:
                del self._closing[key]
