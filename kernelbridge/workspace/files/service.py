"""A session's files for everything asynchronous: requests, transfers, the workspace itself.

They need no sandbox. What takes its place does so under the lock of the session's directory
(`versions.Commits`), so that conditions hold between requests and transfers.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from kernelbridge.aio.threads import BlockingWork, in_thread, in_turns
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
from kernelbridge.workspace.files.versions import Condition, NewVersion, Saved, settled
from kernelbridge.workspace.files.watcher import Tell, Watch, Watcher
from kernelbridge.workspace.session_key import SessionKey


class SessionFiles:
    """The files of one session. Everything raises `BadRequest`, and `FileError` or one of its kinds."""

    def __init__(
        self,
        root: Path,
        *,
        prepared: Callable[[], Awaitable[WorkspaceFiles]],
        settled: Callable[[], Awaitable[None]],
        executor: Executor,
        max_frame: int,
    ) -> None:
        self._root = root
        self._prepared = prepared
        """Makes the session's directory if there is none, and gives what changes files in it."""
        self._settled = settled
        """Waits while files are being deleted that are not this session's any more."""
        self._executor = executor
        self._max_frame = max_frame
        self.watcher = Watcher(root, executor)

    async def save(
        self, filename: str, content: str, *, encoding: Encoding, mode: SaveMode, if_match: str | None
    ) -> Saved:
        """See `WorkspaceFiles.save`; raises `BadRequest` for content that is not in its encoding, too."""
        files = await self._prepared()

        def work() -> BlockingWork[Saved]:
            data = _decoded(content) if encoding == "base64" else content.encode()
            return (yield from files.saving(filename, data, mode, if_match))

        async with self._changing(files):
            return await in_turns(self._executor, work())

    async def read(self, filename: str, *, encoding: Encoding, offset: int, length: int | None) -> Content:
        """See `reading.read`."""
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
        """See `file_tree.listing`; the workspace itself is made if need be."""
        await (self._settled() if directory_parts(path, "path") else self._prepared())
        return await in_turns(self._executor, listing(self._root, path, recursive=recursive, hidden=hidden))

    async def watch(self, *, hidden: bool, tell: Tell, failed: Callable[[KernelBridgeError], None]) -> Watch:
        """See `Watcher.join`; the workspace itself is made if need be."""
        await self._prepared()
        return await self.watcher.join(hidden=hidden, tell=tell, failed=failed)

    async def delete(self, filename: str, *, recursive: bool) -> None:
        """See `WorkspaceFiles.delete`."""
        files = await self._prepared()
        async with self._changing(files):
            await in_turns(self._executor, files.deleting(filename, recursive=recursive))

    async def rename(self, filename: str, new_filename: str, *, overwrite: bool) -> None:
        """See `WorkspaceFiles.rename`."""
        files = await self._prepared()
        async with self._changing(files):
            await in_thread(self._executor, files.rename, filename, new_filename, overwrite=overwrite)

    async def mkdir(self, filename: str) -> None:
        """See `WorkspaceFiles.mkdir`."""
        files = await self._prepared()
        async with self._changing(files):
            await in_thread(self._executor, files.mkdir, filename)

    @contextlib.asynccontextmanager
    async def download(self, filename: str) -> AsyncIterator[Download]:
        """Open a file to read it in pieces; makes nothing, not even the session's directory."""
        opened = reading.open_file(self._root, filename)
        file = await in_thread(self._executor, opened.__enter__)
        try:
            yield Download(file, self._executor)
        finally:
            await in_thread(self._executor, opened.__exit__, None, None, None)

    @contextlib.asynccontextmanager
    async def upload(self, filename: str, condition: Condition) -> AsyncIterator[Arrival]:
        """Begin to write a file in pieces; what is not committed leaves nothing."""
        files = await self._prepared()
        upload = Upload(files, filename, condition)
        try:
            async with self._changing(files):
                await in_turns(self._executor, upload.begin())
                yield Arrival(upload, self._executor)
        finally:
            await in_thread(self._executor, upload.close)

    @contextlib.asynccontextmanager
    async def _changing(self, files: WorkspaceFiles) -> AsyncIterator[None]:
        """Say of what fails because all the files have been deleted meanwhile that it does."""
        try:
            yield
        except FileError as exc:
            told = await in_thread(self._executor, files.commits.told, exc)
            if told is exc:
                raise
            raise told from exc


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

    def check(self, size: int) -> None:
        """Raise `FileTooLarge` for a file of so many bytes if that is too much."""
        self._upload.check(size)

    async def write(self, data: bytes | bytearray) -> None:
        """Add what has arrived."""
        await in_thread(self._executor, self._upload.write, data)

    async def commit(self) -> Saved:
        """Make it durable and put it in its place."""
        return await in_thread(self._executor, self._upload.commit)


def stored_files(
    key: SessionKey, *, data: DataDirectory, runtime: Runtime, executor: Executor, limits: FileLimits
) -> SessionFiles:
    """Give the files of a session that is not open; makes nothing before something is written."""
    root = data.paths(key).files

    async def prepared() -> WorkspaceFiles:
        facts = await runtime.prepare()
        return await in_thread(executor, prepare, facts)

    def prepare(facts: Facts) -> WorkspaceFiles:
        commits = data.prepare_files(key, facts.uid, facts.gid, own_uid=facts.any_uid).commits
        try:
            with explained("The session's files cannot be used"):
                found = root.stat()  # it may have been made for another image's user
        except FileError as exc:
            raise commits.told(exc) from exc
        return WorkspaceFiles(root, uid=found.st_uid, gid=found.st_gid, limits=limits, commits=commits)

    async def settled() -> None:
        """Wait for nothing: who uses the files of a session that is not open has waited (`Registry.using`)."""

    return SessionFiles(root, prepared=prepared, settled=settled, executor=executor, max_frame=limits.frame)


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("The field 'content' is not base64", str(exc), field="content", code="invalid_field") from exc


@dataclass(eq=False)
class Upload:
    """A file that is arriving: `begin`, `write` as often as needed, `commit`; `close` whatever happened. Blocking.

    Each raises `BadRequest`, and `FileError` or one of its kinds. What was not committed leaves nothing.
    """

    files: WorkspaceFiles
    filename: str
    condition: Condition
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _new: NewVersion | None = None

    def begin(self) -> BlockingWork[None]:
        """Check the condition and make room beside the file."""
        parts = relative_parts(self.filename)
        with self._explained():
            fd = self._open.enter_context(self.files.home(parts, self.condition))
            self.condition = yield from settled(fd, parts[-1], self.condition)
            self._new = self._open.enter_context(self.files.new_version(fd, parts[-1]))

    def check(self, size: int) -> None:
        """Raise `FileTooLarge` for a file of so many bytes if that is too much."""
        limit = self.files.limits.file
        if size > limit:
            raise FileTooLarge(self._message, f"the limit is {limit} bytes (the server's max_upload)")

    def write(self, data: bytes | bytearray) -> None:
        """Add what has arrived."""
        new = self._begun()
        self.check(new.size + len(data))
        with self._explained():
            new.write(data)

    def commit(self) -> Saved:
        """Make it durable and put it in its place."""
        with self._explained():
            return self._begun().commit(self.condition)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._open.close()

    @property
    def _message(self) -> str:
        return f"The file {self.filename!r} was not saved"

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self._message)

    def _begun(self) -> NewVersion:
        if self._new is None:
            raise AssertionError("begin() comes first")
        return self._new
