"""User ids: one for each session, whatever happens, and its files change hands whole."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernelbridge.aio.threads import finish
from kernelbridge.errors import LimitExceeded
from kernelbridge.workspace.files.change_owner import change_owner
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.user_ids import Uids
from kernelbridge.workspace.session_key import SessionKey

FIRST, LAST = 2_000_000, 2_000_099
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataDirectory]:
    made = DataDirectory.open(tmp_path / "data")
    made.assign_uids(FIRST, LAST)
    yield made
    made.close()


def uids(instance: str = "i", last: int = LAST, *, opened: set[str] | None = None, **taken: int) -> Uids:
    """Make some; `opened` may change meanwhile."""
    now = set() if opened is None else opened
    return Uids(FIRST, last, instance=instance, taken=taken, principals={}, open_now=lambda: now)


def test_each_has_one_of_its_own_and_keeps_it() -> None:
    given = uids()
    names = [f"w{number}" for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(given.of, names * 3, names * 3))
    assert sorted(set(first)) == list(range(FIRST, LAST + 1))
    assert first[:100] == first[100:200] == first[200:]


def test_when_open_sessions_have_all_ids_another_is_refused() -> None:
    opened = {"a", "b"}
    given = uids(last=FIRST + 1, opened=opened)
    first = {name: given.of(name, "u") for name in "ab"}
    with pytest.raises(LimitExceeded, match="--uid-range"):
        given.of("c", "u")
    assert {name: given.of(name, "u") for name in "ab"} == first
    given.release("a")
    assert given.of("c", "u") == first["a"]


def test_a_session_that_opens_has_a_shared_id_for_itself() -> None:
    opened: set[str] = set()
    given = uids(last=FIRST + 1, opened=opened)
    for name in "abcd":
        given.of(name, "u")
    for name in "ab":
        opened.add(name)
        given.of(name, "u")
    assert given.of("a", "u") != given.of("b", "u")
    for name in "cd":
        with pytest.raises(LimitExceeded):
            given.of(name, "u")
    opened.remove("a")
    opened.add("c")
    assert given.of("c", "u") != given.of("b", "u")
    opened.add("a")
    with pytest.raises(LimitExceeded):
        given.of("a", "u")


def test_of_two_that_open_at_once_one_gets_another() -> None:
    opened: set[str] = set()
    given = uids(last=FIRST + 2, opened=opened, a=FIRST, b=FIRST, stored=FIRST + 1, last_one=FIRST + 2)
    opened.update("ab")
    assert len({given.of("b", None), given.of("a", None)}) == 2
    assert len({given.of("a", None), given.of("b", None)}) == 2


def test_a_sandbox_of_an_earlier_server_keeps_its_id_for_itself() -> None:
    """Nobody asks for it again: its sandbox has it."""
    given = uids(opened={"running", "other"}, running=FIRST, other=FIRST)
    assert given.of("other", None) != FIRST


def test_a_user_who_has_used_all_ids_shares_their_own_first() -> None:
    given = uids(last=FIRST + 9)
    for number in range(8):
        given.of(f"w{number}", "greedy")
    others = {given.of("x", "modest"), given.of("y", "modest")}
    shared = [given.of(f"more{number}", "greedy") for number in range(8)]
    assert others.isdisjoint(shared)
    assert len(set(shared)) == 8
    assert given.of("z", "modest") in others
    assert FIRST <= given.of("new", "another") <= FIRST + 9


def test_a_released_id_is_assigned_last() -> None:
    """A sandbox that could not be removed may still have it."""
    given = uids(last=FIRST + 3)
    back = given.of("a", "u")
    given.release("a")
    given.release("a")
    others = [given.of(name, "u") for name in "bcd"]
    assert back not in others
    assert given.of("e", "u") == back


def test_ids_in_use_at_the_start_are_kept() -> None:
    given = uids(kept=FIRST + 7, outside=1000)
    assert given.of("kept", "u") == FIRST + 7
    assert all(given.of(str(number), "u") != FIRST + 7 for number in range(99))
    assert FIRST <= uids(outside=1000).of("outside", "u") <= LAST


def test_two_servers_hardly_ever_choose_the_same() -> None:
    wide = LAST + 65_536
    mine, theirs = uids("a", wide), uids("b", wide)
    names = [f"w{number}" for number in range(50)]
    assert len({mine.of(name, "u") for name in names} & {theirs.of(name, "u") for name in names}) <= 5


# -- files ----------------------------------------------------------------------


def test_the_owner_of_the_files_is_the_id_of_the_session(data: DataDirectory) -> None:
    keys = [SessionKey("u", str(number)) for number in range(5)]
    stored = [data.prepare_files(key, 1000, 100, own_uid=True) for key in keys]
    assert len({found.uid for found in stored}) == 5
    assert all(FIRST <= found.uid <= LAST and found.gid == 100 for found in stored)
    expected = [(found.uid, found.gid) if AS_ROOT else (os.getuid(), os.getgid()) for found in stored]
    assert [(found.root.stat().st_uid, found.root.stat().st_gid) for found in stored] == expected
    assert data.prepare_files(SessionKey("u", "other"), 1000, 100).uid == 1000
    before = [found.uid for found in stored]
    data.close()
    with_another = DataDirectory.open(data.root)
    with_another.assign_uids(FIRST, LAST)
    after = [with_another.prepare_files(key, 1000, 100, own_uid=True).uid for key in reversed(keys)]
    with_another.close()
    assert after == before[::-1]


def test_deleted_files_give_their_id_back(data: DataDirectory) -> None:
    data.assign_uids(FIRST, FIRST + 1)
    first = data.prepare_files(SessionKey("u", "a"), 1000, 100, own_uid=True).uid
    data.prepare_files(SessionKey("u", "b"), 1000, 100, own_uid=True)
    assert data.delete_files(SessionKey("u", "a"))
    assert data.prepare_files(SessionKey("u", "c"), 1000, 100, own_uid=True).uid == first


def test_a_user_with_many_stored_sessions_leaves_ids_for_others(data: DataDirectory) -> None:
    data.assign_uids(FIRST, FIRST + 2)
    theirs = data.prepare_files(SessionKey("v", "a"), 1000, 100, own_uid=True).uid
    mine = {data.prepare_files(SessionKey("u", str(n)), 1000, 100, own_uid=True).uid for n in range(10)}
    assert mine == {FIRST, FIRST + 1, FIRST + 2} - {theirs}
    assert data.prepare_files(SessionKey("v", "b"), 1000, 100, own_uid=True).uid == theirs


def test_open_sessions_never_share_after_another_start_either(data: DataDirectory) -> None:
    keys = [SessionKey("u", str(number)) for number in range(5)]
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
    key = SessionKey("u", "a")
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
