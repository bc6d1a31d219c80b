"""Control groups: version 1 and 2 on a tree of plain files, and the machine's own where this user may."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from kernelbridge.runtimes.contract import OOM_EXIT_SECONDS, Limits
from kernelbridge.runtimes.local import cgroups
from kernelbridge.runtimes.local.cgroups import CONTROLLERS, Cgroups, settings
from kernelbridge.runtimes.local.oom_notice import KillsSeen

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


def test_the_last_server_leaves_no_group(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"m": "memory", "p": "pids"}, "")
    first, second = (Cgroups.find(instance, proc=proc, euid=0) for instance in "ab")
    first.close()
    assert [path.name for path in (tmp_path / "p/kernelbridge").iterdir()] == ["b"]
    second.close()
    for mount in "mp":
        assert not (tmp_path / mount / "kernelbridge").exists()


def test_version_1_settings_that_the_kernel_must_take(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"p": "pids"}, "")
    cgroups = Cgroups.find("i", proc=proc, euid=0)
    cgroup = cgroups.create("s", LIMITS)
    assert (tmp_path / "p/kernelbridge/i/s/pids.max").read_text() == "51"  # bubblewrap's monitor is one of them
    assert cgroup.entrances == [tmp_path / "p/kernelbridge/i/s/cgroup.procs"]


@pytest.mark.parametrize(
    ("name", "version", "written"),
    [
        (
            "memory",
            1,
            [
                ("memory.limit_in_bytes", "104857600"),
                ("memory.memsw.limit_in_bytes", "104857600"),
                ("memory.kmem.tcp.limit_in_bytes", "13107200"),
            ],
        ),
        ("memory", 2, [("memory.max", "104857600"), ("memory.swap.max", "0")]),
        ("pids", 1, [("pids.max", "51")]),
        ("pids", 2, [("pids.max", "51")]),
        ("cpu", 1, [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000")]),
        ("cpu", 2, [("cpu.max", "150000 100000")]),
    ],
)
def test_what_is_written_for_each_controller(name: str, version: int, written: list[tuple[str, str]]) -> None:
    """Memory without swap, socket buffers, processes with bubblewrap's monitor, processor time."""
    assert settings(name, version, LIMITS) == written


def test_limits_are_never_below_what_a_kernel_takes() -> None:
    assert settings("cpu", 2, Limits(cpus=0.001)) == [("cpu.max", "1000 100000")]
    assert Limits(memory=64 << 20).socket_buffers == 8 << 20


def test_a_file_that_the_kernel_does_not_have_is_left_out(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"m": "memory"}, "")
    Cgroups.find("i", proc=proc, euid=0).create("s", LIMITS)
    made = tmp_path / "m/kernelbridge/i/s"
    assert {path.name: path.read_text() for path in made.iterdir()} == {"memory.limit_in_bytes": "104857600"}


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
    (made / "memory.current").write_text("4096\n")
    assert cgroup.memory() == 4096


def test_version_2_of_an_ordinary_user_is_where_it_was_put(tmp_path: Path) -> None:
    proc = plain_tree(tmp_path, {"u": "2"}, "0::/user.slice/kernelbridge.service/kernelbridge-server\n")
    (tmp_path / "u/user.slice").mkdir()
    cgroups = Cgroups.find("i", proc=proc, euid=1000)
    assert (tmp_path / "u/user.slice/kernelbridge.service/kernelbridge/i").is_dir()
    assert set(cgroups.controllers) == set(CONTROLLERS)


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    cgroups = Cgroups.find("i", proc=plain_tree(tmp_path, {}, ""), euid=0)
    assert not cgroups.controllers
    assert cgroups.missing == dict.fromkeys(CONTROLLERS, "no cgroup file system is mounted")
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
    """Where this user may set none there is nothing to reclaim."""
    assert set(real.controllers) | set(real.missing) == set(CONTROLLERS)
    left = real.create("left", LIMITS)
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        for entrance in left.entrances:
            entrance.write_text(str(sleeping.pid))
        later = Cgroups.find(f"test{os.getpid():x}")
        alive = later.create("alive", LIMITS)
        assert later.reclaim() == ({"left"} if real.controllers else set())
        if not real.controllers:
            sleeping.terminate()
        assert sleeping.wait(60) == (-9 if real.controllers else -15)
    assert later.reclaim() == set()
    assert all(entrance.exists() for entrance in alive.entrances)
    assert not any(entrance.parent.exists() for entrance in left.entrances)
    assert later.release("alive", alive, kill=True)
    later.close()
    assert not any(entrance.parent.parent.exists() for entrance in alive.entrances)


def test_kills_that_are_over_explain_no_later_end() -> None:
    kills = KillsSeen()
    assert not kills.seen(0, 10.0)
    assert kills.seen(1, 20.0)
    assert kills.over(20.0 + OOM_EXIT_SECONDS) == 0
    assert kills.seen(3, 21.0)
    assert kills.over(21.0 + OOM_EXIT_SECONDS) == 0
    assert kills.over(21.1 + OOM_EXIT_SECONDS) == 3
    assert not kills.seen(3, 30.0)
    assert kills.seen(4, 30.0)
    assert kills.over(31.0) == 3


def test_a_group_that_is_gone_counts_as_removed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "used/below").mkdir(parents=True)
    for kill in (True, False):
        assert cgroups._remove(tmp_path / "none", kill=kill)
    assert cgroups._remove(tmp_path / "empty", kill=False)
    assert not cgroups._remove(tmp_path / "used", kill=False)
    assert not (tmp_path / "empty").exists()


def test_what_is_in_a_group_is_ended_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_END_SECONDS", 0.05)
    with subprocess.Popen(["sleep", "60"]) as process:
        (tmp_path / "g").mkdir()
        (tmp_path / "g/cgroup.procs").write_text(f"{process.pid}\n999999999\n")
        assert not cgroups._remove(tmp_path / "g", kill=True)  # its file stays, as here no kernel removes it
        assert process.wait() == -signal.SIGKILL


def test_the_file_of_a_group_that_is_gone_is_empty_and_other_errors_are_raised(tmp_path: Path) -> None:
    assert cgroups._words(tmp_path / "none") == []
    with pytest.raises(IsADirectoryError):
        cgroups._read(tmp_path)


def test_the_server_s_own_group_is_found_below_its_leaf(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(f"4:memory:/x\n0::/user/{cgroups._LEAF}\n")
    assert cgroups._own(tmp_path / "cgroup") == "/user"
    (tmp_path / "cgroup").write_text("0::/user\n")
    assert cgroups._own(tmp_path / "cgroup") == "/user"
    (tmp_path / "cgroup").write_text("4:memory:/x\n")
    assert cgroups._own(tmp_path / "cgroup") == "/"


def test_a_controller_is_passed_on_by_a_server_that_is_alone_in_its_group(tmp_path: Path) -> None:
    passed_on = tmp_path / "cgroup.subtree_control"
    passed_on.mkdir()  # it cannot be written
    (tmp_path / "cgroup.procs").write_text("1\n")
    with pytest.raises(IsADirectoryError):
        cgroups._pass_on(passed_on, "pids")
    assert not (tmp_path / cgroups._LEAF).exists()
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    with pytest.raises(IsADirectoryError):
        cgroups._pass_on(passed_on, "pids")
    assert (tmp_path / cgroups._LEAF / "cgroup.procs").read_text() == str(os.getpid())
    passed_on.rmdir()
    cgroups._pass_on(passed_on, "pids")
    assert passed_on.read_text() == "+pids"
