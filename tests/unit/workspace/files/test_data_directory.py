"""The data directory: no name becomes a path, one server at a time."""

import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.errors import ConfigError, DiskFull, FileError, FilesDeleted
from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.files import data_directory
from kernelbridge.workspace.files.data_directory import DataDirectory, write_atomically
from kernelbridge.workspace.files.versions import Commits
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.workspace.files.at_once import finish

principals = st.none() | st.text()


@given(principals, st.text(), principals, st.text())
def test_different_sessions_have_different_workspaces(a: str | None, s: str, b: str | None, t: str) -> None:
    first, second = SessionKey(Principal(a), s), SessionKey(Principal(b), t)
    assert (first == second) == (first.workspace_id == second.workspace_id)
    assert first.workspace_id.isalnum()


def test_a_client_without_a_name_is_not_the_user_none_or_the_empty_user() -> None:
    ids = {SessionKey(Principal(principal), "s").workspace_id for principal in (None, "None", "", "anonymous")}
    assert len(ids) == 4


def test_one_server_at_a_time(tmp_path: Path) -> None:
    first = DataDirectory.open(tmp_path / "data")
    with pytest.raises(ConfigError, match="in use by another"):
        DataDirectory.open(tmp_path / "data")
    first.close()
    first.close()
    second = DataDirectory.open(tmp_path / "data")
    assert second.instance == first.instance
    second.close()


def test_an_unusable_data_directory_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data-dir"):
        DataDirectory.open(tmp_path / "file" / "data")


def test_files_belong_to_the_sandbox_and_the_rest_to_the_server(tmp_path: Path) -> None:
    data = DataDirectory.open(tmp_path / "data")
    key = SessionKey(Principal("user/../../etc"), "s")
    files = data.prepare_files(key, 1000, 100).root
    (files / "kept").write_text("x")
    assert data.prepare_files(key, 1000, 100).root == files
    assert (files / "kept").exists()
    assert tmp_path / "data" in files.parents
    if os.geteuid() == 0:
        assert (files.stat().st_uid, files.stat().st_gid) == (1000, 100)
    assert stat.S_IMODE(files.parent.stat().st_mode) == 0o700
    data.close()


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataDirectory]:
    made = DataDirectory.open(tmp_path / "data")
    yield made
    made.close()


def own() -> tuple[int, int]:
    return os.getuid(), os.getgid()


def test_a_principals_stored_sessions_are_those_with_files_of_theirs(data: DataDirectory) -> None:
    for key in (
        SessionKey(Principal("u"), "a"),
        SessionKey(Principal("u"), "b"),
        SessionKey(Principal(), "c"),
        SessionKey(Principal("v"), "d"),
    ):
        data.prepare_files(key, *own())
    # A label that says it is another's, one that is none, and none at all.
    workspaces = data.root / "workspaces"
    (workspaces / "forged").mkdir()
    (workspaces / "forged" / "session.json").write_text(json.dumps({"principal": "u", "sessionId": "forged"}))
    (workspaces / "broken").mkdir()
    (workspaces / "broken" / "session.json").write_text("[")
    (workspaces / "empty").mkdir()
    for opened_again in (False, True):
        if opened_again:
            data.close()
            data = DataDirectory.open(data.root)
        assert data.stored(Principal("u")) == {"a", "b"}
        assert data.stored(Principal()) == {"c"}
        assert data.stored(Principal("nobody")) == set()
    data.delete_files(SessionKey(Principal("u"), "a"))
    assert data.stored(Principal("u")) == {"b"}
    data.close()


def test_how_a_session_was_closed_is_kept_beside_its_files(data: DataDirectory) -> None:
    key = SessionKey(Principal("u"), "a")
    data.write_closed_note(key, b"nothing has files yet")
    assert data.read_closed_note(key) is None
    data.remove_closed_note(key)
    data.prepare_files(key, *own())
    data.write_closed_note(key, b"how")
    assert data.read_closed_note(key) == b"how"
    assert data.read_closed_note(SessionKey(Principal("another"), "a")) is None
    data.remove_closed_note(key)
    assert data.read_closed_note(key) is None
    data.write_closed_note(key, b"how")
    data.delete_files(key)
    data.write_closed_note(key, b"too late")
    assert list((data.root / "workspaces").iterdir()) == []
    data.prepare_files(key, *own())
    assert data.read_closed_note(key) is None


def test_deleted_files_leave_nothing(data: DataDirectory) -> None:
    key = SessionKey(Principal("u"), "a")
    assert not data.delete_files(key)
    files = data.prepare_files(key, *own()).root
    (files / "x").touch()
    assert data.has_files(key)
    assert data.delete_files(key)
    assert not data.has_files(key)
    assert list((data.root / "workspaces").iterdir()) == []


