"""A session's files for everything asynchronous: requests, transfers, the workspace itself.

They need no sandbox, and outlive the workspace: whoever uses the files of one session uses the same
`SessionFiles`, so that conditions hold between all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock
from typing import Literal, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from kernelbridge.runtimes.base import Runtime
from kernelbridge.workspace import file_reads
from kernelbridge.workspace.file_names import directory_parts
from kernelbridge.workspace.file_reads import Content, OpenFile
from kernelbridge.workspace.file_transfers import Upload
from kernelbridge.workspace.file_tree import Listing, listing
from kernelbridge.workspace.file_versions import Condition, Saved
from kernelbridge.workspace.files import SaveMode, WorkspaceFiles
from kernelbridge.workspace.layout import DataDirectory, SessionKey
from kernelbridge.workspace.watching import Watcher
from kernelbridge.workspace.work import in_thread, in_turns

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Sizes in bytes."""

    frame: int
    """What goes into one message."""
    transfer: int
    """What a file may have that arrives in pieces."""


class SessionFiles:
    """The files of one session. Everything raises `BadRequest`, and `FileError` or one of its kinds."""

    def __init__(
        self, key: SessionKey, *, data: DataDirectory, runtime: Runtime, executor: Executor, limits: FileLimits
    ) -> None:
        self._key = key
        self._data = data
        self._runtime = runtime
        self._executor = executor
        self._limits = limits
        self._root = data.paths(key).files
        self._commits = Lock()
        self._prepared: asyncio.Task[WorkspaceFiles] | None = None
        self.watcher = Watcher(self._root, executor)

    async def prepared(self) -> WorkspaceFiles:
        """Make the session's directory if there is none, and give what changes files in it; for use in threads."""
        if self._prepared is None or not self._still_prepared(self._prepared):
            self._prepared = asyncio.get_running_loop().create_task(self._prepare())
        return await asyncio.shield(self._prepared)

    def _still_prepared(self, task: asyncio.Task[WorkspaceFiles]) -> bool:
        # The session's files may have been deleted meanwhile.
        return not task.done() or (task.exception() is None and self._root.is_dir())

    async def save(
        self, filename: str, data: bytes, mode: SaveMode = "overwrite", if_match: str | None = None
    ) -> Saved:
        """See `WorkspaceFiles.save`."""
        files = await self.prepared()
        return await in_turns(self._executor, files.saving(filename, data, mode, if_match))

    async def read(
        self, filename: str, *, encoding: Literal["utf-8", "base64"], offset: int, length: int | None
    ) -> Content:
        """See `file_reads.read`."""
        return await in_thread(
            self._executor,
            file_reads.read,
            self._root,
            filename,
            encoding=encoding,
            offset=offset,
            length=length,
            max_frame=self._limits.frame,
        )

    async def list(self, path: str, *, recursive: bool, hidden: bool) -> Listing:
        """See `file_tree.listing`; the workspace itself is made if need be."""
        if not directory_parts(path, "path"):
            await self.prepared()
        return await in_turns(self._executor, listing(self._root, path, recursive=recursive, hidden=hidden))

    async def delete(self, filename: str, *, recursive: bool) -> None:
        """See `WorkspaceFiles.delete`."""
        files = await self.prepared()
        await in_turns(self._executor, files.deleting(filename, recursive=recursive))

    async def rename(self, filename: str, new_filename: str, *, overwrite: bool) -> None:
        """See `WorkspaceFiles.rename`."""
        files = await self.prepared()
        await in_thread(self._executor, files.rename, filename, new_filename, overwrite=overwrite)

    async def mkdir(self, filename: str) -> None:
        """See `WorkspaceFiles.mkdir`."""
        files = await self.prepared()
        await in_thread(self._executor, files.mkdir, filename)

    @contextlib.asynccontextmanager
    async def download(self, filename: str) -> AsyncIterator[Download]:
        """Open a file to read it in pieces; makes nothing, not even the session's directory."""
        opened = file_reads.open_file(self._root, filename)
        file = await in_thread(self._executor, opened.__enter__)
        try:
            yield Download(file, self._executor)
        finally:
            await in_thread(self._executor, opened.__exit__, None, None, None)

    @contextlib.asynccontextmanager
    async def upload(self, filename: str, condition: Condition) -> AsyncIterator[Arrival]:
        """Begin to write a file in pieces; what is not committed leaves nothing."""
        upload = Upload(await self.prepared(), filename, condition, self._limits.transfer)
        try:
            await in_turns(self._executor, upload.begin())
            yield Arrival(upload, self._executor)
        finally:
            await in_thread(self._executor, upload.close)

    async def _prepare(self) -> WorkspaceFiles:
        facts = await self._runtime.prepare()
        root = await in_thread(self._executor, self._data.prepare_files, self._key, facts.uid, facts.gid)
        return WorkspaceFiles(
            root,
            uid=facts.uid,
            gid=facts.gid,
            max_bytes=self._limits.frame,
            max_file=self._limits.transfer,
            commits=self._commits,
        )


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is being sent."""

    file: OpenFile
    _executor: Executor

    async def read(self, offset: int, length: int) -> bytes:
        """Give so many bytes, or fewer at its end."""
        return await in_thread(self._executor, self.file.read, offset, length)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that is arriving."""

    _upload: Upload
    _executor: Executor

    async def write(self, data: bytes | bytearray) -> None:
        """Add what has arrived."""
        await in_thread(self._executor, self._upload.write, data)

    async def commit(self) -> Saved:
        """Make it durable and put it in its place."""
        return await in_thread(self._executor, self._upload.commit)


class FileStore:
    """The files of all sessions of a server."""

    def __init__(self, *, data: DataDirectory, runtime: Runtime, executor: Executor, limits: FileLimits) -> None:
        self._data = data
        self._runtime = runtime
        self._executor = executor
        self._limits = limits
        self._used: WeakValueDictionary[SessionKey, SessionFiles] = WeakValueDictionary()

    def of(self, key: SessionKey) -> SessionFiles:
        """Give the files of a session; makes nothing on the disk."""
        files = self._used.get(key)
        if files is None:
            files = self._used[key] = SessionFiles(
                key, data=self._data, runtime=self._runtime, executor=self._executor, limits=self._limits
            )
        return files

    async def aclose(self) -> None:
        """Watch no session any more. Idempotent."""
        for files in list(self._used.values()):
            await files.watcher.aclose()
