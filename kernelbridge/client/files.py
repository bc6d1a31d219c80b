"""The files of a session: lists and changes over the WebSocket, content of any size by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import aiohttp

from kernelbridge.client.calls import awaited
from kernelbridge.client.connection import Target, refused_login
from kernelbridge.client.core import Frame, Kind
from kernelbridge.client.errors import ClientError, ConnectionLost, OutcomeUnknown, RequestRefused

CHUNK = 1 << 20
STANDSTILL = 90.0
"""Seconds without a byte after which a transfer has failed."""
ATTEMPTS = 5
"""How often a download is continued without a single new byte."""

Progress = Callable[[int, int], object]
"""Called with the bytes that were moved so far, and the bytes of the whole file; may be a coroutine function."""
Content = bytes | str | IO[bytes]


@dataclass(frozen=True)
class FileInfo:
    """One entry of a list."""

    path: str
    """Relative to the workspace."""
    kind: str
    """`file`, `directory`, `symlink` or `other`."""
    size: int | None
    """Bytes, of a file."""
    modified: str
    """UTC, RFC 3339."""


@dataclass(frozen=True)
class Saved:
    """A file that was saved."""

    path: str
    size: int
    sha256: str


class Listing(list[FileInfo]):
    """The entries of a directory, sorted by path."""

    truncated: bool = False
    """Whether there are more than the server lists (10,000): it has those that are nearest to the directory."""


class Requests(Protocol):
    """What files need of their session."""

    session_id: str
    target: Target

    async def http(self) -> aiohttp.ClientSession:
        """Return the session for HTTP."""
        ...

    async def request(self, frame: Frame, kind: Kind) -> Frame:
        """Send a request, and return its answer."""
        ...


class AsyncFiles:
    """The files of one session. Paths are relative to the workspace, with `/`.

    All methods raise `RequestRefused` with a `code` such as `not_found`, and `ConnectionLost`.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def __getitem__(self, path: str) -> AsyncFile:
        return AsyncFile(self, path)

    async def write(
        self,
        path: str,
        content: Content,
        *,
        if_match: str | None = None,
        create: bool = False,
        progress: Progress | None = None,
    ) -> Saved:
        """Save a file as a whole; the old one stays intact if that fails.

        Args:
            path: Where to save it. Parent directories are made.
            content: Bytes, text (as UTF-8), or a binary file that is open at its beginning, of any size.
            if_match: Replace only the version with this sha256, else fail with the code `conflict`.
            create: Fail with the code `exists` instead of replacing a file.
            progress: Called with the bytes that were sent, and all bytes.

        Returns: The file's size and sha256.

        Raises: `OutcomeUnknown` if the connection breaks before the answer. Cancelling leaves the old file.
        """
        if isinstance(content, str | bytes):
            content = io.BytesIO(content.encode() if isinstance(content, str) else content)
        size = await asyncio.to_thread(content.seek, 0, os.SEEK_END)
        await asyncio.to_thread(content.seek, 0)
        headers = {"Content-Length": str(size)}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        if create:
            headers["If-None-Match"] = "*"
        try:
            async with self._http("PUT", path, headers, data=_chunks(content, size, progress)) as response:
                saved = await response.json(content_type=None)  # its error about types has the token in its repr
        except aiohttp.ClientConnectorError as exc:
            raise ConnectionLost(f"The file '{path}' was not saved", f"{exc}; write it again") from exc
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as exc:
            raise OutcomeUnknown(
                f"The outcome of saving '{path}' is unknown",
                f"the connection broke ({str(exc) or type(exc).__name__}). The file is the old one or the new one, as a"
                " whole: write it again if nobody else writes it",
                request={"method": "PUT", "filename": path},
            ) from exc
        return Saved(saved["filename"], saved["size"], saved["sha256"])

    async def read(self, path: str, *, progress: Progress | None = None) -> bytes:
        """Return the content of a file."""
        content = io.BytesIO()
        await self._download(path, content, progress)
        return content.getvalue()

    async def upload(self, local: str | os.PathLike[str], path: str, *, progress: Progress | None = None) -> Saved:
        """Save a local file of any size under `path`."""
        with await asyncio.to_thread(Path(local).open, "rb") as content:
            return await self.write(path, content, progress=progress)

    async def download(self, path: str, local: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Save a file of any size under the local name `local`, as a whole or not at all."""
        goal = Path(local)
        descriptor, part = await asyncio.to_thread(tempfile.mkstemp, dir=goal.parent, prefix=f".{goal.name}.")
        try:
            with os.fdopen(descriptor, "wb") as content:
                await self._download(path, content, progress)
            await asyncio.to_thread(_put_into_place, part, goal)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # it is in its place: that was cancelled too late
                os.unlink(part)  # noqa: PTH108 - as quick as a rename
            raise

    async def list(self, path: str = "", *, recursive: bool = False, hidden: bool = False) -> Listing:
        """List a directory, with `recursive` also what is below.

        The server lists at most 10,000 entries: look at `truncated` of the list.
        """
        frame = {"type": "list_files", "path": path, "recursive": recursive, "hidden": hidden}
        answer = await self._requests.request(frame, Kind.QUESTION)
        found = Listing(
            FileInfo(each["path"], each["kind"], each.get("size"), each["modified"]) for each in answer["files"]
        )
        found.truncated = bool(answer.get("truncated"))
        return found

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file, a link or an empty directory; with `recursive` a directory with everything in it."""
        await self._change({"type": "delete_file", "filename": path, "recursive": recursive})

    async def rename(self, path: str, new: str, *, overwrite: bool = False) -> None:
        """Rename a file or directory. Parents of the new name are made."""
        await self._change({"type": "rename_file", "filename": path, "newFilename": new, "overwrite": overwrite})

    async def make_directory(self, path: str) -> None:
        """Make a directory and its parents."""
        await self._change({"type": "make_directory", "filename": path})

    async def _change(self, frame: Frame) -> None:
        await self._requests.request(frame, Kind.CHANGE)

    async def _download(self, path: str, goal: IO[bytes], progress: Progress | None) -> None:
        """Write a file to `goal`, and continue where it stopped when the connection breaks."""
        done, version, failures = 0, "", 0
        while True:
            headers = {"Accept-Encoding": "identity"}  # a proxy that compresses it hides its length
            if done:
                headers |= {"Range": f"bytes={done}-", "If-Range": version}
            before = done
            try:
                async with self._http("GET", path, headers) as response:
                    if done and response.status != 206:  # noqa: PLR2004 - it is another version now
                        done = 0
                        await asyncio.to_thread(goal.seek, 0)
                        await asyncio.to_thread(goal.truncate)
                    version = response.headers.get("ETag", "")
                    if response.content_length is None or "Content-Encoding" in response.headers:
                        raise ConnectionLost(
                            f"The file '{path}' cannot be read", "a proxy changed the answer: its length is not known"
                        )
                    size = done + response.content_length
                    async for chunk in response.content.iter_chunked(CHUNK):
                        await asyncio.to_thread(goal.write, chunk)
                        done += len(chunk)
                        if progress is not None:
                            await awaited(progress(done, size))
                if done == size:
                    return
                error: Exception = ConnectionLost("The download is incomplete", f"{done} of {size} bytes came")
            except (aiohttp.ClientError, TimeoutError) as exc:
                error = exc
            failures = 0 if done > before else failures + 1
            if failures >= ATTEMPTS:
                raise ConnectionLost(f"The file '{path}' cannot be read", f"{error}; ask again") from error
            await asyncio.sleep(0.1 * 2**failures)

    @contextlib.asynccontextmanager
    async def _http(self, method: str, path: str, headers: dict[str, str], **more: Any) -> AsyncIterator[Any]:
        target, http = self._requests.target, await self._requests.http()
        async with http.request(
            method,
            target.file(self._requests.session_id, path),
            headers={**await target.login(), **headers},
            ssl=target.ssl,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=STANDSTILL),
            allow_redirects=False,  # the token is for this server
            **more,
        ) as response:
            if response.status >= 300:  # noqa: PLR2004
                raise await _refusal(response, method)
            yield response


