"""The contract between the workspace layer and whatever makes sandboxes.

A sandbox is a long-lived, empty place to run processes in: its first process
is an agent (`runtimes/agent`), the workspace's files mounted read-write at `WORKSPACE_PATH`, the
workspace's socket directory mounted at `SOCKETS_PATH`, no network interface but
loopback. Kernels and shells are processes started in it with `exec`. Every
runtime passes the one suite in `tests/contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kernelbridge.runtimes.facts import Facts

WORKSPACE_PATH = "/workspace"
"""Where a workspace's files are inside its sandbox; also HOME and the working directory."""

NO_ROOM = (
    "it has reached its limit of processes and threads; end some of them: `interrupt` with target `terminal` and `jobs`"
    " true ends what commands have left running, and restart_kernel what cells have"
)
"""Why a program cannot be started in a sandbox, and what to do."""

NO_MEMORY = (
    "it has reached its limit of memory, in which files in /dev/shm and /tmp count: end programs or remove files there;"
    " close_session frees all of it"
)
"""Why a program cannot be started in a sandbox, and what to do."""

SOCKETS_PATH = "/run/kernelbridge"
"""Where the workspace's socket directory is inside its sandbox. Short: UNIX socket paths end at 107 bytes."""


HIDDEN_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""What tells too much of the machine, and is empty in a sandbox."""

READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What sets up the machine, and can only be read in a sandbox."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use."""

    memory: int = 1 << 30
    """Bytes of memory; swap is not added to it."""
    cpus: float = 1.0
    pids: int = 256
    nofile: int = 4096
    tmp: int = 256 << 20
    """Bytes of the tmpfs at /tmp."""
    ptys: int = 24
    """Terminals (PTYs); 100 sessions then leave some of the 4096 that a machine usually has."""

    @property
    def rlimits(self) -> dict[str, int]:
        """Limits of each process, named as in setrlimit(2) without `RLIMIT_`; some count all processes of a user."""
        return {
            "core": 0,
            "memlock": 8 << 20,
            "msgqueue": 819_200,
            "nice": 0,
            "nofile": self.nofile,
            "rtprio": 0,
            "sigpending": 4096,
        }

    @property
    def shm(self) -> int:
        """Bytes of the tmpfs at /dev/shm. What is in it counts in `memory`."""
        return self.memory

    @property
    def socket_buffers(self) -> int:
        """Bytes of socket buffers, where they are not counted in `memory` (cgroup version 1)."""
        return max(8 << 20, self.memory // 8)


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """All a runtime needs to make one sandbox."""

    workspace_id: str
    """Lower-case hexadecimal, unique per (principal, session) of this server."""
    files: Path
    """Host directory that becomes `WORKSPACE_PATH`; it exists and belongs to the sandbox's user."""
    sockets: Path
    """Host directory that becomes `SOCKETS_PATH`; it exists, the bridge owns it, mode 0755."""
    limits: Limits = field(default_factory=Limits)
    image: str | None = None
    """What to make it of; None for the runtime's default."""
    uid: int | None = None
    """Who runs in it, where `Facts.any_uid` allows that; None for the user of the facts. The files belong to it."""
    etc: Path | None = None
    """Host directory whose files `passwd` and `group` become those of /etc; only for a runtime with images."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is known of a sandbox that an earlier server left running."""

    sandbox_id: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process or a sandbox ended. Exactly one of `code` and `signal` is set when it is known."""

    code: int | None = None
    signal: int | None = None
    oom: bool = False
    """The kernel's out-of-memory killer ended it."""
    lost: bool = False
    """Of a process: it ended with its sandbox."""

    def __str__(self) -> str:
        if self.oom:
            return "out of memory"
        if self.lost:
            return "its sandbox ended"
        if self.signal is not None:
            return f"signal {self.signal}"
        return f"exit code {self.code}" if self.code is not None else "unknown status"


SLEEPS_BETWEEN_FORKS = "04000"
"""The end of `SigBlk` in /proc/PID/status of a bash that could not start a process and sleeps before it tries again: of
all signals it holds SIGTERM back then, and at no other time that one alone."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in a sandbox, told apart from every start of a process."""

    ticks: int
    """Hundredths of a second of CLOCK_BOOTTIME, as a rule."""
    last: int
    """The latest pid: which tells processes of the same hundredth apart."""


class Terminal(Protocol):
    """A terminal in a sandbox that echoes nothing. The bridge holds both of its ends."""

    path: str
    """Its name inside the sandbox."""

    async def read(self) -> bytes:
        """Give the next that was written on it; `b""` once nobody has its other end open. One reader at a time."""
        ...

    async def write(self, data: bytes) -> None:
        """Type all of `data`; raises `BrokenPipeError` when it is closed."""
        ...

    def only_for_writing(self) -> None:
        """Let nobody in the sandbox open it any more to read from it."""
        ...

    def release(self) -> None:
        """Let go of the end that programs have, so that reading ends with the last of them. Idempotent."""
        ...

    def close(self) -> None:
        """Release both ends; programs in it are hung up. Idempotent."""
        ...

    def leave(self) -> None:
        """Release both ends, and leave it to another server. Idempotent."""
        ...


class Process(Protocol):
    """A process in a sandbox. It leads its own session and process group."""

    pid: int
    """As seen inside the sandbox."""

    @property
    def handle(self) -> str:
        """By which `Sandbox.rejoin` finds it when another server has taken the sandbox over; empty where none can."""
        ...

    async def read(self) -> bytes:
        """Give the next output, stdout and stderr merged; `b""` once it has ended. One reader at a time."""
        ...

    async def write(self, data: bytes) -> None:
        """Write all of `data` to its terminal or stdin; raises `BrokenPipeError` if it has ended."""
        ...

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal; does nothing for a process without one, or one that has ended."""
        ...

    async def signal(self, signum: int) -> None:
        """Send `signum` to its process group; does nothing if it has ended."""
        ...

    async def kill(self) -> None:
        """SIGKILL it and everything that it ever started, daemons included. Idempotent.

        Raises `SandboxError` if something outlives that; it may be tried again.
        """
        ...

    async def moment(self) -> Moment:
        """Give the time in its sandbox, for `prune`. Raises `SandboxError`."""
        ...

    async def prune(self, since: Moment | None = None) -> None:
        """SIGKILL everything that it ever started, but not itself.

        With `since`, what it started before that is spared with all that this started. Raises `SandboxError` if
        something outlives that.
        """
        ...

    async def wait(self) -> ExitStatus:
        """Return how it ended, when it has. Any number of callers."""
        ...

    async def aclose(self) -> None:
        """`kill()` and release the descriptors. Idempotent."""
        ...


class Sandbox(Protocol):
    """One running sandbox."""

    id: str
    facts: Facts
    workspace_path: str
    """`WORKSPACE_PATH`; the host's own path in a sandbox without a file system of its own (no isolation)."""
    sockets_path: str
    """`SOCKETS_PATH`; the host's own path likewise."""

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = WORKSPACE_PATH,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        name: str = "",
        terminal: Terminal | None = None,
    ) -> Process:
        """Start a process as the sandbox's user; `env` is laid over the sandbox's own.

        `name` is what another server finds it by, e.g. `kernel` (200 characters at most).

        With `terminal`, which this sandbox has opened, it is that what it reads from and writes on, and nothing is to
        be read from the process itself. It leads a process group but no session, and so neither this nor any other
        terminal becomes its controlling one.

        Without `tty`, stdin is empty (`write` is not supported). Raises `SandboxError`
        when the sandbox is gone or the program cannot be started.
        """
        ...

    def open_terminal(self, rows: int = 24, cols: int = 80) -> Terminal:
        """Open a terminal; starts nothing and waits for nothing. Raises `SandboxError` where there is none left."""
        ...

    async def rejoin(self, handle: str) -> Process:
        """Give a process that an earlier server started; what it wrote since that ended is there to be read.

        Raises `SandboxError` if there is no way back to it.
        """
        ...

    async def take_terminal(self, path: str) -> Terminal:
        """Give a terminal that an earlier server opened, with what was written on it since; raises `SandboxError`."""
        ...

    async def end_others(self, *, spare: Collection[str]) -> None:
        """SIGKILL whatever an earlier server started with `exec`, with all that it started, but what has these handles.

        Raises `SandboxError` if some outlive it.
        """
        ...

    async def crowded(self) -> bool | None:
        """Say whether hardly any processes and threads can be started in it; None if nobody knows. `SandboxError`."""
        ...

    async def starves(self, pid: int) -> bool:
        """Say whether it is crowded and `pid`, a bash, sleeps until it tries again to fork. Raises `SandboxError`."""
        ...

    def oom_kills(self) -> int:
        """Count how often something in it was killed for want of memory, as far as is known now; no I/O that waits."""
        ...

    def watch_memory(self, tell: Callable[[], None]) -> None:
        """Call `tell`, from the event loop, each time that this happens: within a second of it. One watcher."""
        ...

    async def pause(self) -> None:
        """Have every process in it stand still until `resume`; what they have in memory stays there. Idempotent.

        Meanwhile `exec` and what is asked of processes wait (some seconds, then `SandboxError`) or are done;
        `destroy` is done. Raises `SandboxError` or `RuntimeUnavailable`; it may stand still all the same then, and
        `resume` puts that right.
        """
        ...

    async def resume(self) -> None:
        """Have every process go on that `pause` stopped. Idempotent; a sandbox that is gone is no error.

        Raises `SandboxError` or `RuntimeUnavailable`; it may be tried again.
        """
        ...

    def outlive(self, seconds: float) -> None:
        """Set for how many seconds it goes on without a server, from now on; then it ends itself.

        One that stands still because an engine has paused it ends when it goes on.
        """
        ...

    def watch_pauses(self, told: Callable[[bool], None]) -> None:
        """Have `told` called whenever somebody else pauses the sandbox (True) or resumes it (False)."""
        ...

    async def wait(self) -> ExitStatus:
        """Return how the sandbox ended, when it has, whoever ended it. Any number of callers."""
        ...

    async def destroy(self) -> None:
        """End every process in it and remove it. Idempotent; one that is already gone is no error."""
        ...


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What the start-up screen and the `connected` frame say about a runtime."""

    name: str
    """`docker` or `local`."""
    detail: str
    """One line for a person: engine and version, or program and version."""
    isolation: str
    """One line for a person: what separates a workspace from the host and from the others."""
    warning: str | None = None
    """What a user must know before they trust it."""
    images: bool = False
    """Whether sandboxes are made of images."""
    adopts: bool = False
    """Whether sandboxes outlive the server, and the next one can take them over."""
    own_uids: bool = False
    """Whether each sandbox has a user id of its own, so that it shares no limit of the kernel's with others."""
    cpus: int | None = None
    """Processors of the machine that sandboxes run on, where no sandbox can be promised more."""


class Runtime(Protocol):
    """Makes sandboxes."""

    info: RuntimeInfo

    async def prepare(self, image: str | None = None) -> Facts:
        """Learn what a new sandbox will look like (user, python, kernelspecs). Cached; raises `ImageError`.

        `image` is the default one when None.
        """
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make and start one. On failure nothing is left behind. Raises `SandboxError` or `ImageError`."""
        ...

    async def adopt(self, left: Mapping[str, Left]) -> Mapping[str, Sandbox]:
        """Take over what an earlier server with the same data directory left running, by workspace id.

        `left` is what is known of it; what does not run any more is not in the result. A sandbox may be paused: who
        takes it over calls `resume` before all else. Raises `SandboxError` or `RuntimeUnavailable`.
        """
        ...

    async def reclaim(self) -> int:
        """Destroy what such a server left running and was not adopted; return how many."""
        ...

    async def aclose(self, *, keep: bool = False) -> None:
        """Destroy every sandbox that it made or adopted, and release everything it holds. Idempotent.

        With `keep` those that can outlive the server are left to the next one.
        """
        ...
