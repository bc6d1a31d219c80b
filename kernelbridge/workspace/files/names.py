"""The file names that clients use, and the reasons of file errors."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from kernelbridge.errors import (
    BadRequest,
    DirectoryNotEmpty,
    DiskFull,
    FileError,
    FileExists,
    IsDirectory,
    NotADirectory,
)
from kernelbridge.workspace.files.safe_open import PathRefusedError

_NAME_MAX = 255
PATH_MAX = 4096
"""Bytes of a path."""
HIDDEN_AREA = ".kernelbridge"
"""The directory at the top of the workspace for the server's own files of the session."""

IS_DIRECTORY = "a directory of that name exists; remove it or choose another name"

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part")
_REASONS: Mapping[int, str] = MappingProxyType(
    {
        errno.ENOSPC: "the disk that holds the workspace is full; delete files and save again",
        errno.EDQUOT: "the disk quota of the workspace is used up; delete files and save again",
        errno.EROFS: "the workspace is on a read-only file system",
        errno.EACCES: "permission denied: make its directory writable with chmod and save again",
        errno.EPERM: "the operation is not permitted here",
        errno.ENOENT: "its directory was removed or renamed at the same moment; send the request again",
        errno.ENAMETOOLONG: "the name is too long for the file system",
        errno.EFBIG: "the file is larger than the file system allows",
        errno.EIO: "the disk reported an input/output error",
        errno.EAGAIN: "a program in the workspace holds a lease on it; end that program, or try again",
        errno.EXDEV: "it is older than the session's disk quota, or something else is mounted there; copy it instead",
        errno.EBUSY: "something is mounted there, or a program creates files as fast as they are deleted",
        errno.EISDIR: IS_DIRECTORY,
        errno.ENOTDIR: "a directory cannot replace a file",
        errno.ENOTEMPTY: "the directory is not empty",
        errno.EEXIST: "a file or directory has that name; choose another name",
    }
)
_KINDS: Mapping[int, type[FileError]] = MappingProxyType(
    {
        errno.EISDIR: IsDirectory,
        errno.ENOTEMPTY: DirectoryNotEmpty,
        errno.EEXIST: FileExists,
        errno.ENOTDIR: NotADirectory,
        errno.ENOSPC: DiskFull,
        errno.EDQUOT: DiskFull,
    }
)


def relative_parts(path: str, field: str = "filename") -> list[str]:
    r"""Split a file's path inside the workspace into its components; raises `BadRequest` for an unusable path.

    Slashes separate components; all other characters but NUL are ordinary, backslashes included. `.` and empty
    components are ignored, as everywhere in POSIX.
    """
    if not path:
        raise _bad_name("it is empty", field)
    parts = directory_parts(path, field)
    if path.rpartition("/")[2] in {"", "."}:
        raise _bad_name("it names a directory; give the name of a file, without a '/' at its end", field)
    return parts


def visible_name(name: str) -> str:
    """Return a name as a message contains it: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode(errors="replace")


def is_hidden(path: str) -> bool:
    """Whether a name in a path begins with a dot."""
    return path.startswith(".") or "/." in path


def temporary_name() -> str:
    """Return an unguessable hidden name for an unfinished file."""
    return f".{secrets.token_hex(16)}.part"


def is_temporary(name: str) -> bool:
    """Whether a name is one that the server gives to unfinished files."""
    return _TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def explained(message: str) -> Iterator[None]:
    """Turn errors of the file system into a `FileError` whose message is `message`."""
    try:
        yield
    except PathRefusedError as exc:
        raise exc.kind(message, str(exc)) from exc
    except OSError as exc:
        number = exc.errno or 0
        reason = _REASONS.get(number) or os.strerror(number)
        raise _KINDS.get(number, FileError)(message, reason) from exc


def directory_parts(path: str, field: str = "filename") -> list[str]:
    """Split a directory's path like `relative_parts`; `a/` is `a`, and the empty path is the workspace itself."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError as exc:
        raise _bad_name("it contains half of a surrogate pair, which has no UTF-8 form", field) from exc
    if "\0" in path:
        raise _bad_name("it contains a NUL character", field)
    if len(encoded) > PATH_MAX:
        raise _bad_name(f"it has {len(encoded)} bytes and the limit is {PATH_MAX}", field)
    if path.startswith("/"):
        raise _bad_name("it is absolute; give a path relative to the workspace, without the leading '/'", field)
    raw = path.split("/")
    if ".." in raw:
        raise _bad_name("it contains '..'; give a path that stays inside the workspace", field)
    parts = [part for part in raw if part not in {"", "."}]
    if any(len(part.encode()) > _NAME_MAX for part in parts):
        raise _bad_name(f"a name in it is longer than {_NAME_MAX} bytes", field)
    return parts


def _bad_name(reason: str, field: str) -> BadRequest:
    return BadRequest("The file name cannot be used", reason, field=field, code="invalid_field")
