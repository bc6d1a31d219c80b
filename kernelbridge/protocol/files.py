"""Messages about a workspace's files."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from kernelbridge.protocol.base import Count, Event, Message, Reply, Request, RequestId, SessionId, Warnings

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="64 lower-case hexadecimal digits")]
Encoding = Literal["utf-8", "base64"]

# -- client to server ---------------------------------------------------------


class SaveFile(Request, frozen=True, tag="save_file"):
    """Write a workspace file. Parent directories are created."""

    session_id: SessionId
    filename: str
    content: str
    encoding: Encoding | None = None
    """`utf-8` when absent; `base64` for bytes."""
    request_id: RequestId | None = None
    mode: Literal["create", "overwrite", "append"] | None = None
    """`overwrite` when absent. `create` does not replace a file; `append` adds to its end."""
    if_match: Sha256 | None = None
    """Save only if the file's current content has this sha256."""


class ReadFile(Request, frozen=True, tag="read_file"):
    """Read a workspace file, or a part of it."""

    session_id: SessionId
    filename: str
    encoding: Encoding | None = None
    """`utf-8` when absent, which fails for other bytes; `base64` for bytes."""
    offset: Count = 0
    """The first byte to read."""
    length: Count | None = None
    """How many bytes to read at most; to the end when absent."""
    request_id: RequestId | None = None


class ListFiles(Request, frozen=True, tag="list_files"):
    """List a directory."""

    session_id: SessionId
    path: str = ""
    """The workspace itself when absent."""
    recursive: bool = False
    hidden: bool = False
    """Whether names that begin with a dot are listed."""
    watch: bool | None = None
    """True: from now on, also send `file_changed` of this session to this connection. False: stop that."""
    request_id: RequestId | None = None


class DeleteFile(Request, frozen=True, tag="delete_file"):
    """Delete a file, or an empty directory; with `recursive` a directory and all in it."""

    session_id: SessionId
    filename: str
    recursive: bool = False
    request_id: RequestId | None = None


class RenameFile(Request, frozen=True, tag="rename_file"):
    """Rename a file or directory. The new name's parent directories are created."""

    session_id: SessionId
    filename: str
    new_filename: str
    overwrite: bool = False
    """Whether a file with the new name may be replaced."""
    request_id: RequestId | None = None


class MakeDirectory(Request, frozen=True, tag="make_directory"):
    """Create a directory and its parents. One that exists is fine."""

    session_id: SessionId
    filename: str
    request_id: RequestId | None = None


# -- server to client ---------------------------------------------------------


class SaveResult(Message, frozen=True, tag="save_result"):
    """The answer to `save_file`; on failure the old file is intact."""

    success: bool
    message: str
    filename: str
    session_id: str
    request_id: str | UnsetType = UNSET
    size: int | UnsetType = UNSET
    """Bytes of the whole file."""
    sha256: str | UnsetType = UNSET
    """Of the whole file."""
    code: str | UnsetType = UNSET
    """On failure, the same codes as in `error`."""
    seq: int | UnsetType = UNSET
    """Its place among the session's events, on a connection that follows the session or streams."""
    warnings: Warnings | UnsetType = UNSET


class FileContent(Reply, frozen=True, tag="file_content", kw_only=True):
    """The answer to `read_file`."""

    filename: str
    content: str
    encoding: Encoding
    offset: int
    length: int
    """Bytes in `content`."""
    size: int
    """Bytes of the whole file."""
    sha256: str | UnsetType = UNSET
    """Of the whole file, when `content` is all of it."""


class FileEntry(Struct, frozen=True, rename="camel", kw_only=True):
    """One entry of a `file_list`."""

    path: str
    """Relative to the workspace."""
    kind: Literal["file", "directory", "symlink", "other"]
    size: int | UnsetType = UNSET
    """Bytes, of a file."""
    modified: str
    """UTC, RFC 3339."""


class FileList(Reply, frozen=True, tag="file_list", kw_only=True):
    """The answer to `list_files`, sorted by path."""

    path: str
    files: list[FileEntry]
    truncated: bool
    """Whether there are more entries than the server lists at once."""


class FileResult(Reply, frozen=True, tag="file_result", kw_only=True):
    """The answer to a file request without an answer of its own, and to one that failed."""

    success: bool
    message: str
    operation: Literal["read_file", "list_files", "delete_file", "rename_file", "make_directory"]
    filename: str
    code: str | UnsetType = UNSET
    """On failure, the same codes as in `error`."""
    seq: int | UnsetType = UNSET
    """Its place among the session's events, on a connection that follows the session or streams."""


class FileChange(Struct, frozen=True, rename="camel"):
    """One change of a `file_changed`."""

    path: str
    """Relative to the workspace."""
    change: Literal["added", "modified", "deleted"]


class FileChanged(Event, frozen=True, tag="file_changed", kw_only=True):
    """Files of the session changed, by any program or request."""

    changes: list[FileChange]
    truncated: bool | UnsetType = UNSET
    """True if not all changes are listed: list the files again."""
