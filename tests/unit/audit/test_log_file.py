import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernelbridge.audit.log_file import LogFile


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: it ends in the middle of a line, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_are_added_to_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for number in (1, 2):
        file = LogFile(path)
        assert file.write([b"%d\n" % number]) == (1, None)
        file.close()
    assert path.read_bytes() == b"1\n2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_disk_that_is_full_within_a_line_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    file = LogFile(path)
    file.write([b"first\n"])
    with room_for(15):
        written, problem = file.write([b"second\n", b"third\n", b"fourth\n"])
    assert written == 1
    assert problem is not None
    assert problem.errno == errno.EFBIG
    assert path.read_bytes() == b"first\nsecond\n"
    assert file.write([b"later\n"]) == (1, None)
    assert path.read_bytes() == b"first\nsecond\nlater\n"
    file.close()


def test_it_follows_its_name_when_the_file_is_rotated(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    file = LogFile(path)
    file.write([b"1\n"])
    path.rename(old)
    file.write([b"2\n"])
    path.unlink()
    file.write([b"3\n"])
    os.truncate(path, 0)
    file.write([b"4\n"])
    file.close()
    assert old.read_bytes() == b"1\n"
    assert path.read_bytes() == b"4\n"


def test_a_file_that_was_rotated_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    file = LogFile(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(3):
        path.rename(tmp_path / f"audit.log.{number}")
        assert file.write([b"line\n"]) == (1, None)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    file.close()


def test_while_the_new_file_cannot_be_made_the_old_one_is_written(tmp_path: Path) -> None:
    place, moved = tmp_path / "logs", tmp_path / "moved"
    place.mkdir()
    file = LogFile(place / "audit.log")
    file.write([b"1\n"])
    place.rename(moved)
    assert file.write([b"2\n"]) == (1, None)
    assert (moved / "audit.log").read_bytes() == b"1\n2\n"
    place.mkdir()
    file.write([b"3\n"])
    file.close()
    assert (place / "audit.log").read_bytes() == b"3\n"


def test_a_pipe_that_nobody_reads_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    try:
        LogFile(tmp_path / "pipe")
    except OSError as exc:
        assert exc.errno == errno.ENXIO  # noqa: PT017 - there is a message for each
    else:
        raise AssertionError
