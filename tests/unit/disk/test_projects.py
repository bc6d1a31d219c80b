"""The numbers and limits of project quotas. What file systems make of them: `tests/faults/test_quotas.py`."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
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


class InodeProjects:
    """A kernel's projects of inodes, and flags that show whether new files get them."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[int, int]] = {}
        """Flags and project, by inode."""

    def __call__(self, fd: int, request: int, argument: bytes) -> bytes:
        inode = os.fstat(fd).st_ino
        if request == module._GET_ATTRIBUTES:
            flags, project = self.of.get(inode, (1, 0))
            return module._ATTRIBUTES.pack(flags, 2, 3, project, 4)
        flags, extent, extents, project, copies = module._ATTRIBUTES.unpack(argument)
        assert (request, extent, extents, copies) == (module._SET_ATTRIBUTES, 2, 3, 4)
        self.of[inode] = flags, project
        return argument


@pytest.fixture
def inodes(monkeypatch: pytest.MonkeyPatch) -> InodeProjects:
    inodes = InodeProjects()
    monkeypatch.setattr(fcntl, "ioctl", inodes)
    return inodes


def test_all_that_is_in_a_directory_enters_its_project(
    projects: Projects, inodes: InodeProjects, tmp_path: Path
) -> None:
    root = tmp_path / "files"
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/f").write_text("x")
    (root / "link").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    finish(projects.apply_limits("a", root, DiskLimits(1500, 7)))
    inherited = {path: inodes.of.pop(path.stat().st_ino) for path in (root, root / "d", root / "d/e")}
    assert set(inherited.values()) == {(1 | module._INHERIT, 101)}
    assert inodes.of == {(root / "d/e/f").stat().st_ino: (1, 101)}


def test_a_directory_is_entered_once(projects: Projects, inodes: InodeProjects, tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    finish(projects.apply_limits("a", root, DiskLimits(1500, 7)))
    (root / "new").write_text("")
    finish(projects.apply_limits("a", root, DiskLimits(2048, 8)))
    assert (root / "new").stat().st_ino not in inodes.of


def test_the_project_of_a_directory_is_known_to_the_next_server(
    projects: Projects, inodes: InodeProjects, tmp_path: Path
) -> None:
    for name, found in (
        ("ours", (module._INHERIT, 100)),
        ("last", (module._INHERIT, 100 + module._PROJECTS - 1)),
        ("plain", (0, 101)),
        ("lower", (module._INHERIT, 99)),
        ("higher", (module._INHERIT, 100 + module._PROJECTS)),
    ):
        (tmp_path / name).mkdir()
        inodes.of[(tmp_path / name).stat().st_ino] = found
        projects.know(name, tmp_path / name)
    projects.know("none", tmp_path / "none")
    assert projects.numbers == {"ours": 100, "last": 100 + module._PROJECTS - 1}


def test_a_project_that_was_never_used_is_empty(projects: Projects, monkeypatch: pytest.MonkeyPatch) -> None:
    projects.numbers["a"] = 100
    assert projects.use("a") == Use(4096, 1)
    assert projects.use("b") is None

    def fail(number: int) -> Callable[..., None]:
        def quotactl(*_: object) -> None:
            raise OSError(number, "no")

        return quotactl

    for number in (errno.ENOENT, errno.ESRCH):
        monkeypatch.setattr(module, "_quotactl", fail(number))
        assert projects.use("a") == Use(0, 0)
    monkeypatch.setattr(module, "_quotactl", fail(errno.EIO))
    with pytest.raises(OSError, match="no"):
        projects.use("a")
    projects.release("a")
    assert projects.numbers == {}


@pytest.mark.parametrize(("line", "may"), [("CapEff:\t000001ffffffffff", True), ("CapEff:\t00000000a80425fb", False)])
def test_only_a_process_with_the_capability_may_set_quotas(tmp_path: Path, line: str, *, may: bool) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\nCapPrm:\t0\n{line}\n")
    assert module.may_set_quotas(tmp_path / "status") is may
    (tmp_path / "status").write_text("Name:\tx\n")
    assert not module.may_set_quotas(tmp_path / "status")


@pytest.mark.parametrize("enforced", [True, False])
def test_servers_on_one_file_system_have_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, enforced: bool
) -> None:
    def state(_fd: int, command: int, _project: int, data: ctypes.Array[ctypes.c_char]) -> None:
        assert (command, data[0]) == (module._STATE, b"\x01")
        flags = module._ENFORCED if enforced else 0xFFFF ^ module._ENFORCED
        data.raw = b"\0\0" + flags.to_bytes(2, "little")

    monkeypatch.setattr(module, "_quotactl", state)
    monkeypatch.setattr(module, "may_set_quotas", lambda: True)
    found = [Projects.find(tmp_path, instance=name) for name in ("a", "b")]
    if enforced:
        firsts = [each._first for each in found if each is not None]
        assert len(set(firsts)) == 2
        assert all(first >= module._PROJECTS and first % module._PROJECTS == 0 for first in firsts)
    else:
        assert found == [None, None]
    for each in found:
        if each is not None:
            each.close()
