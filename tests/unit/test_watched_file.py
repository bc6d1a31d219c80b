"""Files of tokens and keys: who may read them, and when a change counts."""

import asyncio
import os
from pathlib import Path

import pytest

from kernelbridge import watched_file
from kernelbridge.errors import ConfigError
from kernelbridge.identity.token_file import add_token
from kernelbridge.watched_file import LARGEST, WatchedFile, refreshed


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def watch(path: Path, *, secret: bool = True) -> WatchedFile[str]:
    def parse(data: bytes) -> str:
        text = data.decode()
        if "wrong" in text:
            raise ValueError("line 1: it is wrong")
        return text

    return WatchedFile(path, parse, empty="", secret=secret, setting="--token-file")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_secret_is_its_owners_alone(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "tokens", "secret-value", mode)
    with pytest.raises(ConfigError, match=rf"--token-file: .*mode {mode:04o}\); run chmod 600") as refused:
        watch(path)
    assert "secret-value" not in str(refused.value)
    assert watch(path, secret=False).value == "secret-value"


def test_a_secret_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tokens", "x")
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        watch(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    write(tmp_path / "large", "x" * (LARGEST + 1))
    for name, reason in (
        ("fifo", "not a file"),
        (".", "Is a directory"),
        ("absent", "No such file"),
        ("large", "larger"),
    ):
        with pytest.raises(ConfigError, match=reason):
            watch(tmp_path / name)


def test_a_change_counts_when_it_has_lasted(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", "one")
    file = watch(path)
    file.refresh()
    write(path, "tw")  # an editor is in the middle of it
    file.refresh()
    assert file.value == "one"
    write(path, "two")
    file.refresh()
    assert file.value == "one"
    file.refresh()
    assert file.value == "two"


def test_a_replaced_file_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", "one")
    file = watch(path)
    write(tmp_path / "new", "two").rename(path)
    file.refresh()
    file.refresh()
    assert file.value == "two"


def test_a_mistake_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", "one")
    file = watch(path)
    for text, mode in (("wrong", 0o600), ("two", 0o644)):
        write(path, text, mode)
        file.refresh()
        file.refresh()
        assert file.value == "one"
    path.chmod(0o600)
    file.refresh()
    file.refresh()
    assert file.value == "two"


def test_a_file_that_is_removed_counts_as_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", "one")
    file = watch(path)
    path.unlink()
    file.refresh()
    assert file.value == "one"
    file.refresh()
    assert file.value == ""
    write(path, "two")
    file.refresh()
    file.refresh()
    assert file.value == "two"


async def test_a_file_is_looked_at_after_a_bug_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "REFRESH_SECONDS", 0.01)
    parsed: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def parse(data: bytes) -> str:
        text = data.decode()
        loop.call_soon_threadsafe(parsed.put_nowait, text)
        if text == "a bug":
            raise RuntimeError
        return text

    path = write(tmp_path / "secret", "one")
    async with asyncio.timeout(10), refreshed([WatchedFile(path, parse, empty="", secret=True, setting="--x")]):
        for text in ("a bug", "two"):
            write(path, text)
            while await parsed.get() != text:
                pass


def test_a_line_is_added(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    add_token(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600
    add_token(path, "two")
    assert path.read_text() == "one\ntwo\n"
    write(path, "no end")
    add_token(path, "three")
    assert path.read_text() == "no end\nthree\n"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        add_token(path, "four")
    assert path.read_text() == "no end\nthree\n"
