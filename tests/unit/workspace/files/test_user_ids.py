"""User ids: one for each session, whatever happens, and its files change hands whole."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernelbridge.errors import LimitExceeded
from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.files.change_owner import change_owner
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.user_ids import Uids
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.workspace.files.at_once import finish

FIRST, LAST = 2_000_000, 2_000_099
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataDirectory]:
    made = DataDirectory.open(tmp_path / "data")
    made.assign_uids(FIRST, LAST)
    yield made
    made.close()


def uids(instance: str = "i", last: int = LAST, *, opened: set[str] | None = None, **owners: int) -> Uids:
    """Make some; `opened` may change meanwhile."""
    now = set() if opened is None else opened
    return Uids(FIRST, last, instance=instance, owner=owners.get, open_now=lambda: now)


def test_each_open_one_has_one_of_its_own_and_keeps_it() -> None:
    names = [f"w{number}" for number in range(100)]
    given = uids(opened=set(names))
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(given.of, names * 3))
    assert sorted(set(first)) == list(range(FIRST, LAST + 1))
    assert first[:100] == first[100:200] == first[200:]


def test_when_open_sessions_have_all_ids_another_is_refused() -> None:
    opened = {"a", "b"}
    given = uids(last=FIRST + 1, opened=opened)
    first = {name: given.of(name) for name in "ab"}
    opened.add("c")
    with pytest.raises(LimitExceeded, match="--uid-range"):
        given.of("c")
    assert {name: given.of(name) for name in "ab"} == first
    opened.remove("a")
    assert given.of("c") == first["a"]


def test_of_two_that_open_at_once_one_gets_another() -> None:
    given = uids(last=FIRST + 2, opened={"a", "b"}, a=FIRST, b=FIRST)
    assert len({given.of("b"), given.of("a")}) == 2
    assert len({given.of("a"), given.of("b")}) == 2


def test_a_sandbox_of_an_earlier_server_keeps_its_id_for_itself() -> None:
    """Nobody asks for it again: its sandbox has it."""
    given = uids(opened={"running", "other"}, running=FIRST, other=FIRST)
    assert given.of("other") != FIRST


def test_the_owner_of_stored_files_is_kept_where_it_is_in_the_range() -> None:
    given = uids(kept=FIRST + 7, outside=1000)
    assert given.of("kept") == FIRST + 7
    assert FIRST <= given.of("outside") <= LAST


def test_two_servers_hardly_ever_choose_the_same() -> None:
    wide = LAST + 65_536
    mine, theirs = uids("a", wide), uids("b", wide)
    names = [f"w{number}" for number in range(50)]
    assert len({mine.of(name) for name in names} & {theirs.of(name) for name in names}) <= 5


# -- files ----------------------------------------------------------------------


def test_the_owner_of_the_files_is_the_id_of_the_session(data: DataDirectory) -> None:
    keys = [SessionKey(Principal("u"), str(number)) for number in range(5)]
    data.assign_uids(FIRST, LAST, lambda: keys)
    stored = [data.prepare_files(key, 1000, 100, own_uid=True) for key in keys]
    assert len({found.uid for found in stored}) == 5
    assert all(FIRST <= found.uid <= LAST and found.gid == 100 for found in stored)
    expected = [(found.uid, found.gid) if AS_ROOT else (os.getuid(), os.getgid()) for found in stored]
    assert [(found.root.stat().st_uid, found.root.stat().st_gid) for found in stored] == expected
    assert data.prepare_files(SessionKey(Principal("u"), "other"), 1000, 100).uid == 1000
    before = [found.uid for found in stored]
    data.close()
    with_another = DataDirectory.open(data.root)
    with_another.assign_uids(FIRST, LAST, lambda: keys)
    after = [with_another.prepare_files(key, 1000, 100, own_uid=True).uid for key in keys]
    with_another.close()
    assert after == before


def test_open_sessions_never_share_after_another_start_either(data: DataDirectory) -> None:
    keys = [SessionKey(Principal("u"), str(number)) for number in range(5)]
    data.assign_uids(FIRST, FIRST + 1)
    for key in keys:
        data.prepare_files(key, 1000, 100, own_uid=True)
    opened: list[SessionKey] = []
    data.assign_uids(FIRST, FIRST + 1, lambda: opened)
    opened += keys[:2]
    stored = [data.prepare_files(key, 1000, 100, own_uid=True) for key in opened]
    for found in stored:
        finish(data.change_owner(found))
    assert {found.uid for found in stored} == {FIRST, FIRST + 1}
    expected = [(found.uid, 100) if AS_ROOT else (os.getuid(), os.getgid()) for found in stored]
    assert [(found.root.stat().st_uid, found.root.stat().st_gid) for found in stored] == expected
    opened.append(keys[2])
    with pytest.raises(LimitExceeded):
        data.prepare_files(keys[2], 1000, 100, own_uid=True)


def tree(root: Path) -> list[Path]:
    """Make one of all kinds, and deeper than a path or the descriptors of a process may be."""
    root.mkdir()
    (root / "file").write_text("x")
    (root / "closed").mkdir(mode=0)
    (root / "link").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    for number in range(300):
        (root / "closed" / f"f{number}").touch()
    here = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    return [root, *(root / name for name in ("file", "closed", "link", "dangling", "fifo", "deep"))]


def owners(root: Path) -> set[str]:
    found = subprocess.run(["find", root, "-printf", "%U:%G\n"], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_all_changes_hands_and_no_link_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "files"
    tree(root)
    before = Path("/etc/passwd").stat().st_uid
    uid, gid = (FIRST, 100) if AS_ROOT else (os.getuid(), os.getgid())
    pieces = sum(1 for _ in change_owner(root, uid, gid))
    assert pieces >= 15  # every 100 names
    assert owners(root) == {f"{uid}:{gid}"}
    assert Path("/etc/passwd").stat().st_uid == before


def test_the_next_start_completes_a_change_of_owner(data: DataDirectory) -> None:
    """Only root can give files away; another server's sandboxes are its own user."""
    key = SessionKey(Principal("u"), "a")
    stored = data.prepare_files(key, 1000, 100)
    for number in range(1000):
        (stored.root / str(number)).touch()
    before = owners(stored.root)
    moved = data.prepare_files(key, 1000, 100, own_uid=True)
    begun = data.change_owner(moved)
    assert len(list(itertools.islice(begun, 3))) == (3 if AS_ROOT else 0)
    begun.close()
    assert owners(stored.root) == before | ({f"{moved.uid}:100"} if AS_ROOT else set())
    finish(data.change_owner(data.prepare_files(key, 1000, 100, own_uid=True)))
    assert owners(stored.root) == ({f"{moved.uid}:100"} if AS_ROOT else before)
    assert list(data.change_owner(moved)) == []


def test_a_tree_whose_directories_are_moved_meanwhile_is_not_left(tmp_path: Path) -> None:
    """`..` of a directory that was moved leads elsewhere: what is there belongs to somebody else."""
    (tmp_path / "root/d").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for number in range(150):
        (tmp_path / "root/d" / str(number)).touch()
    work = change_owner(tmp_path / "root", os.getuid(), os.getgid())
    next(work)
    (tmp_path / "root/d").rename(tmp_path / "elsewhere/d")
    with pytest.raises(OSError, match="its directories were moved meanwhile"):
        finish(work)
