"""Control groups of local sandboxes: memory, processes and CPU, where this server may set them.

Root uses `/sys/fs/cgroup/[CONTROLLER/]kernelbridge/INSTANCE/SANDBOX`, as container engines do. Other users need a
cgroup v2 subtree that was delegated to the server, as systemd does for `Delegate=yes`. Versions 1 and 2 may be mixed,
controller by controller. `Cgroups.missing` lists the controllers that cannot be used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernelbridge.runtimes.contract import Limits
from kernelbridge.runtimes.local.oom_notice import OomNotice, open_notice
from kernelbridge.runtimes.local.pidfd import open_pidfd, send_signal, wait_for_end

CONTROLLERS = ("memory", "pids", "cpu")
_PARENT = "kernelbridge"
_LEAF = "kernelbridge-server"
"""The group in a delegated subtree to which the server itself moves."""
_PERIOD = 100_000
"""Microseconds over which the share of CPU time is measured."""
_MONITORS = 1
"""Processes of a sandbox that are not its user's: bubblewrap's monitor."""
_END_SECONDS = 5.0
"""How long a process may take to die; otherwise its group stays until the next server's `reclaim`."""
_RETRY_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Controller:
    """Where a controller is."""

    name: str
    version: int
    home: Path
    """The directory in which this server may make its own."""


class Cgroup:
    """The control groups of one sandbox: one directory in each hierarchy that its controllers are in."""

    def __init__(self, directories: Mapping[str, Path], versions: Mapping[str, int]) -> None:
        self._directories = dict(directories)
        self._versions = dict(versions)

    @property
    def entrances(self) -> list[Path]:
        """The files to which a process writes its pid to enter the groups."""
        return [path / "cgroup.procs" for path in dict.fromkeys(self._directories.values())]

    def oom_kills(self) -> int:
        """Return how often the kernel's out-of-memory killer ended something in it."""
        home = self._directories.get("memory")
        if home is None:
            return 0
        path = home / ("memory.events" if self._versions["memory"] == 2 else "memory.oom_control")  # noqa: PLR2004  the version
        return next((int(line.split()[1]) for line in _read(path).splitlines() if line.startswith("oom_kill ")), 0)

    def memory(self) -> int | None:
        """Return how many bytes of memory are used in it; None if that is not counted."""
        home = self._directories.get("memory")
        if home is None:
            return None
        name = "memory.current" if self._versions["memory"] == 2 else "memory.usage_in_bytes"  # noqa: PLR2004  the version
        used = _read(home / name).strip()
        return int(used) if used.isdigit() else None

    def crowded(self) -> bool | None:
        """Return whether it has nine tenths of the processes that it may have; None without a limit."""
        home = self._directories.get("pids")
        most, now = ("", "") if home is None else (_read(home / name).strip() for name in ("pids.max", "pids.current"))
        return int(now) * 10 >= int(most) * 9 if most.isdigit() and now.isdigit() else None

    def oom_notice(self) -> OomNotice | None:
        """Watch for out-of-memory kills; None if the kernel cannot report them."""
        home = self._directories.get("memory")
        if home is None:
            return None
        with contextlib.suppress(OSError):
            return open_notice(home, self._versions["memory"])
        return None

    def remove(self, *, kill: bool) -> bool:
        """Remove it; return whether it is gone. With `kill`, end what still runs in it first; then it blocks."""
        directories = list(dict.fromkeys(self._directories.values()))
        left = [path for path in directories if not _remove(path, kill=kill)]
        return not left


