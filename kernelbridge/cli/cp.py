"""`kernelbridge cp`: files between this machine and a session."""

# ruff: noqa: ASYNC240 - nobody else waits for this event loop

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from kernelbridge.cli import screen
from kernelbridge.cli.as_client import Server, as_client, carry_out, connected
from kernelbridge.cli.completion import places
from kernelbridge.client.errors import RequestRefused
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge import AsyncSession
    from kernelbridge.client.files import FileInfo
    from kernelbridge.client.files import Progress as Moved


class Place(NamedTuple):
    """One end of a copy: a path of the workspace of `session`, or of this machine, if that is None."""

    session: str | None
    path: str

    @classmethod
    def read(cls, text: str) -> Place:
        """Read `SESSION:PATH`, or a local path, which may begin with `./` if it has a colon."""
        session, colon, path = text.partition(":")
        return cls(session, path) if colon and session and "/" not in session else cls(None, text)


_EXAMPLES = """\b
Examples:
    kernelbridge cp sales.csv work:
    kernelbridge cp work:report/plot.png .
    kernelbridge cp -r project work:src
"""


@click.command(epilog=_EXAMPLES, short_help="Copy files between this machine and a session.")
@click.argument("source", shell_complete=places)
@click.argument("target", shell_complete=places)
@click.option("-r", "--recursive", is_flag=True, help="Copy a directory with everything in it.")
@as_client
def cp(*, source: str, target: str, recursive: bool, server: Server) -> int:
    """Copy a file between this machine and a session: SOURCE and TARGET are SESSION:PATH or a local path.

    A TARGET that is a directory, or ends in /, gets the file under its own name. A file is there as a whole or not at
    all, and what was sent is compared with what was saved. Links are left out of directories.
    """
    origin, goal = Place.read(source), Place.read(target)
    if (origin.session is None) == (goal.session is None):
        raise click.UsageError("One of the two must be SESSION:PATH, and the other a local path")

    async def copy(_signals: object) -> int:
        name = origin.session or goal.session
        async with (
            connected(server, keeps_files=True) as there,
            there.session(name, server.image, keep=False) as opened,
        ):
            with _progress() as progress:
                copying = _Copying(opened.session, progress, recursive=recursive)
                if origin.session is None:
                    await copying.send(Path(origin.path), goal.path)
                else:
                    await copying.fetch(origin.path, Path(goal.path))
        return 0

    return carry_out(copy)


