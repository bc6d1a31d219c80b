"""The file that tells the next server what runs."""

from pathlib import Path

import pytest

from kernelbridge.workspace.adoption.state_file import StateFile


@pytest.fixture
def failures() -> list[OSError]:
    return []


@pytest.fixture
def file(tmp_path: Path, failures: list[OSError]) -> StateFile:
    return StateFile(tmp_path / "state", failed=failures.append)


def test_its_content_stays_when_it_is_opened_again(file: StateFile, tmp_path: Path, failures: list[OSError]) -> None:
    file.open()
    file.write(b"long content")
    file.write(b"new")
    file.open()
    assert file.read() == b"newg content"
    file.close()
    file.close()
    file.open()
    assert file.read() == b"newg content"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    file.empty()
    assert file.read() == b""
    file.remove()
    file.remove()
    assert (list(tmp_path.iterdir()), failures) == ([], [])


def test_what_is_appended_is_cut_at_the_limit(file: StateFile) -> None:
    file.open()
    assert file.append(b"1234", 6)
    assert file.append(b"56", 6)
    assert not file.append(b"7", 6)
    assert file.read() == b"123456"
    file.empty()
    assert not file.append(b"1234567", 6)
    assert file.read() == b"123456"
    file.close()


def test_nothing_is_written_before_it_is_opened_and_after_it_is_closed(file: StateFile, tmp_path: Path) -> None:
    file.write(b"x")
    file.empty()
    assert file.append(b"x", 1)
    assert file.read() == b""
    assert list(tmp_path.iterdir()) == []
    file.open()
    file.close()
    file.write(b"x")
    assert (tmp_path / "state").read_bytes() == b""


def test_errors_are_passed_on_and_raised_nowhere(tmp_path: Path, failures: list[OSError]) -> None:
    StateFile(tmp_path / "none/state", failed=failures.append).open()
    assert [type(each) for each in failures] == [FileNotFoundError]
    full = StateFile(Path("/dev/full"), failed=failures.append)
    full.open()
    full.write(b"x")
    full.empty()
    assert full.append(b"x", 10)
    assert len(failures) == 4
    full.close()
