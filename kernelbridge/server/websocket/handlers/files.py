"""Requests about a workspace's files; each is complete before the connection's next message starts."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Literal, cast

from msgspec import UNSET

from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol.files import (
    DeleteFile,
    FileChange,
    FileChanged,
    FileContent,
    FileList,
    FileResult,
    ListFiles,
    MakeDirectory,
    ReadFile,
    RenameFile,
    SaveFile,
)
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.server.websocket.handlers.request_context import Asker, Handler
from kernelbridge.workspace.files.inotify_tree import Change
from kernelbridge.workspace.files.watcher import Watch

Operation = Literal["read_file", "list_files", "delete_file", "rename_file", "make_directory"]


async def save(asker: Asker, message: SaveFile) -> None:
    """Write a file."""
    where = message.filename, asker.session_id, asker.request_id
    try:
        result = await asker.workspace.files.save(
            message.filename,
            message.content,
            encoding=message.encoding or "utf-8",
            mode=message.mode or "overwrite",
            if_match=message.if_match,
        )
    except KernelBridgeError as exc:
        asker.answer(answers.not_saved(exc, *where))
    else:
        asker.answer(answers.saved(result, *where))


async def read(asker: Asker, message: ReadFile) -> None:
    """Read a file."""
    encoding = message.encoding or "utf-8"
    try:
        found = await asker.workspace.files.read(
            message.filename, encoding=encoding, offset=message.offset, length=message.length
        )
    except KernelBridgeError as exc:
        _failed(asker, "read_file", message.filename, exc)
        return
    asker.answer(
        FileContent(
            filename=message.filename,
            content=cast("str", found.json),
            encoding=encoding,
            offset=found.offset,
            length=found.length,
            size=found.size,
            sha256=found.sha256 or UNSET,
            session_id=asker.session_id,
            request_id=asker.request_id,
        )
    )


async def list_(asker: Asker, message: ListFiles) -> None:
    """List a directory, and watch the session's files or cease to."""
    files = asker.workspace.files
    watch: Watch | None = None
    try:
        if message.watch:
            watch = await _watch(asker, hidden=message.hidden)
        found = await files.list(message.path, recursive=message.recursive, hidden=message.hidden)
    except KernelBridgeError as exc:
        if watch is not None:
            watch.end()
        _failed(asker, "list_files", message.path, exc)
        return
    if message.watch is not None:
        files.watcher.replace(asker.client.id, watch)
    asker.answer(
        FileList(
            path=message.path,
            files=found.entries,
            truncated=found.truncated,
            session_id=asker.session_id,
            request_id=asker.request_id,
        )
    )
    if watch is not None:
        # The list is the state that the first change changes.
        watch.begin()


async def delete(asker: Asker, message: DeleteFile) -> None:
    """Delete a file or directory."""
    work = asker.workspace.files.delete(message.filename, recursive=message.recursive)
    await _done(asker, "delete_file", message.filename, work, "Deleted successfully")


async def rename(asker: Asker, message: RenameFile) -> None:
    """Rename a file or directory."""
    work = asker.workspace.files.rename(message.filename, message.new_filename, overwrite=message.overwrite)
    await _done(asker, "rename_file", message.filename, work, "Renamed successfully")


async def make_directory(asker: Asker, message: MakeDirectory) -> None:
    """Make a directory."""
    work = asker.workspace.files.mkdir(message.filename)
    await _done(asker, "make_directory", message.filename, work, "Directory made successfully")


async def _watch(asker: Asker, *, hidden: bool) -> Watch:
    def tell(changes: Mapping[str, Change], more: bool) -> bool:  # noqa: FBT001  as `Tell` says
        return asker.event(
            FileChanged(
                session_id=asker.session_id,
                request_id=asker.request_id,
                seq=asker.seq(),
                changes=[FileChange(path, change) for path, change in changes.items()],
                truncated=True if more else UNSET,
            )
        )

    def failed(error: KernelBridgeError) -> None:
        asker.answer(answers.error_message(error, asker.session_id, asker.request_id))

    watch = await asker.workspace.files.watch(hidden=hidden, tell=tell, failed=failed)
    watch.on_end = asker.client.on_close(watch.end)
    return watch


async def _done(asker: Asker, operation: Operation, filename: str, work: Awaitable[None], message: str) -> None:
    try:
        await work
    except KernelBridgeError as exc:
        _failed(asker, operation, filename, exc)
        return
    asker.answer(
        FileResult(
            success=True,
            message=message,
            operation=operation,
            filename=filename,
            session_id=asker.session_id,
            request_id=asker.request_id,
        )
    )


def _failed(asker: Asker, operation: Operation, filename: str, error: KernelBridgeError) -> None:
    asker.answer(
        FileResult(
            success=False,
            message=str(error),
            operation=operation,
            filename=filename,
            code=error.code,
            session_id=asker.session_id,
            request_id=asker.request_id,
        )
    )


HANDLERS: Mapping[type, Handler] = {
    SaveFile: save,
    ReadFile: read,
    ListFiles: list_,
    DeleteFile: delete,
    RenameFile: rename,
    MakeDirectory: make_directory,
}
