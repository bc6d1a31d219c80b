"""The asynchronous interface to a session's files, for requests, transfers and the workspace itself.

No method needs a sandbox. Changes are committed under the lock of the session's directory (`versions.Commits`), so that
conditions hold between requests and transfers.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from kernelbridge.aio.threads import BlockingWork, in_thread, in_turns
from kernelbridge.disk.limits import Use
from kernelbridge.disk.session_disks import SessionDisk
from kernelbridge.errors import BadRequest, FileError, FileTooLarge, KernelBridgeError
from kernelbridge.protocol.files import Encoding
from kernelbridge.runtimes.contract import Runtime
from kernelbridge.runtimes.facts import Facts
from kernelbridge.workspace.files import reading
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.listing import Listing, listing
from kernelbridge.workspace.files.names import directory_parts, explained, relative_parts
from kernelbridge.workspace.files.reading import Content, OpenFile
from kernelbridge.workspace.files.store import FileLimits, SaveMode, WorkspaceFiles
from kernelbridge.workspace.files.versions import Condition, NewVersion, Saved, checked
from kernelbridge.workspace.files.watcher import SendChanges, Watch, Watcher
from kernelbridge.workspace.session_key import SessionKey


class SessionFiles:
    """The files of one session. Every method raises `BadRequest`, and `FileError` or a subclass of it."""

    def __init__(
        self,
        root: Path,
        *,
        prepared: Callable[[], Awaitable[WorkspaceFiles]],
        settled: Callable[[], Awaitable[None]],
        executor: Executor,
        max_frame: int,
        disk: SessionDisk,
    ) -> None:
        self._root = root
        self._prepared = prepared
        """Makes the session's directory if necessary, and returns what changes files in it."""
        self._settled = settled
        """Waits while the files of the session's life before are being deleted."""
        self._executor = executor
        self._max_frame = max_frame
        self._disk = disk
        self.watcher = Watcher(root, executor)

    async def save(
        self, filename: str, content: str, *, encoding: Encoding, mode: SaveMode, if_match: str | None
    ) -> Saved:
        """Write a file (`WorkspaceFiles.saving`). Also raises `BadRequest` for content that is not in its encoding."""
        files = await self._prepared()

        def work() -> BlockingWork[Saved]:
            data = _decoded(content) if encoding == "base64" else content.encode()
            parts = relative_parts(filename)
            yield from self._disk.admitting(len(data), len(parts), _not_saved(filename))
            return (yield from files.saving(filename, data, mode, if_match))

        async with self._changing(files):
            return await in_turns(self._executor, work())

    async def read(self, filename: str, *, encoding: Encoding, offset: int, length: int | None) -> Content:
        """Read a file (`reading.read`)."""
        await self._settled()
        return await in_thread(
            self._executor,
            reading.read,
            self._root,
            filename,
            encoding=encoding,
            offset=offset,
            length=length,
            max_frame=self._max_frame,
        )

    async def list(self, path: str, *, recursive: bool, hidden: bool) -> Listing:
        """List a directory (`listing.listing`); the workspace itself is made if necessary."""
        await (self._settled() if directory_parts(path, "path") else self._prepared())
        return await in_turns(self._executor, listing(self._root, path, recursive=recursive, hidden=hidden))

    async def watch(self, *, hidden: bool, send: SendChanges, failed: Callable[[KernelBridgeError], None]) -> Watch:
        """Watch the files (`Watcher.join`); the workspace itself is made if necessary."""
        await self._prepared()
        return await self.watcher.join(hidden=hidden, send=send, failed=failed)

    async def delete(self, filename: str, *, recursive: bool) -> None:
        """Delete a file or directory (`WorkspaceFiles.deleting`)."""
        files = await self._prepared()
        async with self._changing(files):
            await in_turns(self._executor, files.deleting(filename, recursive=recursive))

    async def rename(self, filename: str, new_filename: str, *, overwrite: bool) -> None:
        """Rename a file or directory (`WorkspaceFiles.rename`)."""
        files = await self._prepared()
        async with self._changing(files):
            await in_thread(self._executor, files.rename, filename, new_filename, overwrite=overwrite)

    async def mkdir(self, filename: str) -> None:
        """Make a directory (`WorkspaceFiles.mkdir`)."""
        files = await self._prepared()

        def work() -> BlockingWork[None]:
            parts = directory_parts(filename)
            yield from self._disk.admitting(0, len(parts), f"The directory {filename!r} was not made")
            files.mkdir(filename)

        async with self._changing(files):
            await in_turns(self._executor, work())

    async def use(self) -> Use:
        """Return what the session uses of the disk now."""
        return await in_turns(self._executor, self._disk.measuring())

    @contextlib.asynccontextmanager
    async def download(self, filename: str) -> AsyncIterator[Download]:
        """Open a file to read it in parts; makes nothing, not even the session's directory."""
        opened = reading.open_file(self._root, filename)
        file = await in_thread(self._executor, opened.__enter__)
        try:
            yield Download(file, self._executor)
        finally:
            await in_thread(self._executor, opened.__exit__, None, None, None)

    @contextlib.asynccontextmanager
    async def upload(self, filename: str, condition: Condition) -> AsyncIterator[Upload]:
        """Write a file in parts; without `Upload.commit`, nothing of it remains."""
        files = await self._prepared()
        message = _not_saved(filename)
        parts = relative_parts(filename)
        opened = contextlib.ExitStack()

        def begin() -> BlockingWork[Upload]:
            yield from self._disk.admitting(0, len(parts), message)
            with explained(message):
                fd = opened.enter_context(files.home(parts, condition))
                present = yield from checked(fd, parts[-1], condition)
                new = opened.enter_context(files.new_version(fd, parts[-1]))
            return Upload(new, present, files.limits.file, message, self._executor, self._disk)

        try:
            async with self._changing(files):
                yield await in_turns(self._executor, begin())
        finally:
            await in_thread(self._executor, opened.close)

    @contextlib.asynccontextmanager
    async def _changing(self, files: WorkspaceFiles) -> AsyncIterator[None]:
        """Replace the error of a change that failed because all files were deleted meanwhile, or because of a quota."""
        try:
            yield
        except FileError as exc:
            explanation = await in_thread(self._executor, files.commits.explain, exc)
            explanation = await in_turns(self._executor, self._disk.explaining(explanation))
            if explanation is exc:
                raise
            raise explanation from exc


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is being sent to a client."""

    file: OpenFile
    _executor: Executor

    async def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the file."""
        return await in_thread(self._executor, self.file.read, offset, length)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is being received from a client. Every method raises `FileError` or a subclass of it."""

    _new: NewVersion
    _condition: Condition
    _limit: int
    _message: str
    _executor: Executor
    _disk: SessionDisk

    async def announce(self, size: int) -> None:
        """Raise `FileTooLarge` or `DiskLimitReached` if a file of `size` bytes, to be written later, has no room."""
        self._check(size)
        await in_turns(self._executor, self._disk.checking(size, self._message))

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise FileTooLarge(self._message, f"the limit is {self._limit} bytes (the server's max_upload)")

    async def write(self, data: bytes | bytearray) -> None:
        """Append data that was received."""
        self._check(self._new.size + len(data))
        await in_turns(self._executor, self._writing(data))

    def _writing(self, data: bytes | bytearray) -> BlockingWork[None]:
        yield from self._disk.admitting(len(data), 0, self._message)
        with explained(self._message):
            self._new.write(data)

    async def commit(self) -> Saved:
        """Make the file durable and put it in its place."""
        with explained(self._message):
            return await in_thread(self._executor, self._new.commit, self._condition)


def stored_files(
    key: SessionKey, *, data: DataDirectory, runtime: Runtime, executor: Executor, limits: FileLimits
) -> SessionFiles:
    """Return the files of a session that is not open; nothing is made before something is written."""
    root = data.files(key)

    async def prepared() -> WorkspaceFiles:
        return await in_turns(executor, preparing(await runtime.prepare()))

    def preparing(facts: Facts) -> BlockingWork[WorkspaceFiles]:
        commits = data.prepare_files(key, facts.uid, facts.gid, own_uid=facts.any_uid).commits
        try:
            with explained("The session's files cannot be used"):
                found = root.stat()  # it may have been made for another image's user
                # Perhaps it still has the smaller limit with which it was open.
                yield from data.disk.apply_limits(key.workspace_id, root)
        except FileError as exc:
            raise commits.explain(exc) from exc
        return WorkspaceFiles(root, uid=found.st_uid, gid=found.st_gid, limits=limits, commits=commits)

    async def settled() -> None:
        """Return at once: users of a session that is not open have waited in `Registry.using`."""

    return SessionFiles(
        root,
        prepared=prepared,
        settled=settled,
        executor=executor,
        max_frame=limits.frame,
        disk=data.disk.session(key.workspace_id, root),
    )


def _not_saved(filename: str) -> str:
    return f"The file {filename!r} was not saved"


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("The field 'content' is not base64", str(exc), field="content", code="invalid_field") from exc
