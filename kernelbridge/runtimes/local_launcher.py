"""Starts the process tree of one local sandbox: the descriptors it inherits, the program, nothing of the server's."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Self

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes import local_mounts as mounts
from kernelbridge.runtimes.base import Limits
from kernelbridge.runtimes.local_host import Host

_SHELL = "/bin/sh"


@dataclass(slots=True)
class Launched:
    """A sandbox that has been started; whoever holds this closes it."""

    popen: subprocess.Popen[bytes]
    control: socket.socket
    """The bridge's end of the agent's socket."""
    status: int
    """Pipe that ends with the process tree; bubblewrap writes JSON to it."""
    stderr: int
    """A memory file: what was printed before the agent was ready."""

    def printed(self, limit: int = 2000) -> str:
        """Give the end of what was printed on standard error."""
        size = os.fstat(self.stderr).st_size
        return os.pread(self.stderr, limit, max(0, size - limit)).decode("utf-8", "replace").strip()


def launch_isolated(
    host: Host,
    bwrap: str,
    limits: Limits,
    rlimits: Mapping[str, int],
    seccomp: bytes | None,
    *,
    files: Path,
    sockets: Path,
    cgroups: Sequence[Path] = (),
) -> Launched:
    """Start the agent in bubblewrap. It must be called in a thread that lives as long as the sandbox shall.

    `rlimits` are what the agent limits for itself and all it starts: see `Limits.rlimits`.
    Raises `SandboxError` or OSError; blocking, a few milliseconds.
    """
    shown = mounts.sandbox_mounts(host, str(files), str(sockets))
    staging: list[str] = []
    terminals: str | None = None
    if host.root:
        existing = [stage for stage in mounts.STAGES if Path(stage).is_dir() and not Path(stage).is_symlink()]
        stage = mounts.choose_stage([*shown, *host.system], existing)
        if stage is None:
            raise SandboxError("The sandbox could not be started", f"none of {', '.join(mounts.STAGES)} is a directory")
        staging, shown = mounts.stage_mounts(shown, stage)
        mounting, terminals = mounts.stage_terminals(stage, limits.ptys)
        staging += mounting
    with _Inheritance() as inherited:
        etc = mounts.etc_files(host.uid, host.gid, shell=host.env["SHELL"])
        prepared = mounts.InheritedFiles(
            agent=inherited.file("agent", agent_source()),
            passwd=inherited.file("passwd", etc["passwd"].encode()),
            group=inherited.file("group", etc["group"].encode()),
            hosts=inherited.file("hosts", etc["hosts"].encode()),
            nsswitch=inherited.file("nsswitch", etc["nsswitch"].encode()),
            status=inherited.status,
            seccomp=None if seccomp is None else inherited.file("seccomp", seccomp),
        )
        arguments = mounts.bwrap_arguments(
            host, shown, prepared, limits, terminals=terminals, disable_userns=seccomp is None
        )
        args_fd = inherited.file("args", "".join(f"{word}\0" for word in arguments).encode())
        agent = _agent_command(host, mounts.AGENT_PATH, rlimits, inherited.control, keep=[])
        command = [*mounts.drop_root(host), bwrap, "--args", str(args_fd), "--", *agent]
        script = mounts.launch_script(command, cgroups=[str(path) for path in cgroups], staging=staging)
        return inherited.start([*mounts.own_mount_namespace(host), _SHELL, "-c", script])


def launch_bare(host: Host, rlimits: Mapping[str, int], *, cgroups: Sequence[Path] = ()) -> Launched:
    """Start the agent without isolation, as the server's own user; otherwise like `launch_isolated`."""
    with _Inheritance() as inherited:
        path = inherited.file("agent", agent_source())
        keep = [inherited.status]
        command = _agent_command(host, f"/proc/self/fd/{path}", rlimits, inherited.control, keep=keep)
        script = mounts.launch_script(command, cgroups=[str(path) for path in cgroups])
        return inherited.start([_SHELL, "-c", script])


def tools_environment() -> dict[str, str]:
    """Give the environment of bubblewrap and what starts it: /proc shows it to every process of the sandbox's user."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def agent_source() -> bytes:
    """Give the agent's program text."""
    return resources("kernelbridge.guest").joinpath("agent.py").read_bytes()


def _agent_command(host: Host, path: str, rlimits: Mapping[str, int], control: int, keep: Sequence[int]) -> list[str]:
    config = {"control": control, "keep": keep, "limits": dict(rlimits)}
    return [host.python_executable, "-I", "-S", path, json.dumps(config)]


class _Inheritance:
    """The descriptors of a process about to be started; closes its half of them in any case."""

    def __init__(self) -> None:
        self._ours, self._theirs = contextlib.ExitStack(), contextlib.ExitStack()
        self._pass: list[int] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.__exit__)
            bridge, agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._bridge = self._ours.enter_context(bridge)
            bridge.settimeout(0)
            self.control = self._give(self._theirs.enter_context(agent).fileno())
            self._status_read, self.status = os.pipe2(os.O_CLOEXEC)
            self._ours.callback(os.close, self._status_read)
            self._theirs.callback(os.close, self.status)
            self._give(self.status)
            os.set_blocking(self._status_read, False)
            self._stderr = os.memfd_create("stderr")
            self._ours.callback(os.close, self._stderr)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._theirs.close()
        self._ours.close()

    def file(self, name: str, content: bytes) -> int:
        """Make a file that has no path, to be read from its beginning."""
        fd = memory_file(name, content)
        self._theirs.callback(os.close, fd)
        return self._give(fd)

    def start(self, command: Sequence[str]) -> Launched:
        popen = subprocess.Popen(  # noqa: S603  our own words; every path in the script is quoted
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            env=tools_environment(),
            cwd="/",
            pass_fds=self._pass,
            start_new_session=True,  # a Ctrl-C at the server's terminal is for the server, which then ends us in order
        )
        self._ours.pop_all()
        return Launched(popen, self._bridge, self._status_read, self._stderr)

    def _give(self, fd: int) -> int:
        self._pass.append(fd)
        return fd


def memory_file(name: str, content: bytes) -> int:
    """Make a file that has no path, positioned at its beginning; the caller closes it."""
    fd = os.memfd_create(name)
    try:
        with open(fd, "wb", closefd=False) as stream:
            stream.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
