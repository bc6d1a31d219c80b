"""Whatever code in the sandbox puts at a path, or swaps in at any moment, nothing outside changes."""

import functools
import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelbridge.errors import BadRequest, FileError
from kernelbridge.workspace.files.inotify_tree import EventsLostError, WatchTree
from kernelbridge.workspace.files.listing import Listing, listing
from kernelbridge.workspace.files.reading import read
from kernelbridge.workspace.files.store import FileLimits
from kernelbridge.workspace.files.versions import Commits
from tests.unit.workspace.files.at_once import Files, finish

SAVES = 10_000
TURNS = 60
"""Looks of a watch."""
OTHERS = 2_000
"""Reads, lists, deletes and renames, each, that run beside the saves."""

PATIENCE = 5_000
"""More of each, until one has been done and one refused: a link is in its way half of the time."""

RACER = r"""
import contextlib, ctypes, os, sys
root = os.open(sys.argv[1], os.O_RDONLY)
inner = os.open("inner", os.O_RDONLY, dir_fd=root)
outside = sys.argv[2]
renameat2 = ctypes.CDLL(None).renameat2
def swap(fd, a, b):
    renameat2(fd, a, fd, b, 2)  # what was deleted cannot be swapped: mended below
def mend(fd):
    for make in (lambda: os.mkdir("dir", dir_fd=fd), lambda: os.symlink(outside + "/dir", "link", dir_fd=fd)):
        with contextlib.suppress(FileExistsError):
            make()
print("racing", flush=True)
while True:
    for _ in range(10):
        swap(root, b"dir", b"link")
        swap(inner, b"dir", b"link")
        swap(root, b"dir", b"other")
        swap(root, b"target", b"link2")
    mend(root)
    mend(inner)
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
    (outside / "dir" / "foreign").write_bytes(b"foreign")
    return outside


@pytest.fixture
def files(root: Path) -> Files:
    return Files(root, uid=1234, gid=4321, limits=FileLimits(1 << 20, 1 << 20), commits=Commits())


@contextmanager
def racer(root: Path, outside: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", RACER, root, outside], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"racing\n"
            yield
            assert process.poll() is None, "the race ended early"
        finally:
            process.kill()


class Racing:
    """Operations against the racer, counted by how they ended."""

    def __init__(self, files: Files, root: Path) -> None:
        self.files = files
        self.root = root
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.names = (
            "dir/file",
            "inner/dir/file",
            "dir/sub/new",
            "target",
            "other/dir/x",
            "link/file",
            "inner/link/sub/y",
        )

    def until(self, enough: Callable[[], bool], operation: Callable[[str], None], name: str) -> None:
        """Go on until it is enough and has ended both ways; one that is never refused follows links."""
        patience = PATIENCE
        for path in itertools.cycle(self.names):
            if enough():
                if self.done[name] and self.refused[name]:
                    return
                patience -= 1
                assert patience, f"{name}: {self.done[name]} done, {self.refused[name]} refused"
            try:
                operation(path)
                self.done[name] += 1
            except FileError as exc:
                assert exc.reason  # noqa: PT017 - either end is right; a refusal must say why
                self.refused[name] += 1

    def tried(self, name: str, times: int) -> bool:
        return self.done[name] + self.refused[name] >= times

    def save(self, path: str) -> None:
        self.files.save(path, b"mine")

    def read(self, path: str) -> None:
        found = read(self.root, path, encoding="utf-8", offset=0, length=None, max_frame=1 << 20)
        assert found.content in {"mine", "old"}, found

    def list(self, path: str) -> None:
        for top in ("", path.rpartition("/")[0]):
            found = finish(listing(self.root, top, recursive=True, hidden=True))
            assert not [entry for entry in found.entries if "foreign" in entry.path]

    def delete(self, path: str) -> None:
        self.files.delete(path, recursive=True)
        self.files.delete(path.rpartition("/")[0] or path, recursive=True)

    def rename(self, path: str) -> None:
        self.files.rename(path, "moved/" + path, overwrite=True)
        self.files.rename("moved/" + path, path, overwrite=True)


def test_a_racing_renamer_moves_nothing_outside(
    files: Files, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Durability is not the question here, and costs most of the time.
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    for place in (root, root / "inner"):
        (place / "dir").mkdir(parents=True)
        (place / "link").symlink_to(outside / "dir")
    (root / "other").mkdir()
    (root / "target").write_bytes(b"old")
    (root / "link2").symlink_to(outside / "secret")
    before = snapshot(outside)
    racing = Racing(files, root)
    with racer(root, outside):
        racing.until(functools.partial(racing.tried, "save", SAVES // 2), racing.save, "save")
        with ThreadPoolExecutor(4) as pool:
            work = [
                pool.submit(racing.until, functools.partial(racing.tried, name, OTHERS), operation, name)
                for name, operation in (
                    *(("read", racing.read), ("list", racing.list)),
                    *(("delete", racing.delete), ("rename", racing.rename)),
                )
            ]
            racing.until(functools.partial(racing.tried, "save", SAVES), racing.save, "save")
            # The others need what is saved.
            while not all(future.done() for future in work):
                racing.until(lambda: True, racing.save, "save")
                for path in racing.names:
                    with suppress(FileError):
                        racing.save(path)
            for future in work:
                future.result()
    assert snapshot(outside) == before
    assert not list(root.rglob("*.part"))
    assert racing.tried("save", SAVES)


def test_a_watch_never_reports_what_is_behind_a_link(root: Path, outside: Path) -> None:
    for place in (root, root / "inner"):
        (place / "dir").mkdir(parents=True)
        (place / "link").symlink_to(outside / "dir")
    (root / "other").mkdir()
    tree = WatchTree(root, hidden=True)
    told: set[str] = set()
    try:
        finish(tree.start())
        with racer(root, outside):
            for turn in itertools.count():
                if turn >= TURNS and told:  # the racer may have to wait for its turn
                    break
                assert turn < 1000 * TURNS, "the watch tells nothing"
                (outside / "dir" / f"foreign{turn % TURNS}").touch()
                (outside / "dir" / "sub" / f"foreign{turn % TURNS}").touch()
                try:
                    told |= finish(tree.turn()).by_path.keys()
                except EventsLostError:
                    tree.close()
                    tree = WatchTree(root, hidden=True)
                    finish(tree.start())
    finally:
        tree.close()
    assert not [path for path in told if "foreign" in path]


@pytest.mark.parametrize("link", ["absolute", "relative", "dangling", "loop"])
def test_a_parent_that_is_a_link_is_refused(files: Files, root: Path, outside: Path, link: str) -> None:
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


def test_a_link_inside_the_workspace_is_refused_as_a_parent_too(files: Files, root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "link").symlink_to(root / "a")
    with pytest.raises(FileError, match="'a/link' is a symbolic link"):
        files.save("a/link/x", b"x")


def test_a_link_at_the_target_is_replaced_not_followed(files: Files, root: Path, outside: Path) -> None:
    before = snapshot(outside)
    for number, target in enumerate((outside / "secret", outside / "dir", Path("nowhere"), Path("/dev/null"))):
        (root / str(number)).symlink_to(target)
        files.save(str(number), b"mine")
        found = (root / str(number)).lstat()
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o644
    assert snapshot(outside) == before


def test_a_hard_link_at_the_target_loses_only_its_name(files: Files, root: Path) -> None:
    (root / "original").write_bytes(b"original")
    (root / "name").hardlink_to(root / "original")
    files.save("name", b"mine")
    assert (root / "original").read_bytes() == b"original"
    assert (root / "original").stat().st_nlink == 1
    assert (root / "name").read_bytes() == b"mine"


@pytest.mark.timeout(20)
def test_nothing_waits_for_a_fifo_socket_or_device(files: Files, root: Path) -> None:
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


def test_a_bridge_that_is_not_root_reports_missing_permissions(root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (root / "closed").mkdir(mode=0o555)
    for directory in (root, root / "closed"):
        os.chown(directory, 1234, 4321)
    program = (
        "import os, sys; os.setgroups([]); os.setgid(4321); os.setuid(1234)\n"
        "from pathlib import Path; from kernelbridge.errors import FileError\n"
        "from kernelbridge.workspace.files.versions import Commits\n"
        "from kernelbridge.workspace.files.store import FileLimits, WorkspaceFiles\n"
        "files = WorkspaceFiles(Path(sys.argv[1]), uid=1234, gid=4321, limits=FileLimits(9, 9), commits=Commits())\n"
        "list(files.saving('open/file', b'mine', 'overwrite', None))\n"
        "try: list(files.saving('closed/file', b'mine', 'overwrite', None))\n"
        "except FileError as exc: print(exc)\n"
    )
    # The directories above a test's own are closed to others, so it starts inside.
    done = subprocess.run(
        [sys.executable, "-c", f"import kernelbridge.workspace.files.store\n{program}", "."],
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=_PATHS)
def test_no_generated_path_leads_outside(
    files: Files, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # Durability is not the question here, and thousands of it take minutes.
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    shutil.rmtree(root)
    root.mkdir()
    (root / "up").symlink_to("..")
    (root / "own").write_bytes(b"mine")
    before = snapshot(outside), set(root.parent.iterdir())
    fields: tuple[Callable[[], object], ...] = (
        lambda: files.save(path, b"mine"),
        lambda: read(root, path, encoding="utf-8", offset=0, length=None, max_frame=1 << 20).content,
        lambda: finish(listing(root, path, recursive=True, hidden=True)),
        lambda: files.rename("own", path, overwrite=True),
        lambda: files.rename(path, "own2", overwrite=True),
        lambda: files.mkdir(path),
        lambda: files.delete(path, recursive=True),
    )
    for use in fields:
        try:
            got = use()
        except (BadRequest, FileError) as exc:
            assert exc.reason  # noqa: PT017 - either end is right; a refusal must say why
            continue
        if isinstance(got, str):
            assert got == "mine"
        if isinstance(got, Listing):
            assert not [entry for entry in got.entries if "secret" in entry.path.split("/")[:-1]]
    assert (snapshot(outside), set(root.parent.iterdir())) == before


def test_a_server_killed_in_mid_save_leaves_the_old_file(root: Path) -> None:
    (root / "main.py").write_bytes(b"old")
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from kernelbridge.workspace.files.versions import Commits\n"
        "from kernelbridge.workspace.files.store import FileLimits, WorkspaceFiles\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files = WorkspaceFiles(Path(sys.argv[1]), uid=0, gid=0, limits=FileLimits(99, 99), commits=Commits())\n"
        "list(files.saving('main.py', b'new', 'overwrite', None))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, root], check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -signal.SIGKILL
    assert (root / "main.py").read_bytes() == b"old"
