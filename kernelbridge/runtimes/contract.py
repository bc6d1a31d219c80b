"""What the rest of the server needs of a runtime: the contract that `tests/contract` checks.

A sandbox is a long-lived place to run programs in. Its first process is an agent (`guest/agent.py`); the workspace's
files are at `WORKSPACE_PATH`, and what the server hands it at `SHARED_PATH`. It has no network interface but loopback;
`Sandbox.relay` is the way out.

There is no path of the server's machine in this contract. How files, texts and sockets get into a sandbox and out of it
is a runtime's own business; for runtimes whose sandboxes run on that machine, `agent/host_directories.py` does it.

What is the same for every runtime is in `runtimes/agent`: `AgentSandbox` starts, finds, pauses and ends programs
through the agent. A runtime makes, adopts and destroys sandboxes, and knows their limits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kernelbridge.runtimes.facts import Facts

WORKSPACE_PATH = "/workspace"
"""Where a workspace's files are inside its sandbox; also HOME and the working directory."""

SHARED_PATH = "/run/kernelbridge"
"""Where a sandbox finds what the server hands it, and makes its sockets. Short: socket paths end at 107 bytes."""

TEXT_ROOM = 4096
"""Bytes that a text of `SharedDirectory.put` can have although the server's disk is full."""

PROXY_PORT = 3128
"""Where a sandbox's programs find the proxy, on their loopback: the agent accepts there for the bridge."""

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

OOM_EXIT_SECONDS = 2.5
"""How long after an out-of-memory kill its victim may end. One that is inside the kernel may wait for a lock, e.g. for
that of the pipe that it reads from while the writer waits for memory. After 2 seconds the kernel takes the victim's
memory from it, so that the writer can continue."""

END_SECONDS = 2.0
"""How long a runtime may take to tell how a sandbox ended whose processes are gone. An engine that hangs never does."""

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
"""Files that reveal too much about the machine; empty in a sandbox."""

READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Files that configure the machine; read-only in a sandbox."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use."""

    memory: int = 1 << 30
    """Bytes of memory; swap is not added to it."""
    cpus: float = 1.0
    pids: int = 256
    """Processes and threads."""
    nofile: int = 4096
    """Open files of each process."""
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
    """All that a runtime needs to make one sandbox."""

    workspace_id: str
    """Lower-case hexadecimal, unique per (principal, session) of this server. Its files are in the sandbox."""
    limits: Limits = field(default_factory=Limits)
    image: str | None = None
    """The image to use; None for the runtime's default."""
    uid: int | None = None
    """The user id of its processes, where `Facts.any_uid` allows that; None for that of the facts. Owns the files.

    In an image's user database it gets the name of the image's user.
    """
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """Files in the shared directory, by name; not empty. `SharedDirectory.put` replaces them."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Symlinks there, from their names to what they lead to."""


@dataclass(frozen=True, slots=True)
class PreviousSandbox:
    """What is known about a sandbox that an earlier server started."""

    sandbox_id: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process or a sandbox ended. At most one of `code` and `signal` is set; neither if nobody knows."""

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


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in a sandbox, precise enough to order it before or after the start of any process."""

    ticks: int
    """Hundredths of a second of CLOCK_BOOTTIME, as a rule."""
    last: int
    """The latest pid: it orders processes that were started within the same hundredth."""
    oom_kills: int = 0
    """How many processes in the sandbox were killed until then because memory was exhausted, if that is known."""


class Terminal(Protocol):
    """A terminal in a sandbox, without echo. The bridge holds both of its ends."""

    path: str
    """Its name inside the sandbox."""

    async def read(self) -> bytes:
        """Return what was written on it next; `b""` when nobody has its other end open. One reader at a time.

        Other tasks run between two reads, however much there is. Cancellation loses nothing.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Type all of `data`, or a part of it when cancelled; raises `BrokenPipeError` when it is closed."""
        ...

    def only_for_writing(self) -> None:
        """Forbid programs in the sandbox to open it for reading."""
        ...

    def release(self) -> None:
        """Close the programs' end here, so that `read` ends when the last program has closed it. Idempotent."""
        ...

    def close(self) -> None:
        """Close both ends; programs on it get SIGHUP. Idempotent."""
        ...

    def leave(self) -> None:
        """Close both ends here and keep the terminal for another server. Idempotent."""
        ...


