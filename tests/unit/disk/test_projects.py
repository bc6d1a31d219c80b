"""The numbers and limits of project quotas. What file systems make of them: `tests/faults/test_quotas.py`."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kernelbridge.aio.threads import finish
from kernelbridge.disk import projects as module
from kernelbridge.disk.limits import DiskLimits, Use
from kernelbridge.disk.projects import Projects
from kernelbridge.disk.session_disks import SessionDisks
from kernelbridge.errors import DiskLimitReached


class LeftoverQuotas:
    """A kernel in which earlier servers have left files in some projects."""

    def __init__(self, left: dict[int, Use]) -> None:
        self.left = left
        self.limits: dict[int, tuple[int, int]] = {}
        """KiB and inodes."""

    def __call__(self, _fd: int, command: int, project: int, data: ctypes.Array[ctypes.c_char]) -> None:
        if command == module._SET:
            size, _, _, files, *_ = module._QUOTA.unpack(data)
            self.limits[project] = size, files
        else:
            use = self.left.get(project, Use(0, 0))
            data.raw = module._QUOTA.pack(0, 0, use.size, 0, 0, use.files, 0, 0, 0)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> LeftoverQuotas:
    kernel = LeftoverQuotas({100: Use(4096, 1), 102: Use(0, 3)})
    monkeypatch.setattr(module, "_quotactl", kernel)
    return kernel


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[Projects]:
    with closing(Projects(os.open(tmp_path, os.O_RDONLY), first=100)) as projects:
        yield projects


def test_a_session_gets_a_number_in_which_nobody_has_files(projects: Projects) -> None:
    assert [projects._take(name) for name in ("a", "b", "c")] == [101, 103, 104]


def test_a_limit_is_at_least_what_was_asked_for(projects: Projects, kernel: LeftoverQuotas) -> None:
    """It is set in whole KiB, of which 0 would be no limit."""
    projects._set(projects._take("a"), DiskLimits(1500, 7))
    projects._set(projects._take("b"), DiskLimits(100, 7))
    assert kernel.limits == {101: (2, 7), 103: (1, 7)}


def test_a_session_keeps_its_number(
    projects: Projects, kernel: LeftoverQuotas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.numbers["a"] = 150
    monkeypatch.setattr(module, "_attributes", lambda _fd: (module._INHERIT, 0, 0, 150, 0))
    finish(projects.apply_limits("a", tmp_path, DiskLimits(1500, 7)))
    assert (projects.numbers, kernel.limits) == ({"a": 150}, {150: (2, 7)})


def test_a_session_is_asked_for_its_use_before_each_write(
    projects: Projects, kernel: LeftoverQuotas, tmp_path: Path
) -> None:
    """Its programs write, too, and ext4 refuses nothing to root."""
    limits = DiskLimits(10_000, 7)
    disk = SessionDisks(limits, projects).session("a", tmp_path)
    project = projects._take("a")
    finish(disk.admitting(100, 1, "not saved"))
    kernel.left[project] = Use(10_000, 2)
    with pytest.raises(DiskLimitReached, match="no room"):
        finish(disk.admitting(100, 1, "not saved"))


def test_a_number_is_given_back_without_a_limit(projects: Projects, kernel: LeftoverQuotas) -> None:
    projects._set(projects._take("a"), DiskLimits(1500, 7))
    projects.release("a")
    assert kernel.limits == {101: (0, 0)}
    assert projects._take("b") == 101
