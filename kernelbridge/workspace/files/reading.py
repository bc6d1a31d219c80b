"""Reading a workspace's files, whole or in part: regular files only, and none outside the workspace."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Raw

from kernelbridge.errors import FileTooLarge, NotText
from kernelbridge.protocol.files import Encoding
from kernelbridge.workspace.files.names import explained, relative_parts
from kernelbridge.workspace.files.safe_open import PathRefusedError, directory, regular_file
from kernelbridge.workspace.files.versions import version

_FRAME_ROOM = 32 << 10
"""Bytes of a frame that are reserved for the answer's other fields, the path among them."""
_CHARACTER = 4
"""Most bytes of one character."""


@dataclass(frozen=True, slots=True)
class Content:
    """The result of a read."""

    content: str
    """The text, or its base64."""
    offset: int
    length: int
    """Bytes of the file in `content`."""
    size: int
    """Bytes of the whole file, after the read."""
    sha256: str | None
    """Of the file; None if `content` is only a part of it."""
    json: Raw = field(repr=False, compare=False)
    """`content` as JSON: encoding that of a large file takes too long for the event loop."""


class OpenFile:
    """A workspace file that is open for reading, whatever its name leads to later. Blocking."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        found = os.fstat(fd)
        self.size = found.st_size
        self.modified = found.st_mtime
        self.version = version(found)
        """See `versions.version`."""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the file."""
        parts: list[bytes] = []
        while length and (data := os.pread(self._fd, length, offset)):
            parts.append(data)
            offset += len(data)
            length -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def refreshed(self) -> OpenFile:
        """Return the same open file with its present size, time and version."""
        return OpenFile(self._fd)


@contextlib.contextmanager
def open_file(root: Path, filename: str) -> Iterator[OpenFile]:
    """Open a file below `root`. Raises `BadRequest` and `FileError`, also for errors in the body of `with`."""
    *parents, name = relative_parts(filename)
    with (
        explained(f"The file {filename!r} was not read"),
        directory(root, parents) as fd,
        regular_file(fd, name) as file,
    ):
        yield OpenFile(file)


def read(root: Path, filename: str, *, encoding: Encoding, offset: int, length: int | None, max_frame: int) -> Content:
    """Read `length` bytes from `offset` (None: to the end), if they fit into a frame of `max_frame` bytes.

    A range of text that begins or ends inside a character is extended to the whole character, by up to three bytes
    on either side. Raises `BadRequest`, and `FileError` or a subclass of it.
    """
    with open_file(root, filename) as file:
        end = file.size if length is None else min(offset + length, file.size)
        room = max(max_frame - _FRAME_ROOM, max_frame // 2)
        fits = room if encoding == "utf-8" else room // 4 * 3
        if end - offset > fits:
            raise _too_large(end - offset, fits)
        if encoding == "base64":
            data = file.read(offset, max(0, end - offset))
            content = base64.b64encode(data).decode()
        else:
            offset, data = _whole_characters(file, offset, end)
            content = _text(data, offset)
        json = msgspec.json.encode(content)
        if len(json) > room + len('""'):
            raise _too_large(len(json), fits)
        after = file.refreshed()
        whole = offset == 0 and len(data) == after.size and after.version == file.version
        sha256 = hashlib.sha256(data).hexdigest() if whole else None
    return Content(content, offset, len(data), after.size, sha256, Raw(json))


def _whole_characters(file: OpenFile, offset: int, end: int) -> tuple[int, bytes]:
    if offset >= end:
        return offset, b""
    before = min(offset, _CHARACTER - 1)
    data = file.read(offset - before, end - offset + before + _CHARACTER - 1)
    first, last = before, before + end - offset
    while first > 0 and _continues(data, first):
        first -= 1
    while last < len(data) and _continues(data, last):
        last += 1
    return offset - before + first, data[first:last]


def _continues(data: bytes, at: int) -> bool:
    return at < len(data) and data[at] & 0xC0 == 0x80  # noqa: PLR2004  how UTF-8 marks the later bytes of a character


def _text(data: bytes, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise PathRefusedError(
            f"it is not UTF-8 at byte {offset + exc.start}; read it with the encoding base64", NotText
        ) from exc


def _too_large(size: int, fits: int) -> PathRefusedError:
    return PathRefusedError(
        f"it has {size} bytes, and {fits} fit into a frame; read it in parts with offset and length, or whole by HTTP",
        FileTooLarge,
    )
