"""Requests about a workspace's files. Each is complete before the connection's next message is handled."""

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
    SaveResult,
)
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.files.inotify_tree import Change
from kernelbridge.workspace.files.watcher import Watch

Operation = Literal["read_file", "list_files", "delete_file", "rename_file", "make_directory"]


async def save(context: RequestContext, message: SaveFile) -> None:
    """Write a file."""
    try:
        saved = await context.workspace.files.save(
            message.filename,
            message.content,
            encoding=message.encoding or "utf-8",
            mode=message.mode or "overwrite",
            if_match=message.if_match,
        )
    except KernelBridgeError as exc:
        _refused(context, "save_file", exc)
        result = SaveResult(
            success=False,
            message=str(exc),
            filename=message.filename,
            **context.ids,
            code=exc.code,
        )
    else:
        result = SaveResult(
            success=True,
            message="File saved successfully",
            filename=message.filename,
            **context.ids,
            size=saved.size,
            sha256=saved.sha256,
        )
    context.answer(result)


async def read(context: RequestContext, message: ReadFile) -> None:
    """Read a file."""
    encoding = message.encoding or "utf-8"
    try:
        found = await context.workspace.files.read(
            message.filename, encoding=encoding, offset=message.offset, length=message.length
        )
    except KernelBridgeError as exc:
        _failed(context, "read_file", message.filename, exc)
        return
    context.answer(
        FileContent(
            filename=message.filename,
            content=cast("str", found.json),
            encoding=encoding,
            offset=found.offset,
            length=found.length,
            size=found.size,
            sha256=found.sha256 or UNSET,
            **context.ids,
        )
    )


async def list_(context: RequestContext, message: ListFiles) -> None:
    """List a directory, and start or stop watching the session's files."""
    files = context.workspace.files
    watch: Watch | None = None
    try:
        if message.watch:
            watch = await _watch(context, hidden=message.hidden)
        found = await files.list(message.path, recursive=message.recursive, hidden=message.hidden)
    except KernelBridgeError as exc:
        if watch is not None:
            watch.end()
        _failed(context, "list_files", message.path, exc)
        return
    if message.watch is not None:
        files.watcher.replace(context.client.id, watch)
    context.answer(
        FileList(
            path=message.path,
            files=found.entries,
            truncated=found.truncated,
            **context.ids,
        )
    )
    if watch is not None:
        # Only now: the first change is one of the state that the list shows.
        watch.begin()


async def delete(context: RequestContext, message: DeleteFile) -> None:
    """Delete a file or directory."""
    work = context.workspace.files.delete(message.filename, recursive=message.recursive)
    await _carry_out(context, "delete_file", message.filename, work, "Deleted successfully")


async def rename(context: RequestContext, message: RenameFile) -> None:
    """Rename a file or directory."""
    work = context.workspace.files.rename(message.filename, message.new_filename, overwrite=message.overwrite)
    await _carry_out(context, "rename_file", message.filename, work, "Renamed successfully")


async def make_directory(context: RequestContext, message: MakeDirectory) -> None:
    """Make a directory."""
    work = context.workspace.files.mkdir(message.filename)
    await _carry_out(context, "make_directory", message.filename, work, "Directory made successfully")


async def _watch(context: RequestContext, *, hidden: bool) -> Watch:
    def report(changes: Mapping[str, Change], more: bool) -> bool:  # noqa: FBT001  as `SendChanges`
        return context.event(
            FileChanged(
                **context.ids,
                seq=context.seq(),
                changes=[FileChange(path, change) for path, change in changes.items()],
                truncated=True if more else UNSET,
            )
        )

    watch = await context.workspace.files.watch(hidden=hidden, send=report, failed=context.fail)
    watch.on_end = context.client.on_close(watch.end)
    return watch


async def _carry_out(
    context: RequestContext, operation: Operation, filename: str, work: Awaitable[None], message: str
) -> None:
    """Await the work of a request that has no answer of its own, and answer with a `file_result`."""
    try:
        await work
    except KernelBridgeError as exc:
        _failed(context, operation, filename, exc)
        return
    context.answer(
        FileResult(
            success=True,
            message=message,
            operation=operation,
            filename=filename,
            **context.ids,
        )
    )


def _refused(context: RequestContext, operation: str, error: KernelBridgeError) -> None:
    request_id = None if context.request_id is UNSET else context.request_id
    context.client.refused(error, operation, context.session_id, request_id)


def _failed(context: RequestContext, operation: Operation, filename: str, error: KernelBridgeError) -> None:
    _refused(context, operation, error)
    context.answer(
        FileResult(
            success=False,
            message=str(error),
            operation=operation,
            filename=filename,
            code=error.code,
            **context.ids,
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