def test_files_that_are_deleted_while_they_are_prepared_are_made_again(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SessionKey(Principal("u"), "a")
    place = DataDirectory._place
    deleted: list[bool] = []

    def deleted_just_then(of: DataDirectory, new: Path, key: SessionKey, commits: Commits) -> None:
        place(of, new, key, commits)
        if not deleted:
            deleted.append(data.delete_files(key))

    monkeypatch.setattr(DataDirectory, "_place", deleted_just_then)
    stored = data.prepare_files(key, *own())
    assert deleted == [True]
    assert (stored.root.is_dir(), stored.commits.deleted, data.stored(Principal("u"))) == (True, False, {"a"})
    # Who shares them shares their lock; and what takes its place too late does not do so in what comes after them.
    assert data.prepare_files(key, *own()).commits is stored.commits
    assert data.delete_files(key)
    with pytest.raises(FileNotFoundError), stored.commits:
        pass
    assert data.prepare_files(key, *own()).commits is not stored.commits


def test_preparation_and_deletion_at_the_same_time_both_succeed(data: DataDirectory) -> None:
    key = SessionKey(Principal("u"), "a")
    done = threading.Event()

    def prepare() -> None:
        for _ in range(500):
            data.prepare_files(key, *own())
            data.write_closed_note(key, b"how")

    def delete() -> None:
        while not done.is_set():
            data.delete_files(key)

    with ThreadPoolExecutor(4) as pool:
        deleting = pool.submit(delete)
        try:
            for preparing in [pool.submit(prepare) for _ in range(3)]:
                preparing.result()
        finally:
            done.set()
        deleting.result()
    data.delete_files(key)
    assert list((data.root / "workspaces").iterdir()) == []


def test_a_part_that_was_removed_from_a_workspace_is_made_again(data: DataDirectory) -> None:
    key = SessionKey(Principal("u"), "a")
    home = data.prepare_files(key, *own()).root.parent
    (home / "files").rmdir()
    assert data.prepare_files(key, *own()).root.is_dir()
    (home / "session.json").unlink()
    data.prepare_files(key, *own())
    assert data.stored(Principal("u")) == {"a"}
    assert [entry.name for entry in (data.root / "workspaces").iterdir()] == [key.workspace_id]


def test_files_that_cannot_be_made_leave_nothing(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data_directory, "write_atomically", full)
    with pytest.raises(DiskFull):
        data.prepare_files(SessionKey(Principal("u"), "a"), *own())
    assert list((data.root / "workspaces").iterdir()) == []


def test_files_of_another_images_user_are_handed_over_and_nothing_else(data: DataDirectory, tmp_path: Path) -> None:
    """As root; any other user's server runs every image as itself."""
    key = SessionKey(Principal("u"), "a")
    outside = tmp_path / "outside"
    outside.touch()
    files = data.prepare_files(key, *own()).root
    (files / "link").symlink_to(outside)
    (files / "directory").mkdir()
    (files / "directory" / "file").touch()
    stored = data.prepare_files(key, 4321, 4322)
    assert files.stat().st_uid == os.getuid()
    finish(data.change_owner(stored))
    expected = (4321, 4322) if os.geteuid() == 0 else own()
    for path in (files, files / "link", files / "directory", files / "directory" / "file"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == expected
    assert (outside.stat().st_uid, outside.stat().st_gid) == own()


def test_many_may_prepare_one_session_at_the_same_time(data: DataDirectory) -> None:
    owner = (4321, 4322) if os.geteuid() == 0 else own()
    for number in range(50):
        key = SessionKey(Principal("u"), str(number))
        start = threading.Barrier(8)

        def prepare(key: SessionKey = key, start: threading.Barrier = start) -> int:
            start.wait()
            return data.prepare_files(key, *owner).root.stat().st_uid

        with ThreadPoolExecutor(8) as pool:
            assert {future.result() for future in [pool.submit(prepare) for _ in range(8)]} == {owner[0]}
        assert sorted(path.name for path in data.files(key).parent.iterdir()) == ["files", "session.json"]


def test_who_prepares_a_session_second_keeps_the_files_of_the_first(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may have them already."""
    key = SessionKey(Principal("u"), "a")
    write_label, first = data_directory._write_label, list[int]()

    def overtaken(home: Path, key: SessionKey) -> None:
        monkeypatch.undo()
        first.append(data.prepare_files(key, *own()).root.stat().st_ino)
        write_label(home, key)

    monkeypatch.setattr(data_directory, "_write_label", overtaken)
    assert [data.prepare_files(key, *own()).root.stat().st_ino] == first


def test_a_file_of_the_servers_own_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "label").mkdir()  # what no file replaces
    with pytest.raises(OSError, match="label"):
        write_atomically(tmp_path / "label", "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["label"]


def test_a_deletion_that_is_broken_off_leaves_nothing_of_the_session(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_of_trouble(_path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    key = SessionKey(Principal("u"), "a")
    (data.prepare_files(key, *own()).root / "x").touch()
    with monkeypatch.context() as patched:
        patched.setattr(data_directory, "remove_tree", full_of_trouble)
        with pytest.raises(FileError, match="cannot all be deleted"):
            data.delete_files(key)
        data.remove_leftovers()  # as little can be done
    assert not data.has_files(key)
    assert data.sessions() == []
    assert list(data.prepare_files(key, *own()).root.iterdir()) == []
    data.remove_leftovers()
    assert [home.name for home in (data.root / "workspaces").iterdir()] == [key.workspace_id]


def test_files_that_are_deleted_while_they_are_handed_over_say_so(data: DataDirectory) -> None:
    key = SessionKey(Principal("u"), "a")
    stored = data.prepare_files(key, 1234, 100)
    handing = data.change_owner(stored)
    data.delete_files(key)
    with pytest.raises(FilesDeleted):
        list(handing)