class Process(Protocol):
    """A program in a sandbox. It leads its own process group, and a session unless it was given a terminal."""

    id: str
    """Its id. `Sandbox.take` accepts it, also in a later server."""
    pid: int
    """As seen inside the sandbox."""

    async def read(self) -> bytes:
        """Return the next output, stdout and stderr merged; `b""` when it has ended. One reader at a time.

        Other tasks run between two reads, however much there is. Cancellation loses nothing.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Write all of `data` to its terminal; raises `BrokenPipeError` if it has none or has ended."""
        ...

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal; does nothing if it has none or has ended."""
        ...

    async def signal(self, signum: int) -> None:
        """Send `signum` to its process group; does nothing if it has ended."""
        ...

    async def kill(self) -> None:
        """SIGKILL it and everything that it ever started, daemons included. Idempotent.

        Raises `SandboxError` if something survives; it may be tried again.
        """
        ...

    async def moment(self) -> Moment:
        """Return the time in its sandbox, for `prune`. Raises `SandboxError`."""
        ...

    async def prune(self, since: Moment | None = None) -> None:
        """SIGKILL everything that it ever started, but not itself.

        With `since`, processes that were started earlier are spared, with all that these start. Raises `SandboxError`
        if something survives.
        """
        ...

    async def wait(self) -> ExitStatus:
        """Wait for its end and return how it ended. Any number of callers."""
        ...

    async def aclose(self) -> None:
        """`kill()` it and close its descriptors. Idempotent."""
        ...


class SocketDirectory(Protocol):
    """A directory in a sandbox in which one program makes UNIX sockets, to which the server then connects."""

    path: str
    """Its path inside the sandbox."""

    def bound(self, names: Collection[str]) -> bool:
        """Return whether the program has made all of these sockets. Returns at once."""
        ...

    def endpoints(self, names: Collection[str]) -> Mapping[str, str]:
        """Return a path to connect to for each of these sockets, valid until `aclose` or `release`. Returns at once.

        From now on, whatever programs do, the paths lead to these sockets and nowhere else. Raises `SandboxError`
        if something else is in the place of one.
        """
        ...

    async def aclose(self) -> None:
        """Remove it. Idempotent. If cancelled, it is removed all the same."""
        ...

    def release(self) -> None:
        """Leave it to another server, which calls `reopen_sockets`. Idempotent."""
        ...


class SharedDirectory(Protocol):
    """What the server hands to the programs of a sandbox. They can read it, and change nothing in it.

    Where the sandbox has the same user as the server, they can change it: that must harm nobody but themselves.
    """

    path: str
    """`SHARED_PATH`, or another if the sandbox has no file system of its own."""

    def put(self, name: str, content: bytes) -> None:
        """Replace a text of the sandbox's spec. `TEXT_ROOM` bytes of content always fit in.

        Returns within a millisecond, as a rule: it is in the path of each terminal command. Raises `SandboxError`.
        """
        ...

    async def make_sockets(self, name: str, files: Mapping[str, str]) -> SocketDirectory:
        """Make a directory `name`, with some files, in which a program can make sockets. An earlier one is replaced.

        Raises `SandboxError` or `DiskFull`. A failure or a cancellation leaves nothing behind.
        """
        ...

    def reopen_sockets(self, name: str) -> SocketDirectory:
        """Return the directory of that name, which an earlier server made; raises `SandboxError`. Returns at once."""
        ...


class Sandbox(Protocol):
    """One running sandbox. `runtimes.agent.sandbox.AgentSandbox` has all of it but the limits and the end."""

    id: str
    facts: Facts
    workspace_path: str
    """`WORKSPACE_PATH`, or another if the sandbox has no file system of its own."""
    boot_seconds: float
    """How long its agent took to answer after the sandbox was created; 0 if an earlier server created it."""

    @property
    def shared(self) -> SharedDirectory:
        """What the server hands to its programs, and where they make sockets."""
        ...

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        terminal: Terminal | None = None,
    ) -> Process:
        """Start a program as the sandbox's user.

        Arguments: `env`, variables in addition to the sandbox's own, or in their place; `cwd`, its working directory,
        `workspace_path` if None; `tty`, whether it gets a terminal of `rows` by `cols` characters. Without one its
        stdin is empty.

        With `terminal`, one of `open_terminal`, it reads from and writes to that, and the process itself has nothing to
        read. Then it leads a process group but no session, so no terminal ever becomes its controlling terminal.

        Raises `SandboxError` when the sandbox is gone or the program cannot be started. When cancelled, the program is
        killed as soon as it runs.
        """
        ...

    def open_terminal(self, rows: int = 24, cols: int = 80) -> Terminal:
        """Open a terminal; raises `SandboxError` if the sandbox has no more. Returns at once."""
        ...

    async def programs(self) -> list[str]:
        """Return the ids of all programs that run, or have ended and were not killed. Raises `SandboxError`."""
        ...

    async def take(self, program: str) -> Process:
        """Return the program with this id, which an earlier server started, with what it wrote meanwhile.

        Raises `SandboxError` if there is none.
        """
        ...

    async def take_terminal(self, path: str) -> Terminal:
        """Return a terminal that an earlier server opened, with what was written on it; raises `SandboxError`."""
        ...

    async def crowded(self) -> bool | None:
        """Return whether it has nine tenths of the processes that it may have; None if unknown. `SandboxError`."""
        ...

    async def starves(self, pid: int) -> bool:
        """Return whether it is crowded and `pid`, a bash, sleeps before it tries again to fork. `SandboxError`."""
        ...

    async def memory(self) -> int | None:
        """Return how many bytes of memory it uses, caches included as the limit counts them; None if unknown.

        Raises `SandboxError` or `RuntimeUnavailable`.
        """
        ...

    def oom_kills(self) -> int:
        """Return how often the out-of-memory killer ended something in it, as far as is known; waits for nothing."""
        ...

    def watch_memory(self, on_kill: Callable[[], None]) -> None:
        """Call `on_kill`, from the event loop, within a second of each such kill. One watcher."""
        ...

    async def pause(self) -> None:
        """Stop every program until `resume`; their memory stays. Idempotent.

        Until then `exec` waits (30 s, then `SandboxError`). Raises `SandboxError` if some program does not stop; then
        all run on, as a rule, and `resume` makes sure of it.
        """
        ...

    async def resume(self) -> None:
        """Let the programs that `pause` stopped run on. Idempotent; does nothing if the sandbox is gone.

        Raises `SandboxError`; it may be tried again.
        """
        ...

    def relay(self, accept: Callable[[int], None], count: int) -> None:
        """Call `accept` with up to `count` more connections that programs make to `PROXY_PORT`.

        Each is the descriptor of a TCP socket, which `accept` owns. Adds to what an earlier call has left over; further
        connections wait. Does nothing where there is no such port, because the sandbox has the network of the machine.
        """
        ...

    def outlive(self, seconds: float) -> None:
        """Set for how long it lives without a server, from now on; then it ends itself."""
        ...

    async def wait(self) -> ExitStatus:
        """Wait for its end, whoever causes it, and return how it ended. Any number of callers."""
        ...

    async def destroy(self) -> None:
        """End every process in it and remove it. Idempotent; does nothing if it is gone already.

        Raises `SandboxError` or `RuntimeUnavailable` if it cannot be removed now.
        """
        ...


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What the start screen and the `connected` frame say about a runtime."""

    name: str
    """`docker` or `local`."""
    detail: str
    """One line for a person: engine and version, or program and version."""
    isolation: str
    """One line for a person: what separates a workspace from the host and from the others."""
    warning: str | None = None
    """What a user must know before trusting it."""
    images: bool = False
    """Whether sandboxes are made of images."""
    adopts: bool = False
    """Whether sandboxes outlive the server, and the next one can adopt them."""
    own_uids: bool = False
    """Whether each sandbox has a user id of its own, so that it shares no per-user limit with others."""
    relays: bool = False
    """Whether the only way out of its sandboxes is `PROXY_PORT` (`Sandbox.relay`)."""
    cpus: int | None = None
    """Processors of the machine that runs sandboxes, where no sandbox can be promised more."""


class Runtime(Protocol):
    """Makes sandboxes."""

    info: RuntimeInfo

    async def prepare(self, image: str | None = None) -> Facts:
        """Return what a new sandbox will offer (user, python, kernelspecs). Cached; raises `ImageError`.

        `image` is the default one when None.
        """
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make and start a sandbox. Raises `SandboxError`, `ImageError` or `DiskFull`.

        A failure or a cancellation leaves nothing behind.
        """
        ...

    async def adopt(self, previous: Mapping[str, PreviousSandbox]) -> Mapping[str, Sandbox]:
        """Adopt the sandboxes that an earlier server with the same data directory left running. Called once.

        `previous` maps workspace ids to what is known; the result has those that still run. Their programs may be
        paused: call `resume` first. Raises `SandboxError` or `RuntimeUnavailable`.
        """
        ...

    async def reclaim(self) -> int:
        """Destroy the sandboxes that such a server left and that were not adopted; return how many."""
        ...

    async def aclose(self, *, keep: bool = False) -> None:
        """Destroy every sandbox that it made or adopted, and release everything it holds. Idempotent.

        With `keep`, sandboxes that can outlive the server are left running for the next one.
        """
        ...