class Cgroups:
    """Makes the control groups of one server's sandboxes."""

    def __init__(self, controllers: Mapping[str, Controller], instance: str, missing: Mapping[str, str]) -> None:
        self._controllers = dict(controllers)
        self._instance = instance
        self._live: set[str] = set()
        self.missing: dict[str, str] = dict(missing)
        """Controllers that cannot be used, with the reason."""

    @classmethod
    def find(cls, instance: str, *, proc: Path = Path("/proc/self"), euid: int | None = None) -> Cgroups:
        """Find what this server may use, by making its own directory in each hierarchy; blocking."""
        root = (os.geteuid() if euid is None else euid) == 0
        homes, missing = _homes(proc, root=root)
        usable: dict[str, Controller] = {}
        for name, controller in homes.items():
            try:
                _open_parents(controller, instance)
            except OSError as exc:
                missing[name] = f"{exc.strerror} at {exc.filename or controller.home}"
            else:
                usable[name] = controller
        return cls(usable, instance, missing)

    @property
    def controllers(self) -> Mapping[str, Controller]:
        """The usable controllers, by name."""
        return self._controllers

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Make the control groups of the sandbox `name`; raises OSError, and then leaves nothing."""
        directories = {key: self._base(key) / name for key in self._controllers}
        versions = {key: controller.version for key, controller in self._controllers.items()}
        cgroup = Cgroup(directories, versions)
        try:
            for path in dict.fromkeys(directories.values()):
                path.mkdir()
            for key, controller in self._controllers.items():
                for file, value in settings(key, controller.version, limits):
                    target = directories[key] / file
                    if target.exists() or file in _REQUIRED:
                        target.write_text(value, encoding="ascii")
        except OSError:
            cgroup.remove(kill=False)
            raise
        self._live.add(name)
        return cgroup

    def adopt(self, name: str) -> Cgroup | None:
        """Return the control groups of a sandbox that an earlier server made; None if it has none."""
        directories = {key: path for key in self._controllers if (path := self._base(key) / name).is_dir()}
        if not directories:
            return None
        self._live.add(name)
        return Cgroup(directories, {key: self._controllers[key].version for key in directories})

    def leave(self, name: str) -> None:
        """Keep a sandbox's control groups when this server ends."""
        self._live.discard(name)

    def release(self, name: str, cgroup: Cgroup, *, kill: bool) -> bool:
        """Remove a sandbox's control groups as `Cgroup.remove` does. Idempotent."""
        gone = cgroup.remove(kill=kill)
        if gone:
            self._live.discard(name)
        return gone

    def reclaim(self) -> set[str]:
        """Remove the groups that an earlier server left, with their processes; return their names. Blocking."""
        left: set[str] = set()
        for base in self._bases():
            with contextlib.suppress(FileNotFoundError):
                left |= {path.name for path in base.iterdir() if path.is_dir()} - self._live
        for name in left:
            for base in self._bases():
                _remove(base / name, kill=True)
        return left

    def close(self) -> None:
        """Remove all groups with their processes, and the server's own directories if they are empty.

        Blocking. Idempotent.
        """
        for base in self._bases():
            for name in self._live:
                _remove(base / name, kill=True)
            for path in (base, base.parent):
                with contextlib.suppress(OSError):  # another sandbox or server uses it
                    path.rmdir()

    def _base(self, name: str) -> Path:
        return self._controllers[name].home / _PARENT / self._instance

    def _bases(self) -> list[Path]:
        return list(dict.fromkeys(map(self._base, self._controllers)))


_REMOVED = frozenset({errno.ENOENT, errno.ENODEV})
"""Errors of a file whose group has been removed, before or after it was opened."""
_REQUIRED = frozenset({"memory.limit_in_bytes", "memory.max", "pids.max", "cpu.cfs_quota_us", "cpu.max"})


