"""Control groups: version 1 and 2 on a tree of plain files, and the machine's own where this user may."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from kernelbridge.runtimes.base import Limits
from kernelbridge.runtimes.cgroups import CONTROLLERS, Cgroups
from kernelbridge.runtimes.oom_notice import EXPLAINS, KillsSeen

LIMITS = Limits(memory=100 << 20, cpus=1.5, pids=50)


def plain_tree(tmp_path: Path, mounts: Mapping[str, str], membership: str) -> Path:
    """Make what /proc/self says of cgroups mounted below `tmp_path`."""
    lines = []
    for directory, options in mounts.items():
        where = tmp_path / directory
        where.mkdir()
        kind = "cgroup2" if options == "2" else "cgroup"
        lines.append(f"31 23 0:28 / {where} rw - {kind} cgroup rw{'' if options == '2' else ',' + options}")
        if options == "2":
            (where / "cgroup.controllers").write_text("cpu memory pids\n")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text("".join(f"{line}\n" for line in lines))
    (proc / "cgroup").write_text(membership)
    return proc


def test_version_1_belongs_to_root(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"m": "memory", "p": "pids", "c": "cpu,cpuacct"}, "4:memory:/x\n")
    assert set(Cgroups.find("i", proc=proc, euid=1000).missing) == set(CONTROLLERS)
    assert set(Cgroups.find("i", proc=proc, euid=0).controllers) == set(CONTROLLERS)


def test_version_1_settings_that_the_kernel_must_take(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"p": "pids"}, "")
    cgroups = Cgroups.find("i", proc=proc, euid=0)
    cgroup = cgroups.create("s", LIMITS)
    assert (tmp_path / "p/kernelbridge/i/s/pids.max").read_text() == "51"  # bubblewrap's monitor is one of them
    assert cgroup.entrances == [tmp_path / "p/kernelbridge/i/s/cgroup.procs"]


def test_version_2_passes_its_controllers_on(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"u": "2"}, "0::/\n")
    cgroups = Cgroups.find("i", proc=proc, euid=0)
    assert cgroups.missing == {}
    for path in ("u", "u/kernelbridge", "u/kernelbridge/i"):
        assert (tmp_path / path / "cgroup.subtree_control").read_text().startswith("+")
    cgroup = cgroups.create("s", LIMITS)
    made = tmp_path / "u/kernelbridge/i/s"
    assert (made / "memory.max").read_text() == str(100 << 20)
    assert (made / "cpu.max").read_text() == "150000 100000"
    assert cgroup.entrances == [made / "cgroup.procs"]
    (made / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert cgroup.oom_kills() == 2


def test_version_2_of_an_ordinary_user_is_where_it_was_put(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"u": "2"}, "0::/user.slice/kernelbridge.service/kernelbridge-server\n")
    (tmp_path / "u/user.slice").mkdir()
    cgroups = Cgroups.find("i", proc=proc, euid=1000)
    assert (tmp_path / "u/user.slice/kernelbridge.service/kernelbridge/i").is_dir()
    assert set(cgroups.controllers) == set(CONTROLLERS)


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    cgroups = Cgroups.find("i", proc=plain_tree(tmp_path, {}, ""), euid=0)
    assert not cgroups.controllers
    assert all("no cgroup file system" in why for why in cgroups.missing.values())
    cgroups.close()


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"p": "pids"}, "")
    (tmp_path / "p/kernelbridge").write_text("in the way")
    cgroups = Cgroups.find("i", proc=proc, euid=0)
    assert "pids" not in cgroups.controllers
    assert "kernelbridge" in cgroups.missing["pids"]


@pytest.fixture
def real() -> Cgroups:
    return Cgroups.find(f"test{os.getpid():x}")


def test_leftovers_are_reclaimed_with_what_runs_in_them(real: Cgroups) -> None:
    if not real.controllers:
        assert set(real.missing) == set(CONTROLLERS)  # this user may set none, and is told so
        return
    left = real.create("left", LIMITS)
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        for entrance in left.entrances:
            entrance.write_text(str(sleeping.pid))
        later = Cgroups.find(f"test{os.getpid():x}")
        alive = later.create("alive", LIMITS)
        assert later.reclaim() == 1
        assert sleeping.wait(60) == -9
    assert later.reclaim() == 0
    assert all(entrance.exists() for entrance in alive.entrances)
    assert not any(entrance.parent.exists() for entrance in left.entrances)
    assert later.release("alive", alive, kill=True)
    later.close()
    assert not any(entrance.parent.parent.exists() for entrance in alive.entrances)


def test_kills_that_are_over_explain_no_later_end() -> None:
    kills = KillsSeen()
    assert not kills.seen(0, 10.0)
    assert kills.seen(1, 20.0)
    assert kills.over(20.0 + EXPLAINS) == 0
    assert kills.seen(3, 21.0)
    assert kills.over(21.0 + EXPLAINS) == 0
    assert kills.over(21.1 + EXPLAINS) == 3
    assert not kills.seen(3, 30.0)
    assert kills.seen(4, 30.0)
    assert kills.over(31.0) == 3
