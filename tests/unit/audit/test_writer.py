import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelbridge.audit import writer as module
from kernelbridge.audit.entries import Entry
from kernelbridge.audit.log_file import LogFile
from kernelbridge.audit.writer import BATCH, MOST_BYTES, MOST_ENTRIES, QUEUE_FULL, Writer


class StalledDisk:
    """Takes nothing until it is released, as a disk of a network that is gone."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self.lines: list[bytes] = []

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        self.entered.set()
        assert self.released.wait(60)
        self.lines.extend(lines)
        return len(lines), None

    def close(self) -> None:
        pass

    @property
    def entries(self) -> list[dict[str, object]]:
        return [json.loads(each) for each in self.lines]


def entry(number: int, code: str | None = None) -> Entry:
    return Entry(time.time(), "cell", {"request": str(number)}, code)


def test_entries_are_written_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    writer = Writer(LogFile(path), with_code=False, on_lost=lambda _: None)
    for number in range(3 * BATCH):
        writer.put(entry(number))
    writer.close()
    written = [json.loads(each)["request"] for each in path.read_bytes().splitlines()]
    assert written == [str(number) for number in range(3 * BATCH)]


def test_a_stalled_disk_delays_nobody_and_what_does_not_fit_is_counted() -> None:
    disk, lost = StalledDisk(), [0]

    def count(entries: int) -> None:
        lost[0] += entries

    writer = Writer(disk, with_code=False, on_lost=count)
    writer.put(entry(-1))
    assert disk.entered.wait(60)
    for number in range(MOST_ENTRIES + 7):
        writer.put(entry(number))
    missing = lost[0]
    assert missing == 8  # the first one waits as well, in the hands of the disk
    disk.released.set()
    while len(disk.lines) < MOST_ENTRIES:
        time.sleep(0)
    writer.put(entry(-2))
    writer.close()
    *_, last, gap, after = disk.entries
    assert last["request"] == str(MOST_ENTRIES - 2)
    assert (gap["event"], gap["lost"], gap["reason"]) == ("gap", missing, QUEUE_FULL)
    assert after["request"] == "-2"


def test_what_waits_is_bounded_in_bytes_but_one_entry_always_fits() -> None:
    disk, lost = StalledDisk(), [0]

    def count(entries: int) -> None:
        lost[0] += entries

    writer = Writer(disk, with_code=False, on_lost=count)
    large = "x" * (MOST_BYTES + 1)
    writer.put(entry(0, large))
    writer.put(entry(1, large))
    assert lost == [1]
    disk.released.set()
    writer.close()
    assert [each.get("lost") for each in disk.entries] == [None, 1]


def test_a_full_disk_is_survived_and_the_gap_is_in_the_next_line(tmp_path: Path) -> None:
    path, lost = tmp_path / "audit.log", [0]

    def count(entries: int) -> None:
        lost[0] += entries

    path.symlink_to("/dev/full")
    writer = Writer(LogFile(path), with_code=False, on_lost=count)
    for number in range(3):
        writer.put(entry(number))
    while lost[0] < 3:
        time.sleep(0)
    path.unlink()
    writer.put(entry(3))
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        time.sleep(0)
    writer.put(entry(4))
    writer.close()
    gap, *after = (json.loads(each) for each in path.read_bytes().splitlines())
    assert (gap["event"], gap["lost"], gap["reason"]) == ("gap", 3, "No space left on device")
    assert [each.get("request") for each in after] == ["3", "4"]
    assert lost == [3]


def test_a_disk_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = StalledDisk()
    writer = Writer(disk, with_code=False, on_lost=lambda _: None)
    writer.put(entry(0))
    assert disk.entered.wait(60)
    monkeypatch.setattr(module, "LAST", 0.05)
    writer.close()
    assert disk.lines == []
    disk.released.set()
