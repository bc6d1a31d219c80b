"""What a watch tells of a tree, and where it says that it cannot."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.errors import FileError, LimitExceeded
from kernelbridge.workspace.files import syscalls
from kernelbridge.workspace.files.inotify_tree import EventsLostError, WatchTree
from tests.unit.workspace.files.at_once import finish


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "files"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "f").write_text("x")
    return root


@pytest.fixture
def tree(root: Path) -> Iterator[WatchTree]:
    tree = WatchTree(root, hidden=False, directories=20, names=200)
    finish(tree.start())
    yield tree
    tree.close()


def turn(tree: WatchTree) -> dict[str, str]:
    return {**finish(tree.turn()).by_path}


def test_changes_are_what_is_different_afterwards(tree: WatchTree, root: Path) -> None:
    assert turn(tree) == {}
    (root / "a" / "f").write_text("y")
    (root / "a" / "new").touch()
    (root / "a" / "brief").touch()
    (root / "a" / "brief").unlink()
    assert turn(tree) == {"a/f": "modified", "a/new": "added"}
    (root / "a" / "new").unlink()
    (root / "a" / "new").touch()
    (root / "a" / "f").rename(root / "a" / "b" / "f")
    assert turn(tree) == {"a/new": "modified", "a/f": "deleted", "a/b/f": "added"}
    (root / "a" / "other").write_text("z")
    (root / "a" / "other").rename(root / "a" / "new")
    assert turn(tree) == {"a/new": "modified"}


def test_directories_are_watched_as_they_come_move_and_go(tree: WatchTree, root: Path) -> None:
    (root / "n" / "m").mkdir(parents=True)
    (root / "n" / "m" / "f").touch()
    assert turn(tree) == {"n": "added", "n/m": "added", "n/m/f": "added"}
    (root / "n" / "m" / "f").write_text("x")
    assert turn(tree) == {"n/m/f": "modified"}
    (root / "n").rename(root / "a" / "n")
    moved = {"n": "deleted", "n/m": "deleted", "n/m/f": "deleted"}
    assert turn(tree) == {**moved, "a/n": "added", "a/n/m": "added", "a/n/m/f": "added"}
    (root / "a" / "n" / "m" / "f").write_text("y")
    assert turn(tree) == {"a/n/m/f": "modified"}
    (root / "a").rename(root / "c")
    (root / "c").rename(root / "a")
    assert set(turn(tree).values()) <= {"modified"}
    (root / "a" / "n" / "m" / "f").write_text("z")
    assert turn(tree) == {"a/n/m/f": "modified"}


def test_a_directory_that_takes_the_place_of_another_is_watched(tree: WatchTree, root: Path) -> None:
    (root / "x").mkdir()
    (root / "x" / "f").touch()
    turn(tree)
    os.rename(root / "x", root / "a" / "b")  # noqa: PTH104 - replaces the empty directory
    told = turn(tree)
    assert (told["x"], told["x/f"], told["a/b/f"]) == ("deleted", "deleted", "added")
    (root / "a" / "b" / "f").write_text("x")
    assert turn(tree) == {"a/b/f": "modified"}


def test_hidden_and_unfinished_names_are_not_reported(tree: WatchTree, root: Path) -> None:
    (root / ".git").mkdir()
    (root / ".git" / "x").touch()
    (root / f".{'a' * 32}.part").touch()
    assert turn(tree) == {}
    everything = WatchTree(root, hidden=True)
    finish(everything.start())
    (root / ".kernelbridge").mkdir()
    (root / ".kernelbridge" / "x").touch()
    (root / f".{'b' * 32}.part").touch()
    (root / ".git" / "y").touch()
    assert turn(everything) == {".git/y": "added"}
    everything.close()


def test_links_are_reported_as_names_and_not_followed(tree: WatchTree, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(".")
    assert turn(tree) == {"link": "added", "loop": "added"}
    (tmp_path / "outside" / "f").touch()
    assert turn(tree) == {}


def test_too_many_directories_or_names_end_it_with_a_reason(tree: WatchTree, root: Path) -> None:
    for number in range(30):
        (root / f"d{number}").mkdir()
    with pytest.raises(LimitExceeded, match="more than 20 directories"):
        turn(tree)
    small = WatchTree(root, hidden=False, names=3)
    with pytest.raises(LimitExceeded, match="more than 3 files"):
        finish(small.start())
    small.close()


def test_a_very_deep_tree_ends_with_a_reason(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    tree = WatchTree(root, hidden=False)
    with pytest.raises(LimitExceeded, match="nested too deeply"):
        finish(tree.start())
    tree.close()


class NoWatchesLeft:
    """A system whose inotify limits are used up."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, *_args: object) -> int:
        raise OSError(self._number, os.strerror(self._number))


def test_the_systems_limits_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "inotify_add_directory", NoWatchesLeft(errno.ENOSPC))
        tree = WatchTree(root, hidden=False)
        with pytest.raises(LimitExceeded, match=r"fs\.inotify\.max_user_watches"):
            finish(tree.start())
        tree.close()
        patched.setattr(syscalls, "inotify_init", NoWatchesLeft(errno.EMFILE))
        with pytest.raises(LimitExceeded, match=r"fs\.inotify\.max_user_instances"):
            WatchTree(root, hidden=False)


def test_lost_events_are_said_to_be_lost(tree: WatchTree, root: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(limit // 2 + 10):
        (root / f"{number % 50}").touch()
        (root / f"{number % 50}").unlink()
    lost = False
    while not lost:
        try:
            turn(tree)
        except EventsLostError:
            lost = True


def test_it_ends_when_the_root_is_removed(tree: WatchTree, root: Path) -> None:
    (root / "a" / "f").unlink()
    (root / "a" / "b").rmdir()
    (root / "a").rmdir()
    root.rmdir()
    with pytest.raises(FileError, match="they were removed"):
        turn(tree)