class _Copying:
    def __init__(self, session: AsyncSession, progress: Progress, *, recursive: bool) -> None:
        self._session = session
        self._files = session.files
        self._progress = progress
        self._recursive = recursive

    # -- to the session -------------------------------------------------------------

    async def send(self, source: Path, target: str) -> None:
        if not source.is_dir():
            await self._send_file(source, await self._inside(target, source.name))
            return
        self._check_recursive(source)
        root = await self._inside(target, source.resolve().name)
        await self._files.make_directory(root)
        for directory, names, files in os.walk(source):
            names.sort()
            below = PurePosixPath(root, Path(directory).relative_to(source).as_posix())
            for name in names:
                if not Path(directory, name).is_symlink():
                    await self._files.make_directory(str(below / name))
            for name in sorted(files):
                if Path(directory, name).is_symlink() or not Path(directory, name).is_file():
                    screen.say(f"left out: {Path(directory, name)} is no file")
                else:
                    await self._send_file(Path(directory, name), str(below / name))

    async def _inside(self, target: str, name: str) -> str:
        """Return where in the workspace something of this name goes."""
        if target in {"", "."} or target.endswith("/"):
            return str(PurePosixPath(target, name))
        return str(PurePosixPath(target, name)) if await self._kind(target) == "directory" else target

    async def _send_file(self, source: Path, target: str) -> None:
        try:
            digest = await asyncio.to_thread(_sha256, source)
            with self._bar(target) as moved:
                saved = await self._files.upload(source, target, progress=moved)
        except OSError as exc:
            raise KernelBridgeError(f"{source} cannot be read", exc.strerror or str(exc)) from exc
        if saved.sha256 != digest:
            raise KernelBridgeError(f"{target} is not what {source} was", "the file changed meanwhile; copy it again")

    # -- from the session -----------------------------------------------------------

    async def fetch(self, source: str, target: Path) -> None:
        name = PurePosixPath(source).name
        into = target.is_dir() or str(target).endswith(os.sep)
        if await self._kind(source) != "directory":
            await self._fetch_file(source, target / name if into else target)
            return
        self._check_recursive(source or ".")
        root = target / (name or self._session.session_id) if into else target
        async for each in self._below(source):
            below = PurePosixPath(each.path).relative_to(PurePosixPath(source))
            if below.is_absolute() or ".." in below.parts:
                raise KernelBridgeError(f"The server lists {each.path!r}", "no file of a workspace has such a name")
            if each.kind == "directory":
                await asyncio.to_thread(_make_directory, root, below)
            elif each.kind == "file":
                await asyncio.to_thread(_make_directory, root, below.parent)
                await self._fetch_file(each.path, root / below)
            else:
                screen.say(f"left out: {each.path} is no file")

    async def _kind(self, path: str) -> str | None:
        """Return what a path of the workspace is; None if there is nothing."""
        plain = PurePosixPath(path)
        if plain == PurePosixPath():
            return "directory"
        try:
            parent = "" if plain.parent == PurePosixPath() else str(plain.parent)
            found = await self._files.list(parent, hidden=True)
        except RequestRefused as exc:
            if exc.code != "not_found":
                raise
            return None
        kind = next((entry.kind for entry in found if PurePosixPath(entry.path) == plain), None)
        return await self._kind_by_itself(path) if kind is None and found.truncated else kind

    async def _kind_by_itself(self, path: str) -> str | None:
        """Return what a path is whose directory has more entries than the server lists; None if it is no directory."""
        try:
            await self._files.list(path)
        except RequestRefused:
            return None
        return "directory"

    async def _fetch_file(self, source: str, target: Path) -> None:
        try:
            with self._bar(source) as moved:
                await self._files.download(source, target, progress=moved)
        except OSError as exc:
            raise KernelBridgeError(f"{target} cannot be written", exc.strerror or str(exc)) from exc

    async def _below(self, path: str) -> AsyncIterator[FileInfo]:
        """Yield everything below a directory: in one list, or in one for each directory if that is not all."""
        path = "" if path == "." else path
        found = await self._files.list(path, recursive=True, hidden=True)
        if not found.truncated:
            for entry in found:
                yield entry
            return
        direct = await self._files.list(path, hidden=True)
        if direct.truncated:
            raise KernelBridgeError(
                f"{path or 'The workspace'} has more than {len(direct):,} entries",
                "the server lists no more of one directory. Pack them into one file: tar -cf FILE DIRECTORY",
            )
        for entry in direct:
            yield entry
            if entry.kind == "directory":
                async for below in self._below(entry.path):
                    yield below

    def _check_recursive(self, source: object) -> None:
        if not self._recursive:
            raise KernelBridgeError(f"{source} is a directory", "use -r to copy it with everything in it")

    @contextmanager
    def _bar(self, name: str) -> Iterator[Moved]:
        """Show a bar while the context is open."""
        bar = self._progress.add_task(screen.plain(name), total=None)
        try:
            yield lambda done, size: self._progress.update(bar, completed=done, total=size)
        finally:
            self._progress.remove_task(bar)


def _progress() -> Progress:
    """Return bars on standard error, which only a terminal shows."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = screen.errors()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_directory(root: Path, below: PurePosixPath) -> None:
    """Make `root` and directories below it. What is there already must be a directory: no link leads elsewhere."""
    root.mkdir(parents=True, exist_ok=True)
    path = root
    for part in below.parts:
        path /= part
        if path.is_symlink():
            raise KernelBridgeError(
                f"{path} is a link", "files would be written to where it leads; remove it, or copy elsewhere"
            )
        path.mkdir(exist_ok=True)
