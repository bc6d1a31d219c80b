"""The paths that clients send, in a workspace that hostile code filled with links: nothing outside is reached."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from kernelbridge.aio.threads import finish
from kernelbridge.errors import BadRequest, FileError
from kernelbridge.workspace.files.listing import listing
from kernelbridge.workspace.files.names import directory_parts
from kernelbridge.workspace.files.reading import read
from kernelbridge.workspace.files.store import FileLimits, WorkspaceFiles
from kernelbridge.workspace.files.versions import Commits

STEPS = 8
"""Requests of one input."""
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""What hostile code cannot put into a link either."""
SECRET = "what lies outside"

SEEDS = (
    b"rfile\nrdir/../../outside/secret\nrout/secret\nrabsolute/secret",
    b"lout\nldir\nl\nlloop\nl..",
    b"sout/new\nsdir/new\nssecret\nadir/f\nasecret\nc/absolute",
    b"mout/new\nmdir/a/b/c\nmloop/x",
    b"nout\tdir/x\nndir\tout/dir\nnfile\t../file\nrdir/x/secret\nldir/x",
    b"dout\nddir\ndup\ndout/secret",
    b"kthere\t..\nrthere/outside/secret\nlthere\nmthere/x",
    b"kthere\t../outside/secret\nrthere\nathere\nsthere\nrthere",
    b"sa\\b\ns./a//b/.\ns\xc3\xbc/\xff",
    b"r\x00\nr/etc/passwd\nr\nr.\nr" + b"x" * 256,
)

TOKENS = (
    *(
        b"out",
        b"dir",
        b"file",
        b"secret",
        b"absolute",
        b"loop",
        b"self",
        b"up",
        b"fifo",
        b"new",
        b"\t",
        b"/",
        b".",
        b"..",
    ),
    *(b"../outside", b"/etc", b"\x00", b"\xed\xa0\x80", b"\xff", b"\\", b"a" * 255, b"/a" * 2048),
    *(b"\nr", b"\nl", b"\ns", b"\nc", b"\na", b"\nm", b"\nn", b"\nN", b"\nd", b"\nk"),
)


def fuzz(data: bytes) -> None:
    """Carry out up to `STEPS` requests, one a line, in a new workspace.

    A line is a letter, a path, and for some letters a tab and a second path.
    """
    with tempfile.TemporaryDirectory() as home:
        root, outside = Path(home, "root"), Path(home, "outside")
        _furnish(root, outside)
        before = _seen(outside)
        limits = FileLimits(1 << 10, 1 << 10)
        files = WorkspaceFiles(root, uid=os.geteuid(), gid=os.getegid(), limits=limits, commits=Commits())
        for line in data.split(b"\n")[:STEPS]:
            text = _text(line)
            path, _, other = text[1:].partition("\t")
            _check_parts(path)
            if (request := REQUESTS.get(text[:1])) is not None:
                with contextlib.suppress(BadRequest, FileError):
                    request(files, path, other)
            assert _seen(outside) == before
            assert sorted(Path(home).iterdir()) == [outside, root]


def _furnish(root: Path, outside: Path) -> None:
    for directory in (root / "dir", outside / "dir"):
        directory.mkdir(parents=True)
    (root / "file").write_text("inside")
    (outside / "secret").write_text(SECRET)
    for name, target in (
        *(("out", "../outside"), ("secret", "../outside/secret"), ("absolute", str(outside)), ("loop", "loop")),
        *(("dir/up", ".."), ("dir/out", "../../outside/dir"), ("self", ".")),
    ):
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo")


def _seen(directory: Path) -> list[tuple[str, int, int]]:
    """Return the names of everything in a directory, and when it was changed."""
    found = [directory, *sorted(directory.rglob("*"))]
    return [(path.name, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in found]


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return line.decode("utf-8", "replace")


def _check_parts(path: str) -> None:
    """Check that the parts of a path are those that the path has below any directory."""
    try:
        parts = directory_parts(path)
    except BadRequest:
        return
    assert all(0 < len(part.encode()) <= 255 for part in parts)
    assert posixpath.normpath(f"/top/{path}") == "/".join(["/top", *parts])


def _read(files: WorkspaceFiles, path: str, _: str) -> None:
    assert SECRET not in read(files.root, path, encoding="utf-8", offset=0, length=None, max_frame=1 << 20).content


def _list(files: WorkspaceFiles, path: str, _: str) -> None:
    top, root = directory_parts(path, "path"), files.root.resolve()
    for entry in finish(listing(files.root, path, recursive=True, hidden=True)).entries:
        parts = entry.path.split("/")
        assert parts[: len(top)] == top
        parent = root.joinpath(*parts[:-1])
        assert parent.resolve() == parent  # no link is on the way


def _save(files: WorkspaceFiles, path: str, _: str) -> None:
    saved = finish(files.saving(path, b"saved", "overwrite", None))
    assert saved.size == len(b"saved")
    assert read(files.root, path, encoding="utf-8", offset=0, length=None, max_frame=1 << 20).content == "saved"


REQUESTS: Mapping[str, Callable[[WorkspaceFiles, str, str], object]] = MappingProxyType(
    {
        "r": _read,
        "l": _list,
        "s": _save,
        "c": lambda files, path, _: finish(files.saving(path, b"made", "create", None)),
        "a": lambda files, path, _: finish(files.saving(path, b"more", "append", None)),
        "m": lambda files, path, _: files.mkdir(path),
        "n": lambda files, path, other: files.rename(path, other, overwrite=True),
        "N": lambda files, path, other: files.rename(path, other, overwrite=False),
        "d": lambda files, path, _: finish(files.deleting(path, recursive=True)),
        "k": lambda files, path, other: files.symlink(path, _UNUSABLE.sub("", other)),
    }
)
