"""The local runtime: sandboxes without a container engine, with the python that kernelbridge is installed in.

LocalRuntime         makes and adopts sandboxes (this module)
├── host             what a sandbox sees of this machine
├── bubblewrap       whether bubblewrap works here, and what to do if not
├── mounts           bubblewrap's arguments and the launching script (pure)
├── launcher         starts a process tree
├── notes            what the next server must know of a sandbox
├── short_links      short names for long shared directories, without isolation
├── terminals        limits a sandbox's terminals, where the server is not root
├── cgroups          limits of memory, processes and processor time
│   └── oom_notice   the kernel's report of a kill for want of memory
└── sandbox          one sandbox
    └── tree         its processes: whether they have ended, and how to end them
        └── pidfd    processes that need not be our children
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from kernelbridge.errors import ImageError, SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories, HostShared
from kernelbridge.runtimes.contract import (
    WORKSPACE_PATH,
    PreviousSandbox,
    RuntimeInfo,
    SandboxSpec,
)
from kernelbridge.runtimes.facts import PROBE, Facts, PythonFacts, parse_probe
from kernelbridge.runtimes.local.bubblewrap import BubblewrapInfo, find_bubblewrap
from kernelbridge.runtimes.local.cgroups import CONTROLLERS, Cgroup, Cgroups
from kernelbridge.runtimes.local.host import Host, check_hidden, read_host
from kernelbridge.runtimes.local.launcher import Launched, launch_bare, launch_isolated
from kernelbridge.runtimes.local.notes import Note, Notes
from kernelbridge.runtimes.local.pidfd import Identity, send_signal, wait_for_end
from kernelbridge.runtimes.local.sandbox import DESTROY_SECONDS, LocalSandbox
from kernelbridge.runtimes.local.short_links import ShortLinks
from kernelbridge.runtimes.local.terminals import limit_terminals
from kernelbridge.runtimes.local.tree import Tree
from kernelbridge.runtimes.processors import thread_counts
from kernelbridge.runtimes.seccomp import bpf_filter

log = structlog.get_logger(__name__)

_PROBE_BYTES = 1 << 20
_PROBE_SECONDS = 60.0
_NPROC_PER_NAMESPACE = (5, 14)
"""Since this version Linux counts RLIMIT_NPROC per user namespace; before, all sandboxes would share it."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where one sandbox's two directories are."""

    workspace: str
    """For the sandbox itself."""
    shared: HostShared
    link: Path | None = None
    """A symlink that makes its path short; removed with the sandbox."""