def settings(name: str, version: int, limits: Limits) -> list[tuple[str, str]]:
    """Return what to write for a controller, in order, as (file, value). A kernel need not have each file."""
    quota = str(max(1000, int(limits.cpus * _PERIOD)))
    memory, pids = str(limits.memory), str(limits.pids + _MONITORS)
    table = {
        # Memory first: the limit with swap may not be lower. A kernel that does not count swap has no file for it.
        # Version 1 counts socket buffers separately, and only if they have a limit; version 2 counts them as memory.
        ("memory", 1): [
            ("memory.limit_in_bytes", memory),
            ("memory.memsw.limit_in_bytes", memory),
            ("memory.kmem.tcp.limit_in_bytes", str(limits.socket_buffers)),
        ],
        ("memory", 2): [("memory.max", memory), ("memory.swap.max", "0")],
        ("pids", 1): [("pids.max", pids)],
        ("pids", 2): [("pids.max", pids)],
        ("cpu", 1): [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", quota)],
        ("cpu", 2): [("cpu.max", f"{quota} {_PERIOD}")],
    }
    return table[name, version]


def _homes(proc: Path, *, root: bool) -> tuple[dict[str, Controller], dict[str, str]]:
    """Return the controllers that were found, and the reasons for the others."""
    first, second = _mounts(proc / "mountinfo")
    found: dict[str, Controller] = {}
    missing: dict[str, str] = {}
    for name in CONTROLLERS:
        if name in first:
            if root:
                found[name] = Controller(name, 1, first[name])
            else:
                missing[name] = "only root may use cgroup v1"
        elif second is None:
            missing[name] = "no cgroup file system is mounted"
        elif name not in _words(second / "cgroup.controllers"):
            missing[name] = "the kernel does not offer this controller"
        elif root:
            found[name] = Controller(name, 2, second)
        else:
            found[name] = Controller(name, 2, second / _own(proc / "cgroup").lstrip("/"))
    return found, missing


def _mounts(mountinfo: Path) -> tuple[dict[str, Path], Path | None]:
    first: dict[str, Path] = {}
    second: Path | None = None
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        where = Path(left.split(" ")[4])
        if kind == "cgroup2" and second is None:
            second = where
        elif kind == "cgroup":
            for option in options.split(","):
                first.setdefault(option, where)
    return first, second


def _own(membership: Path) -> str:
    for line in membership.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        if line.startswith("0::"):
            return line[3:].removesuffix(f"/{_LEAF}")
    return "/"


def _words(path: Path) -> list[str]:
    return _read(path).split()


def _read(path: Path) -> str:
    """Return a file's text; empty if its group has been removed."""
    try:
        return path.read_text(encoding="ascii")
    except OSError as exc:
        if exc.errno not in _REMOVED:
            raise
        return ""


def _open_parents(controller: Controller, instance: str) -> None:
    if controller.version == 1:
        (controller.home / _PARENT / instance).mkdir(parents=True, exist_ok=True)
        return
    # Version 2: a directory has a controller only if all above it pass it on.
    for path in (controller.home, controller.home / _PARENT, controller.home / _PARENT / instance):
        path.mkdir(exist_ok=True)
        passed_on = path / "cgroup.subtree_control"
        if controller.name not in _words(passed_on):
            _pass_on(passed_on, controller.name)


def _pass_on(passed_on: Path, name: str) -> None:
    try:
        passed_on.write_text(f"+{name}", encoding="ascii")
    except OSError:
        # A group that passes on a controller must have no process; if the server is alone in it, it moves below.
        home = passed_on.parent
        if _words(home / "cgroup.procs") != [str(os.getpid())]:
            raise
        leaf = home / _LEAF
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        passed_on.write_text(f"+{name}", encoding="ascii")


def _remove(path: Path, *, kill: bool) -> bool:
    if not kill:
        return _rmdir(path)
    end = time.monotonic() + _END_SECONDS
    while not _rmdir(path):
        for word in _words(path / "cgroup.procs"):
            _end(int(word))
        if time.monotonic() > end:
            return False
        # A process may leave its group some time after its parent has reaped it (Linux 6.18 does so), and version 1 of
        # the interface has no event for that.
        time.sleep(_RETRY_SECONDS)
    return True


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # something is still in it
        return False
    return True


def _end(pid: int) -> None:
    """SIGKILL a process and wait for its end."""
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return
    try:
        send_signal(pidfd, signal.SIGKILL)
        wait_for_end(pidfd, _END_SECONDS)
    finally:
        os.close(pidfd)
