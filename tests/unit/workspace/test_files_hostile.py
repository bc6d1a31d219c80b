"""Whatever code in the sandbox puts at a path, or swaps in at any moment, nothing outside changes."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelbridge.errors import BadRequest, FileError
from kernelbridge.workspace.files import FileLimits, WorkspaceFiles

SAVES = 2_000

RACER = r"""
import ctypes, os, sys
root = os.open(sys.argv[1], os.O_RDONLY)
inner = os.open("inner", os.O_RDONLY, dir_fd=root)
exchange = ctypes.CDLL(None, use_errno=True).renameat2
def swap(fd, a, b):
    if exchange(fd, a, fd, b, 2) != 0:
        raise OSError(ctypes.get_errno())
print("racing", flush=True)
while True:
    swap(root, b"dir", b"link")
    swap(inner, b"dir", b"link")
    swap(root, b"dir", b"other")
    swap(root, b"target", b"link2")
"""


def snapshot(top: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree, times of change included."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in (top, *top.rglob("*")):
        s = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(s.st_mode) else b""
        seen[str(path)] = (s.st_mode, s.st_uid, s.st_gid, s.st_ino, s.st_nlink, s.st_mtime_ns, s.st_ctime_ns, content)
    return seen


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    (outside / "dir" / "sub").mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    (outside / "dir" / "file").write_bytes(b"file")
    return outside


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "files"
    root.mkdir()
    return root


@pytest.fixture
def files(root: Path) -> WorkspaceFiles:
    return WorkspaceFiles(root, uid=1234, gid=4321, limits=FileLimits(1 << 20, 1 << 20), commits=Lock())


@contextmanager
def racer(root: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", RACER, root], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"racing\n"
            yield
            assert process.poll() is None, "the race ended early"
        finally:
            process.kill()


def test_a_racing_renamer_moves_nothing_outside(files: WorkspaceFiles, root: Path, outside: Path) -> None:
    for place in (root, root / "inner"):
        (place / "dir").mkdir(parents=True)
        (place / "link").symlink_to(outside / "dir")
    (root / "other").mkdir()
    (root / "target").write_bytes(b"old")
    (root / "link2").symlink_to(outside / "secret")
    names = ("dir/file", "inner/dir/file", "dir/sub/new", "target", "other/dir/x", "link/file", "inner/link/sub/y")
    before = snapshot(outside)
    saved = refused = attempts = 0
    with racer(root):
        while attempts < SAVES or not (saved and refused):
            try:
                files.save(names[attempts % len(names)], b"mine")
                saved += 1
            except FileError as exc:
                assert exc.reason  # noqa: PT017 - either end is right; a refusal must say why
                refused += 1
            attempts += 1
    assert snapshot(outside) == before
    assert not list(root.rglob("*.part"))


@pytest.mark.parametrize("link", ["absolute", "relative", "dangling", "loop"])
def test_a_parent_that_is_a_link_is_refused(files: WorkspaceFiles, root: Path, outside: Path, link: str) -> None:
    targets: dict[str, Path | str] = {
        "absolute": outside,
        "relative": "../outside",
        "dangling": "nowhere",
        "loop": "link",
    }
    (root / "link").symlink_to(targets[link])
    before = snapshot(outside)
    for operation in (
        lambda: files.save("link/secret", b"x"),
        lambda: files.save("link/dir/new", b"x"),
        lambda: files.mkdir("link/new"),
        lambda: files.symlink("link/new", "x"),
        lambda: files.write_private("link/new", b"x", 0o600),
    ):
        with pytest.raises(FileError, match="'link' is a symbolic link; a file's parents must be real directories"):
            operation()
    assert snapshot(outside) == before


def test_a_link_inside_the_workspace_is_refused_as_a_parent_too(files: WorkspaceFiles, root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "link").symlink_to(root / "a")
    with pytest.raises(FileError, match="'a/link' is a symbolic link"):
        files.save("a/link/x", b"x")


def test_a_link_at_the_target_is_replaced_not_followed(files: WorkspaceFiles, root: Path, outside: Path) -> None:
    before = snapshot(outside)
    for number, target in enumerate((outside / "secret", outside / "dir", Path("nowhere"), Path("/dev/null"))):
        (root / str(number)).symlink_to(target)
        files.save(str(number), b"mine")
        found = (root / str(number)).lstat()
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o644
    assert snapshot(outside) == before


def test_a_hard_link_at_the_target_loses_only_its_name(files: WorkspaceFiles, root: Path) -> None:
    (root / "original").write_bytes(b"original")
    (root / "name").hardlink_to(root / "original")
    files.save("name", b"mine")
    assert (root / "original").read_bytes() == b"original"
    assert (root / "original").stat().st_nlink == 1
    assert (root / "name").read_bytes() == b"mine"


@pytest.mark.timeout(20)
def test_nothing_waits_for_a_fifo_socket_or_device(files: WorkspaceFiles, root: Path) -> None:
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    kinds = {"fifo": "FIFO", "device": "device", "socket": "socket"}
    for name, what in kinds.items():
        with pytest.raises(FileError, match=f"'{name}' is a {what}"):
            files.save(f"{name}/x", b"x")
        files.save(name, b"mine")
        assert stat.S_ISREG((root / name).lstat().st_mode)
        assert (root / name).read_bytes() == b"mine"


def test_a_bridge_that_is_not_root_is_told_what_it_may_not(root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (root / "closed").mkdir(mode=0o555)
    for directory in (root, root / "closed"):
        os.chown(directory, 1234, 4321)
    program = (
        "import os, sys; os.setgroups([]); os.setgid(4321); os.setuid(1234)\n"
        "from pathlib import Path; from kernelbridge.errors import FileError\n"
        "from threading import Lock; from kernelbridge.workspace.files import FileLimits, WorkspaceFiles\n"
        "files = WorkspaceFiles(Path(sys.argv[1]), uid=1234, gid=4321, limits=FileLimits(9, 9), commits=Lock())\n"
        "files.save('open/file', b'mine')\n"
        "try: files.save('closed/file', b'mine')\n"
        "except FileError as exc: print(exc)\n"
    )
    # The directories above a test's own are closed to others, so it starts inside.
    done = subprocess.run(
        [sys.executable, "-c", f"import kernelbridge.workspace.files\n{program}", "."],
        cwd=root, capture_output=True, text=True, check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith(
        "The file 'closed/file' was not saved: permission denied: make its directory writable"
    )
    assert (root / "open/file").read_bytes() == b"mine"


_COMPONENT = st.one_of(
    st.sampled_from(
        [
            "..",
            ".",
            "",
            "...",
            ". .",
            "..\\",
            "\\..",
            "%2e%2e",
            "..%2f",
            "\uff0e\uff0e",
            "\u2025",
            "\u202e..",
            "..\0",
            "~",
        ]
    ),
    st.sampled_from(["outside", "up", "etc", "proc", "self", "root", "cwd", "a", "secret", "dir", "C:"]),
    st.text(max_size=6),
)
_PATHS = st.builds(
    lambda start, parts, joint, end: start + joint.join(parts) + end,
    st.sampled_from(["", "", "", "/", "//", "./", "../", "\\", "file://", "/proc/self/cwd/"]),
    st.lists(_COMPONENT, max_size=6),
    st.sampled_from(["/", "/", "/", "//", "\\", "/./"]),
    st.sampled_from(["", "", "", "/", "/..", "\0", "\ud800", ".py"]),
)


@settings(max_examples=5_000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(path=_PATHS)
def test_no_generated_path_leads_outside(
    files: WorkspaceFiles, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # Durability is not the question here, and 5,000 saves of it take a minute.
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    shutil.rmtree(root)
    root.mkdir()
    (root / "up").symlink_to("..")
    before = snapshot(outside), set(root.parent.iterdir())
    try:
        files.save(path, b"mine")
    except (BadRequest, FileError) as exc:
        assert exc.reason  # noqa: PT017 - either end is right; a refusal must say why
    assert (snapshot(outside), set(root.parent.iterdir())) == before


def test_a_server_killed_in_mid_save_leaves_the_old_file(root: Path) -> None:
    (root / "main.py").write_bytes(b"old")
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from threading import Lock; from kernelbridge.workspace.files import FileLimits, WorkspaceFiles\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "WorkspaceFiles(Path(sys.argv[1]), uid=0, gid=0, limits=FileLimits(99, 99), commits=Lock())"
        ".save('main.py', b'new')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, root], check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -signal.SIGKILL
    assert (root / "main.py").read_bytes() == b"old"