class LocalRuntime:
    """Makes local sandboxes (`contract.Runtime`). Construct it in a thread: it tries bubblewrap, which blocks.

    Arguments: `instance`, a name that no other server on this machine has; `directories`, those below this server's
    data directory; `isolation`, False to run code as the server's own user, with all its rights; `bubblewrap`, what is
    known about it already; `own_uid`, None if `SandboxSpec.uid` is not used.

    Raises `RuntimeUnavailable` if bubblewrap cannot make sandboxes, and `ImageError` if the python cannot be mounted
    into one, or not without the server's own files: `hidden`.
    """

    def __init__(
        self,
        *,
        instance: str,
        directories: HostDirectories,
        isolation: bool = True,
        bubblewrap: BubblewrapInfo | None = None,
        own_uid: int | None = None,
        hidden: Collection[Path] = (),
    ) -> None:
        self._isolation = isolation
        self._directories = directories
        self._state_dir = state_dir = directories.root / "local"
        host = read_host()
        self._bwrap = ""
        version = None
        if isolation:
            found = bubblewrap or find_bubblewrap(root=host.root)
            self._bwrap, version = found.require(), found.version
            check_hidden(host, hidden)
        else:
            names = {"USER", "LOGNAME"}  # these are the sandbox's, not the server's
            env = {name: value for name, value in host.env.items() if name not in names}
            host = replace(host, uid=os.geteuid(), gid=os.getegid(), env=env)
        self._host = host
        self._own_uids = isolation and host.root and own_uid is not None
        self._cgroups = Cgroups.find(instance)
        self._seccomp = bpf_filter(host.machine) if isolation else None
        self._sandboxes: set[LocalSandbox] = set()
        self._links = ShortLinks(state_dir / "local-links")
        self._notes = Notes(state_dir / "sandboxes")
        self._facts: Facts | None = None
        self._preparing = asyncio.Lock()
        self._closed = False
        self.info = self._describe(version)

    # -- the contract -----------------------------------------------------------

    async def prepare(self, image: str | None = None) -> Facts:
        """Return what a sandbox offers, by running the probe in one; raises `ImageError` or `SandboxError`."""
        if image is not None:
            raise ImageError(f"Image {image!r} cannot be used", "local sandboxes are not made of images")
        async with self._preparing:
            if self._facts is None:
                self._facts = await self._probe()
            return self._facts

    async def create(self, spec: SandboxSpec) -> LocalSandbox:
        """Make and start a sandbox; raises `SandboxError` or `ImageError`."""
        facts = await self.prepare(spec.image)
        return await self._start(spec, facts, self._directories.files(spec.workspace_id))

    async def adopt(self, previous: Mapping[str, PreviousSandbox]) -> Mapping[str, LocalSandbox]:
        """Adopt the sandboxes of earlier servers that still run, and are isolated like this server's."""
        notes = {note.id: note for note in await asyncio.to_thread(self._notes.read)}
        found = {
            workspace_id: self._adopted(note, known.facts)
            for workspace_id, known in previous.items()
            if (note := notes.get(known.sandbox_id)) is not None
            and note.workspace_id == workspace_id
            and note.isolated == self._isolation
        }
        adopted = await asyncio.gather(*found.values())
        return {name: sandbox for name, sandbox in zip(found, adopted, strict=True) if sandbox is not None}

    async def reclaim(self) -> int:
        """End the sandboxes that an earlier server left and that were not adopted, with their control groups."""
        mine = {sandbox.id for sandbox in self._sandboxes}
        stale = [note for note in await asyncio.to_thread(self._notes.read) if note.id not in mine]
        await asyncio.gather(*(asyncio.to_thread(_end, note) for note in stale))
        names = await asyncio.to_thread(self._cgroups.reclaim)
        for note in stale:
            self._notes.remove(note.id)
        self._links.reclaim()
        await asyncio.to_thread(self._directories.remove_others)
        return len(names | {note.id for note in stale})

    async def aclose(self, *, keep: bool = False) -> None:
        """Destroy every sandbox, or leave them all to the next server."""
        self._closed = True
        for sandbox in list(self._sandboxes):
            if keep and sandbox.connected:
                sandbox.leave()
        results = await asyncio.gather(
            *(sandbox.destroy() for sandbox in list(self._sandboxes)), return_exceptions=True
        )
        self._links.close()
        await asyncio.to_thread(self._cgroups.close)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # -- adopting one -----------------------------------------------------------

    async def _adopted(self, note: Note, facts: Facts) -> LocalSandbox | None:
        try:
            pidfd = note.agent.open()
        except ProcessLookupError:
            return None
        shared = self._directories.adopt(Path(note.shared), note.shared_path)
        places = _Places(note.workspace_path, shared, None if note.link is None else Path(note.link))
        if places.link is not None:
            self._links.adopt(places.link)
        tree = Tree.left(note.agent.pid, pidfd, isolated=note.isolated)
        sandbox = self._hold(note.id, tree, places=places, cgroup=self._cgroups.adopt(note.id))
        try:
            await sandbox.reconnect(shared, facts, pid=note.agent.pid)
        except SandboxError as exc:
            log.warning("sandbox_not_adopted", sandbox=note.id, error=str(exc))
            await sandbox.destroy()
            return None
        except BaseException:
            sandbox.leave()
            raise
        return sandbox

    # -- making one -------------------------------------------------------------

    async def _start(self, spec: SandboxSpec, facts: Facts, files: Path) -> LocalSandbox:
        """Start a sandbox with the workspace's `files`."""
        shared = await self._directories.share(self.info.name, spec)
        try:
            sandbox, tree, places = self._begin(spec, files, shared)
        except BaseException:
            await asyncio.to_thread(shared.remove)
            raise
        uid = self._host.uid if spec.uid is None else spec.uid
        counts = thread_counts(spec.limits.cpus, facts.env)
        facts = msgspec.structs.replace(facts, uid=uid, env={**facts.env, **counts, "HOME": places.workspace})
        try:
            await sandbox.connect(shared, facts)
            pid = await asyncio.shield(tree.agent)
            if self._isolation and not self._host.root:
                await self._limit_terminals(sandbox, pid, spec.limits.ptys)
            await asyncio.to_thread(self._note, sandbox, spec, pid, places)
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    def _begin(self, spec: SandboxSpec, files: Path, shared: HostShared) -> tuple[LocalSandbox, Tree, _Places]:
        """Start its process tree; on failure leave nothing but `shared`."""
        if self._closed:
            raise SandboxError("The sandbox could not be started", "the server is stopping")
        if not files.is_dir():
            raise SandboxError("The sandbox could not be started", f"{files} is not a directory")
        name = f"{spec.workspace_id}-{secrets.token_hex(4)}"
        places = _Places(WORKSPACE_PATH, shared)
        cgroup: Cgroup | None = None
        try:
            if not self._isolation:
                shared.path, link = self._links.shorten(shared.host)
                places = _Places(str(files), shared, link)
            if self._cgroups.controllers:
                cgroup = self._cgroups.create(name, spec.limits)
            host = self._host if spec.uid is None else replace(self._host, uid=spec.uid)
            launched = self._launch(host, spec, files, places, cgroup)
        except BaseException as exc:
            self._release(name, cgroup, places, kill=False)
            if isinstance(exc, OSError):
                raise SandboxError("The sandbox could not be started", f"{exc.strerror}: {exc.filename}") from exc
            raise
        tree = Tree.launched(launched, isolated=self._isolation)
        return self._hold(name, tree, places=places, cgroup=cgroup), tree, places

    def _hold(self, name: str, tree: Tree, *, places: _Places, cgroup: Cgroup | None) -> LocalSandbox:
        def release(kill: bool) -> bool:  # noqa: FBT001 - its only argument
            self._sandboxes.discard(sandbox)
            return self._release(name, cgroup, places, kill=kill)

        def on_left() -> None:
            self._sandboxes.discard(sandbox)
            self._cgroups.leave(name)
            if places.link is not None:
                self._links.leave(places.link)

        sandbox = LocalSandbox(
            name,
            tree,
            workspace_path=places.workspace,
            cgroup=cgroup,
            release=release,
            on_left=on_left,
        )
        self._sandboxes.add(sandbox)
        return sandbox

    async def _limit_terminals(self, sandbox: LocalSandbox, pid: int, ptys: int) -> None:
        """Limit its terminals, before anything is started in it."""
        if problem := await asyncio.to_thread(limit_terminals, pid, ptys):
            log.warning("terminals_not_limited", sandbox=sandbox.id, reason=problem)

    def _note(self, sandbox: LocalSandbox, spec: SandboxSpec, pid: int, places: _Places) -> None:
        agent = Identity.of(pid)
        if agent is None:
            raise SandboxError("The sandbox could not be started", "its first process has ended")
        note = Note(
            id=sandbox.id,
            workspace_id=spec.workspace_id,
            isolated=self._isolation,
            agent=agent,
            shared=str(places.shared.host),
            shared_path=places.shared.path,
            workspace_path=places.workspace,
            link=None if places.link is None else str(places.link),
        )
        try:
            self._notes.write(note)
        except OSError as exc:
            raise SandboxError("The sandbox could not be started", f"{exc.strerror}: {exc.filename}") from exc

    def _launch(self, host: Host, spec: SandboxSpec, files: Path, places: _Places, cgroup: Cgroup | None) -> Launched:
        limits, limited = spec.limits, self._cgroups.controllers
        namespaced = self._isolation and _kernel() >= _NPROC_PER_NAMESPACE
        rlimits = limits.rlimits
        if namespaced:
            rlimits["nproc"] = limits.pids
        if "memory" not in limited:
            rlimits["data"] = limits.memory
        entrances = cgroup.entrances if cgroup is not None else []
        if not self._isolation:
            return launch_bare(host, rlimits, shared=places.shared.path, cgroups=entrances)
        return launch_isolated(
            host,
            self._bwrap,
            limits,
            rlimits,
            self._seccomp,
            files=files,
            shared=places.shared.host,
            cgroups=entrances,
        )

    def _release(self, name: str, cgroup: Cgroup | None, places: _Places, *, kill: bool) -> bool:
        try:
            if places.link is not None:
                self._links.release(places.link)
            self._notes.remove(name)
        except OSError as exc:  # an end must be reported all the same; the next server finds that the agent is gone
            log.warning("sandbox_note_left", sandbox=name, error=str(exc))
        return cgroup is None or self._cgroups.release(name, cgroup, kill=kill)

    # -- facts ------------------------------------------------------------------

    async def _probe(self) -> Facts:
        host = self._host
        python = PythonFacts(
            executable=host.python_executable, version=(0, 0), user_site=False, site_packages=(), base_executable=""
        )
        unknown = Facts(
            uid=host.uid, gid=host.gid, env=host.env, python=python, kernelspecs={}, shell=host.env["SHELL"]
        )
        files = (self._state_dir / "local-probe").absolute()
        shutil.rmtree(files, ignore_errors=True)
        try:
            files.mkdir(parents=True)
            sandbox = await self._start(SandboxSpec("probe"), unknown, files)
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    output = await _output(sandbox, [host.python_executable, "-c", PROBE])
            finally:
                await sandbox.destroy()
        except TimeoutError as exc:
            raise ImageError("The python cannot be used", f"it gave no facts within {_PROBE_SECONDS:.0f} s") from exc
        finally:
            shutil.rmtree(files, ignore_errors=True)
        # The user database is made for each sandbox.
        return msgspec.structs.replace(parse_probe(output, host.env), passwd="", group="", any_uid=self._own_uids)

    def _describe(self, version: str | None) -> RuntimeInfo:
        python = self._host.python_executable
        if not self._isolation:
            return RuntimeInfo(
                name="local",
                detail=f"no isolation; python {python}",
                isolation="none: code sees and may do whatever the server's own user may",
                adopts=True,
                warning="Code runs without isolation, as the server's own user and with all its rights: "
                "its files, its network, its other processes. Let only people use it who could log in as that user.",
            )
        limited = [name for name in CONTROLLERS if name in self._cgroups.controllers]
        parts = [
            "own user, pid, network (loopback only), ipc, uts and mount namespaces",
            "a user of its own without capabilities"
            if self._own_uids
            else f"user {self._host.uid}:{self._host.gid} without capabilities",
            "read-only system",
            "system-call filter" if self._seccomp else f"no system-call filter for {self._host.machine}",
        ]
        parts += [f"{', '.join(limited)} limited by cgroup"] if limited else []
        lacking = [f"{name} ({why})" for name, why in self._cgroups.missing.items()]
        parts += [f"no cgroup limit for {', '.join(lacking)}"] if lacking else []
        if "memory" not in limited:
            parts.append("memory limited for each process alone (RLIMIT_DATA)")
        return RuntimeInfo(
            name="local",
            detail=f"bubblewrap {version}; python {python}",
            isolation="; ".join(parts),
            adopts=True,
            own_uids=self._own_uids,
            relays=True,
        )


def _end(note: Note) -> None:
    """End a sandbox that was not adopted; blocking."""
    try:
        pidfd = note.agent.open()
    except ProcessLookupError:
        return
    try:
        if not note.isolated:  # then the agent ends the rest
            send_signal(pidfd, signal.SIGTERM)
            if wait_for_end(pidfd, DESTROY_SECONDS):
                return
        send_signal(pidfd, signal.SIGKILL)
        wait_for_end(pidfd, DESTROY_SECONDS)
    finally:
        os.close(pidfd)


async def _output(sandbox: LocalSandbox, argv: list[str]) -> bytes:
    process = await sandbox.exec(argv)
    output = bytearray()
    try:
        while (data := await process.read()) and len(output) < _PROBE_BYTES:
            output += data
    finally:
        await process.aclose()
    return bytes(output)


def _kernel() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))