class AsyncFile:
    """One file of a session."""

    def __init__(self, files: AsyncFiles, path: str) -> None:
        self._files = files
        self.path = path

    async def read_bytes(self) -> bytes:
        """Return its content."""
        return await self._files.read(self.path)

    async def read_text(self) -> str:
        """Return its content, which must be UTF-8."""
        return (await self.read_bytes()).decode()

    async def write_bytes(self, content: bytes) -> Saved:
        """Replace it."""
        return await self._files.write(self.path, content)

    async def write_text(self, content: str) -> Saved:
        """Replace it, in UTF-8."""
        return await self._files.write(self.path, content)

    async def delete(self) -> None:
        """Delete it."""
        await self._files.delete(self.path)


def _put_into_place(part: str, goal: Path) -> None:
    """Rename a temporary file, with the mode that a new file has."""
    mask = os.umask(0)
    os.umask(mask)
    Path(part).chmod(0o666 & ~mask)
    Path(part).replace(goal)


async def _chunks(content: IO[bytes], size: int, progress: Progress | None) -> AsyncIterator[bytes]:
    done = 0
    while chunk := await asyncio.to_thread(content.read, CHUNK):
        yield chunk
        done += len(chunk)
        if progress is not None:
            await awaited(progress(done, size))


async def _refusal(response: aiohttp.ClientResponse, method: str) -> ClientError:
    try:
        body = await response.json()
        code = body["code"]
    except (ValueError, KeyError, TypeError, aiohttp.ClientError):
        if response.status in {401, 403, 429}:
            return refused_login(response.status)
        reason = f"HTTP status {response.status}"
        if method == "PUT" and response.status >= 500:  # noqa: PLR2004 - a proxy that lost the server after the request
            return OutcomeUnknown(
                "The outcome of saving the file is unknown",
                f"{reason}. It is the old one or the new one, as a whole: write it again if nobody else writes it",
                request={"method": method},
            )
        return ConnectionLost("The server did not answer", reason)
    return RequestRefused(
        body["message"], body.get("error", ""), code=code, retryable=body.get("retryable", False), request=method
    )
