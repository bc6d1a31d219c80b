"""Changing a workspace's files: each change is made completely or not at all, and never outside the workspace."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.errors import BadRequest, FileConflict, FileError, FileTooLarge, NoSuchFile
from kernelbridge.trees import emptying
from kernelbridge.workspace.files.names import directory_parts, explained, relative_parts, temporary_name
from kernelbridge.workspace.files.safe_open import (
    NO_SUCH_FILE,
    Owner,
    PathRefusedError,
    directory,
    mode_of,
    open_directory,
    regular_file,
    rename_unless_exists,
)
from kernelbridge.workspace.files.versions import (
    CHUNK,
    Commits,
    Condition,
    NewVersion,
    Saved,
    checked,
    new_version,
    refuse_directory,
    version,
)

SaveMode = Literal["create", "overwrite", "append"]

_APPENDS = 3
"""Tries to append to a file that a program changes at the same time."""
_DELETIONS = 8
"""Tries to delete a tree that a program changes at the same time."""
_CHANGED = frozenset({errno.ENOTEMPTY, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""Errors of a name that a program has just replaced."""
_NAMES = 10_000_000
"""Names of a tree that one request deletes."""
_ANY = Condition()


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Sizes in bytes."""

    frame: int
    """Limit of one message, and so of one save."""
    file: int
    """Limit of a file that is uploaded or appended to."""


class WorkspaceFiles:
    """Changes the files below `root` on behalf of the sandbox's user. Blocking; thread-safe.

    `commits` is the lock that all code shares that changes this workspace.

    Every method raises `BadRequest` for a name that is not a relative path, and `FileError` or a subclass of it if the
    change cannot be made; the files are then unchanged.
    """

    def __init__(self, root: Path, *, uid: int, gid: int, limits: FileLimits, commits: Commits) -> None:
        self.root = root
        self.owner = Owner(uid, gid)
        self.limits = limits
        self.commits = commits

    def saving(self, filename: str, data: bytes, mode: SaveMode, if_match: str | None) -> BlockingWork[Saved]:
        """Write a file durably; missing parents are made, and an old version's permission bits are kept.

        The mode `create` replaces no file, `append` adds to the end. `if_match` is the SHA-256 that the present file
        must have.
        """
        parts = relative_parts(filename)
        message = f"The file {filename!r} was not saved"
        if len(data) > self.limits.frame:
            raise FileTooLarge(message, f"it has {len(data)} bytes and the limit is {self.limits.frame}")
        condition = Condition(absent=mode == "create", sha256=frozenset({if_match} if if_match else ()))
        with explained(message):
            if mode == "append":
                return (yield from self._append(parts, data, condition))
            with self.home(parts, condition) as fd:
                condition = yield from checked(fd, parts[-1], condition)
                with self.new_version(fd, parts[-1]) as new:
                    new.write(data)
                    return new.commit(condition)

    def write_private(self, path: str, data: bytes, mode: int) -> None:
        """Write a file of the server's own, with these permission bits and of any size."""
        *parents, name = relative_parts(path)
        message = f"The file {path!r} was not written"
        with explained(message), self._directory(parents) as fd, self.new_version(fd, name) as new:
            new.write(data)
            new.commit(_ANY, mode)

    def mkdir(self, path: str) -> None:
        """Make a directory and its parents; a directory that exists stays unchanged."""
        with explained(f"The directory {path!r} was not made"), self._directory(directory_parts(path)):
            pass

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link at `path`, in place of any file there; its target is not checked."""
        *parents, name = relative_parts(path)
        part = temporary_name()
        with explained(f"The link {path!r} was not made"), self._directory(parents) as fd:
            refuse_directory(mode_of(fd, name))
            try:
                os.symlink(target, part, dir_fd=fd)
                if os.geteuid() == 0:
                    os.chown(part, self.owner.uid, self.owner.gid, dir_fd=fd, follow_symlinks=False)
                with self.commits:
                    os.rename(part, name, src_dir_fd=fd, dst_dir_fd=fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=fd)
                raise
            os.fsync(fd)

    def rename(self, filename: str, new_filename: str, *, overwrite: bool) -> None:
        """Rename a file or directory; missing parents of the new name are made. A directory is never replaced."""
        source, target = _named(filename, "filename"), _named(new_filename, "newFilename")
        with explained(f"{filename!r} was not renamed"):
            if len(target) > len(source) and target[: len(source)] == source:
                raise PathRefusedError("a directory cannot be moved into itself", FileError)
            with directory(self.root, source[:-1]) as old:
                if mode_of(old, source[-1]) is None:
                    raise PathRefusedError(NO_SUCH_FILE, NoSuchFile)
                with self._directory(target[:-1]) as new:
                    if overwrite:
                        refuse_directory(mode_of(new, target[-1]))
                    with self.commits:
                        rename = os.rename if overwrite else rename_unless_exists
                        rename(source[-1], target[-1], src_dir_fd=old, dst_dir_fd=new)
                    os.fsync(new)
                os.fsync(old)

    def deleting(self, filename: str, *, recursive: bool) -> BlockingWork[None]:
        """Delete a file, link or empty directory; with `recursive`, a directory with its content."""
        *parents, name = _named(filename, "filename")
        with explained(f"{filename!r} was not deleted"), directory(self.root, parents) as fd:
            mode = mode_of(fd, name)
            if mode is None:
                raise PathRefusedError(NO_SUCH_FILE, NoSuchFile)
            if not stat.S_ISDIR(mode):
                with self.commits:
                    os.unlink(name, dir_fd=fd)
            elif recursive:
                yield from self._delete_tree(fd, name)
            else:
                with self.commits:
                    os.rmdir(name, dir_fd=fd)
            os.fsync(fd)

    def _delete_tree(self, fd: int, name: str) -> BlockingWork[None]:
        """Rename the tree first, so that nobody sees half of it."""
        part = temporary_name()
        with self.commits:
            os.rename(name, part, src_dir_fd=fd, dst_dir_fd=fd)
        try:
            for left in reversed(range(_DELETIONS)):
                try:
                    yield from self._remove_tree(fd, part, name)
                except OSError as exc:
                    # A program that had it open before can still add to it.
                    if exc.errno not in _CHANGED or not left:
                        raise
                else:
                    return
        except BaseException:
            # Show what could not be deleted; the error under way matters more than one of this rename.
            with contextlib.suppress(OSError):
                rename_unless_exists(part, name, src_dir_fd=fd, dst_dir_fd=fd)
            raise

    def _remove_tree(self, fd: int, part: str, name: str) -> BlockingWork[None]:
        moved = mode_of(fd, part)
        if moved is not None and not stat.S_ISDIR(moved):
            os.unlink(part, dir_fd=fd)  # a program replaced the directory just before the rename
            return
        top = open_directory(fd, part, name)
        try:
            yield from emptying(top, _NAMES)
        finally:
            os.close(top)
        os.rmdir(part, dir_fd=fd)

    def _append(self, parts: list[str], data: bytes, condition: Condition) -> BlockingWork[Saved]:
        """Make a new version of the old content and the new; try again if a program changes the file meanwhile."""
        name = parts[-1]
        for attempt in range(1, _APPENDS + 1):
            with self.home(parts, condition) as fd:
                expected = yield from checked(fd, name, condition)
                try:
                    with self.new_version(fd, name) as new:
                        if mode_of(fd, name) is None:
                            present = Condition(absent=True)
                        else:
                            present = yield from self._copy(fd, name, new, expected)
                        new.write(data)
                        return new.commit(present)
                except (FileExistsError, PathRefusedError) as exc:
                    changed = isinstance(exc, FileExistsError) or exc.kind in {FileConflict, NoSuchFile}
                    if not changed or attempt == _APPENDS:
                        raise
            yield
        raise AssertionError(parts)

    def _copy(self, fd: int, name: str, new: NewVersion, expected: Condition) -> BlockingWork[Condition]:
        """Copy a file of an expected version; return the condition that it has not changed since."""
        with regular_file(fd, name) as old:
            before = os.fstat(old)
            if before.st_size > self.limits.file:
                raise PathRefusedError(
                    f"it has {before.st_size} bytes, and {self.limits.file} is the limit to append to", FileTooLarge
                )
            while new.size < before.st_size and (chunk := os.pread(old, CHUNK, new.size)):
                new.write(chunk)
                yield
            copied = version(before)
            if version(os.fstat(old)) != copied or (expected.versions is not None and copied not in expected.versions):
                raise PathRefusedError("it was changed at the same moment; send the request again", FileConflict)
        return Condition(versions=frozenset({copied}))

    def home(self, parts: list[str], condition: Condition) -> contextlib.AbstractContextManager[int]:
        """Open the directory of a file that is about to be written; make it unless the file must exist already."""
        if condition.needs_file:
            return directory(self.root, parts[:-1])
        return self._directory(parts[:-1])

    def new_version(self, fd: int, name: str) -> contextlib.AbstractContextManager[NewVersion]:
        """Start a new version of the file `name` in an open directory; without a commit, nothing of it remains."""
        return new_version(fd, name, self.owner, self.commits)

    def _directory(self, parts: list[str]) -> contextlib.AbstractContextManager[int]:
        return directory(self.root, parts, self.owner)


def _named(path: str, field: str) -> list[str]:
    parts = directory_parts(path, field)
    if not parts:
        raise BadRequest(
            "The file name cannot be used", "it is the workspace itself", field=field, code="invalid_field"
        )
    return parts
