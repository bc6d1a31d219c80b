"""What a tree uses of the disk."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.aio.threads import finish
from kernelbridge.disk.limits import DiskLimits, Use
from kernelbridge.disk.measure import TOO_DEEP, deleted_but_open, measuring
from kernelbridge.disk.session_disks import SessionDisks
from kernelbridge.trees import remove_tree

MIB = 1 << 20


def blocks(*paths: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in paths)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_directories_and_links_count_and_the_top_does_not(tmp_path: Path) -> None:
    assert finish(measuring(tmp_path)) == Use(0, 0)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_bytes(b"x" * MIB)
    (tmp_path / "link").symlink_to("/usr")
    os.mkfifo(tmp_path / "fifo")
    made = [tmp_path / name for name in ("a", "a/b", "a/b/f", "link", "fifo")]
    before = descriptors()
    assert finish(measuring(tmp_path)) == Use(blocks(*made), 5)
    assert descriptors() == before


def test_a_directory_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (outside / "f").write_bytes(b"x" * MIB)
    seen = blocks(root / "a")
    walk = measuring(root)
    next(walk)  # it knows of the directory, and has not opened it
    (root / "a").rmdir()
    (root / "a").symlink_to(outside)
    assert finish(walk) == Use(seen, 1)


def test_a_file_with_two_names_counts_once_and_a_hole_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * MIB)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    assert finish(measuring(tmp_path)) == Use(blocks(tmp_path / "one"), 2)


@given(st.recursive(st.integers(0, 3), lambda below: st.lists(below, max_size=4), max_leaves=30))
def test_every_shape_of_a_tree_is_counted_whole(shape: object) -> None:
    def make(at: Path, shape: object) -> int:
        if isinstance(shape, int):
            for number in range(shape):
                (at / f"f{number}").touch()
            return shape
        assert isinstance(shape, list)
        count = 0
        for number, below in enumerate(shape):
            (at / f"d{number}").mkdir()
            count += 1 + make(at / f"d{number}", below)
        return count

    root = Path(f"/dev/shm/measured-{os.getpid()}")
    root.mkdir()
    try:
        made = make(root, shape)
        assert finish(measuring(root)).files == made
    finally:
        remove_tree(root)


def test_a_chain_of_directories_of_any_depth_keeps_few_of_them_open(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = descriptors()
    work, most = measuring(tmp_path), 0
    for _ in work:
        most = max(most, descriptors() - before)
    assert most <= 2
    assert finish(measuring(tmp_path)).files == 3000
    remove_tree(tmp_path)


def test_what_is_too_deep_to_be_looked_at_counts_as_too_much(tmp_path: Path) -> None:
    """Else it would be the place where a hostile program hides its files."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(200):
        for name in ("a", "b"):
            os.mkdir(name, dir_fd=fd)
        for name in ("a", "b"):
            os.mkdir("leaf", dir_fd=(below := os.open(name, os.O_RDONLY, dir_fd=fd)))
            os.close(below)
        below = os.open(os.listdir(fd)[-1], os.O_RDONLY, dir_fd=fd)  # noqa: PTH208  the one that is entered first
        os.close(fd)
        fd = below
    os.close(fd)
    assert finish(measuring(tmp_path)).files > TOO_DEEP
    remove_tree(tmp_path)


def test_an_abandoned_walk_leaves_nothing_open(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name / "below").mkdir(parents=True)
    before = descriptors()
    work = measuring(tmp_path)
    for _ in range(4):
        next(work)
    work.close()
    assert descriptors() == before


def test_what_a_process_holds_open_without_a_name_counts_once(tmp_path: Path) -> None:
    """Also if it has forbidden to be dumped, as one has that has changed its user: then root owns its directory."""
    uid = 54321 if os.geteuid() == 0 else os.geteuid()
    ready, written = os.pipe()
    ended, end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(end)
            file = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            os.dup(file)
            os.write(file, b"x" * MIB)
            (tmp_path / "f").unlink()
            named = os.open(tmp_path / "named", os.O_RDWR | os.O_CREAT)
            os.write(named, b"x" * MIB)
            if os.geteuid() == 0:
                os.setuid(uid)
            os.write(written, b"1")
            os.read(ended, 1)
        finally:
            os._exit(0)
    os.read(ready, 1)
    found = deleted_but_open(uid, tmp_path.stat().st_dev)
    for fd in (end, ended, ready, written):
        os.close(fd)
    os.waitpid(child, 0)
    assert found.size >= MIB
    if os.geteuid() == 0:  # nobody else has this user
        assert found.size == MIB
        assert deleted_but_open(uid, tmp_path.stat().st_dev) == Use(0, 0)


def test_a_session_without_files_uses_nothing(tmp_path: Path) -> None:
    disk = SessionDisks(DiskLimits(2 * MIB, 10)).session("s", tmp_path / "none")
    assert finish(disk.measuring()) == Use(0, 0)


def test_a_session_measures_before_it_refuses(tmp_path: Path) -> None:
    disk = SessionDisks(DiskLimits(2 * MIB, 10)).session("s", tmp_path)
    finish(disk.admitting(MIB, 1, "no"))  # nothing of it was written: what was counted is found not to be there
    finish(disk.admitting(MIB + MIB // 2, 1, "no"))
    assert finish(disk.measuring()) == Use(0, 0)
