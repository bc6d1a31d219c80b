"""Starts the process tree of one local sandbox; it inherits nothing of the server but a few descriptors."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.client import START_SECONDS, agent_command, agent_source, memory_file
from kernelbridge.runtimes.agent.directory import NAME as AGENT
from kernelbridge.runtimes.contract import PROXY_PORT, SHARED_PATH, Limits
from kernelbridge.runtimes.local import mounts
from kernelbridge.runtimes.local.host import Host, private_files

_SHELL = "/bin/sh"


@dataclass(slots=True)
class Launched:
    """A process tree that was started; its owner closes the descriptors."""

    popen: subprocess.Popen[bytes]
    status: int
    """A pipe that ends with the process tree; bubblewrap writes JSON to it."""
    stderr: int
    """A memory file with what was printed before the agent was ready."""


def launch_isolated(
    host: Host,
    bwrap: str,
    limits: Limits,
    rlimits: Mapping[str, int],
    seccomp: bytes | None,
    *,
    files: Path,
    shared: Path,
    cgroups: Sequence[Path] = (),
) -> Launched:
    """Start the agent in bubblewrap. It does not end with the server, so that the next one can adopt it.

    `rlimits` are limits for the agent and all that it starts: see `Limits.rlimits`. Raises `SandboxError` or OSError;
    blocking, a few milliseconds.
    """
    shown = mounts.sandbox_mounts(host, str(files), str(shared))
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
            host,
            shown,
            prepared,
            limits,
            terminals=terminals,
            disable_userns=seccomp is None,
            private=private_files(host),
        )
        args_fd = inherited.file("args", "".join(f"{word}\0" for word in arguments).encode())
        agent = agent_command(
            host.python_executable,
            mounts.AGENT_PATH,
            f"{SHARED_PATH}/{AGENT}",
            rlimits=rlimits,
            start=START_SECONDS,
            proxy=PROXY_PORT,
        )
        command = [*mounts.drop_root(host), bwrap, "--args", str(args_fd), "--", *agent]
        script = mounts.launch_script(command, cgroups=[str(path) for path in cgroups], staging=staging)
        return inherited.start([*mounts.own_mount_namespace(host), _SHELL, "-c", script])


def launch_bare(host: Host, rlimits: Mapping[str, int], *, shared: str, cgroups: Sequence[Path] = ()) -> Launched:
    """Start the agent without isolation, as the server's own user; otherwise like `launch_isolated`."""
    with _Inheritance() as inherited:
        path = inherited.file("agent", agent_source())
        command = agent_command(
            host.python_executable,
            f"/proc/self/fd/{path}",
            f"{shared}/{AGENT}",
            rlimits=rlimits,
            start=START_SECONDS,
            keep=[inherited.status],
        )
        script = mounts.launch_script(command, cgroups=[str(path) for path in cgroups])
        return inherited.start([_SHELL, "-c", script])


def tools_environment() -> dict[str, str]:
    """Return the environment of bubblewrap, which /proc shows to all processes of the sandbox's user."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


class _Inheritance:
    """The descriptors that a new process inherits; closes the process's half of them in any case."""

    def __init__(self) -> None:
        self._ours, self._theirs = contextlib.ExitStack(), contextlib.ExitStack()
        self._pass: list[int] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.__exit__)
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
        """Make a file without a path, positioned at its beginning; return its descriptor."""
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
            start_new_session=True,  # a Ctrl-C is for the server, which then ends its sandboxes in order
        )
        self._ours.pop_all()
        return Launched(popen, self._status_read, self._stderr)

    def _give(self, fd: int) -> int:
        self._pass.append(fd)
        return fd
