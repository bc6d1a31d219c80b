"""The data directory: no name becomes a path, one server at a time."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.errors import ConfigError
from kernelbridge.workspace.layout import DataDirectory, SessionKey

principals = st.none() | st.text()


@given(principals, st.text(), principals, st.text())
def test_different_sessions_have_different_workspaces(a: str | None, s: str, b: str | None, t: str) -> None:
    first, second = SessionKey(a, s), SessionKey(b, t)
    assert (first == second) == (first.workspace_id == second.workspace_id)
    assert first.workspace_id.isalnum()


def test_nobody_is_not_the_user_called_none_or_the_empty_user() -> None:
    ids = {SessionKey(principal, "s").workspace_id for principal in (None, "None", "", "anonymous")}
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


def test_a_data_directory_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data-dir"):
        DataDirectory.open(tmp_path / "file" / "data")


def test_files_belong_to_the_sandbox_and_the_rest_to_the_server(tmp_path: Path) -> None:
    data = DataDirectory.open(tmp_path / "data")
    key = SessionKey("user/../../etc", "s")
    files = data.prepare_files(key, 1000, 100)
    (files / "kept").write_text("x")
    assert data.prepare_files(key, 1000, 100) == files
    assert (files / "kept").exists()
    assert tmp_path / "data" in files.parents
    if os.geteuid() == 0:
        assert (files.stat().st_uid, files.stat().st_gid) == (1000, 100)
    assert stat.S_IMODE(files.parent.stat().st_mode) == 0o700
    data.close()


def test_sockets_start_empty_and_enterable_whatever_the_umask(tmp_path: Path) -> None:
    data = DataDirectory.open(tmp_path / "data")
    key = SessionKey(None, "s")
    previous = os.umask(0o077)
    try:
        sockets = data.prepare_sockets(key)
        (sockets / "k1").mkdir()
        sockets = data.prepare_sockets(key)
    finally:
        os.umask(previous)
    assert list(sockets.iterdir()) == []
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o755
    data.remove_sockets(key)
    data.remove_sockets(key)
    assert not sockets.exists()
    data.close()
