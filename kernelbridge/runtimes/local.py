"""The local runtime: sandboxes without a container engine, in the python that kernelbridge is installed in.

LocalRuntime         makes sandboxes; this module
  local_host         what of this machine a sandbox sees
  local_bubblewrap   whether bubblewrap works here, and what to do where it does not
  local_mounts       pure: bubblewrap's arguments, the launching script
  seccomp            pure: the system-call filter, for both runtimes
  local_launcher     starts a process tree
  local_terminals    limits its terminals, where the server is not root
  cgroups            memory, process and CPU limits
LocalSandbox         one process tree          (local_sandbox)
  AgentLink          talks to its first process (local_agent, guest/agent.py)
  LocalProcess       one process in it         (local_process)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from kernelbridge.errors import ImageError, SandboxError
from kernelbridge.runtimes.base import SOCKETS_PATH, WORKSPACE_PATH, Left, Limits, RuntimeInfo, SandboxSpec
from kernelbridge.runtimes.cgroups import CONTROLLERS, Cgroup, Cgroups
from kernelbridge.runtimes.facts import PROBE, Facts, PythonFacts, parse_probe
from kernelbridge.runtimes.local_bubblewrap import BubblewrapInfo, find_bubblewrap
from kernelbridge.runtimes.local_host import Host, read_host
from kernelbridge.runtimes.local_launcher import Launched, launch_bare, launch_isolated
from kernelbridge.runtimes.local_links import ShortLinks
from kernelbridge.runtimes.local_sandbox import LocalSandbox
from kernelbridge.runtimes.processors import thread_counts
from kernelbridge.runtimes.seccomp import bpf_filter

_PROBE_BYTES = 1 << 20
_PROBE_SECONDS = 60.0
_NPROC_PER_NAMESPACE = (5, 14)
"""Since this version Linux counts RLIMIT_NPROC per user namespace; before, all sandboxes would share it."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where one sandbox's two directories are, for itself."""

    workspace: str
    sockets: str
    link: Path | None = None
    """A symlink that makes `sockets` short; removed with the sandbox."""


class LocalRuntime:
    """Makes local sandboxes; see `base.Runtime`. Construct it in a thread: it tries bubblewrap out, which blocks.

    `isolation=False` runs code as the server's own user, with all its rights. `instance` names this server
    among those on the machine; `state_dir` is its own directory; with `own_uid`, sandboxes may be given other user ids
    (`SandboxSpec.uid`). Raises `RuntimeUnavailable` where
    bubblewrap cannot make sandboxes, and `ImageError` where the python cannot be shown to one.
    """

    def __init__(
        self,
        *,
        instance: str,
        state_dir: Path,
        isolation: bool = True,
        bubblewrap: BubblewrapInfo | None = None,
        own_uid: int | None = None,
    ) -> None:
        self._isolation = isolation
        self._state_dir = state_dir
        host = read_host()
        self._bwrap = ""
        version = None
        if isolation:
            found = bubblewrap or find_bubblewrap(root=host.root)
            self._bwrap, version = found.require(), found.version
        else:
            names = {"USER", "LOGNAME"}  # the server's user has another one
            env = {name: value for name, value in host.env.items() if name not in names}
            host = replace(host, uid=os.geteuid(), gid=os.getegid(), env=env)
        self._host = host
        self._own_uids = isolation and host.root and own_uid is not None
        self._cgroups = Cgroups.find(instance)
        self._seccomp = bpf_filter(host.machine) if isolation else None
        self._sandboxes: set[LocalSandbox] = set()
        self._counter = itertools.count(1)
        self._links = ShortLinks(state_dir / "local-links")
        self._facts: Facts | None = None
        self._preparing = asyncio.Lock()
        self._closed = False
        self.info = self._describe(version)

    # -- the contract -----------------------------------------------------------

    async def prepare(self, image: str | None = None) -> Facts:
        """Learn what a sandbox looks like by asking one; raises `ImageError` or `SandboxError`."""
        if image is not None:
            raise ImageError(f"Image {image!r} cannot be used", "local sandboxes are not made of images")
        async with self._preparing:
            if self._facts is None:
                self._facts = await self._probe()
            return self._facts

    async def create(self, spec: SandboxSpec) -> LocalSandbox:
        """Make and start one; raises `SandboxError` or `ImageError`."""
        return await self._start(spec, await self.prepare(spec.image))

    async def reclaim(self) -> int:
        """Remove what a killed server left: its sandboxes died with it, their control groups did not."""
        self._links.reclaim()
        return await asyncio.to_thread(self._cgroups.reclaim)

    async def adopt(self, _left: Mapping[str, Left]) -> Mapping[str, LocalSandbox]:
        """Adopt nothing: a sandbox ends with the server that made it, lest it be left to itself."""
        return {}

    async def aclose(self, *, keep: bool = False) -> None:  # noqa: ARG002 - they cannot outlive the server
        """Destroy every sandbox."""
        self._closed = True
        results = await asyncio.gather(
            *(sandbox.destroy() for sandbox in list(self._sandboxes)), return_exceptions=True
        )
        self._links.close()
        await asyncio.to_thread(self._cgroups.close)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # -- making one -------------------------------------------------------------

    async def _start(self, spec: SandboxSpec, facts: Facts) -> LocalSandbox:
        if self._closed:
            raise SandboxError("The sandbox could not be started", "the server is stopping")
        name = f"{spec.workspace_id}-{next(self._counter)}-{secrets.token_hex(2)}"
        for path in (spec.files, spec.sockets):
            if not path.is_dir():
                raise SandboxError("The sandbox could not be started", f"{path} is not a directory")
        places = self._places(spec)
        counts = thread_counts(spec.limits.cpus, facts.env)
        cgroup: Cgroup | None = None
        try:
            if self._cgroups.usable:
                cgroup = self._cgroups.create(name, spec.limits)
            host = self._host if spec.uid is None else replace(self._host, uid=spec.uid)
            launched = self._launch(host, spec, cgroup)
        except BaseException as exc:
            self._release(name, cgroup, places)
            if isinstance(exc, OSError):
                raise SandboxError("The sandbox could not be started", f"{exc.strerror}: {exc.filename}") from exc
            raise
        sandbox = LocalSandbox(
            name,
            launched,
            msgspec.structs.replace(facts, uid=host.uid, env={**facts.env, **counts, "HOME": places.workspace}),
            workspace_path=places.workspace,
            sockets_path=places.sockets,
            isolated=self._isolation,
            cgroup=cgroup,
            on_ended=lambda: self._forget(sandbox, cgroup, places),
            release=lambda: cgroup is None or self._cgroups.release(name, cgroup, kill=True),
        )
        self._sandboxes.add(sandbox)
        try:
            await sandbox.until_ready()
            if self._isolation and not self._host.root:
                await sandbox.limit_terminals(spec.limits.ptys)
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    def _launch(self, host: Host, spec: SandboxSpec, cgroup: Cgroup | None) -> Launched:
        limits, limited = spec.limits, self._cgroups.controllers
        namespaced = self._isolation and _kernel() >= _NPROC_PER_NAMESPACE
        rlimits = limits.rlimits
        if namespaced:
            rlimits["nproc"] = limits.pids
        if "memory" not in limited:
            rlimits["data"] = limits.memory
        entrances = cgroup.entrances if cgroup is not None else []
        if not self._isolation:
            return launch_bare(host, rlimits, cgroups=entrances)
        return launch_isolated(
            host,
            self._bwrap,
            limits,
            rlimits,
            self._seccomp,
            files=spec.files,
            sockets=spec.sockets,
            cgroups=entrances,
        )

    def _places(self, spec: SandboxSpec) -> _Places:
        if self._isolation:
            return _Places(WORKSPACE_PATH, SOCKETS_PATH)
        sockets, link = self._links.shorten(spec.sockets)
        return _Places(str(spec.files.absolute()), sockets, link)

    def _forget(self, sandbox: LocalSandbox, cgroup: Cgroup | None, places: _Places) -> bool:
        self._sandboxes.discard(sandbox)
        return self._release(sandbox.id, cgroup, places)

    def _release(self, name: str, cgroup: Cgroup | None, places: _Places) -> bool:
        if places.link is not None:
            places.link.unlink(missing_ok=True)
        return cgroup is None or self._cgroups.release(name, cgroup, kill=False)

    # -- facts ------------------------------------------------------------------

    async def _probe(self) -> Facts:
        host = self._host
        python = PythonFacts(
            executable=host.python_executable, version=(0, 0), user_site=False, site_packages=(), base_executable=""
        )
        unknown = Facts(
            uid=host.uid, gid=host.gid, env=host.env, python=python, kernelspecs={}, shell=host.env["SHELL"]
        )
        home = self._state_dir / "local-probe"
        files, sockets = home / "files", home / "sockets"
        shutil.rmtree(home, ignore_errors=True)
        try:
            for path in (files, sockets):
                path.mkdir(parents=True)
            sandbox = await self._start(SandboxSpec("probe", files, sockets, Limits()), unknown)
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    output = await _output(sandbox, [host.python_executable, "-c", PROBE])
            finally:
                await sandbox.destroy()
        except TimeoutError as exc:
            raise ImageError("The workspace's python gives no facts", f"no end after {_PROBE_SECONDS:.0f} s") from exc
        finally:
            shutil.rmtree(home, ignore_errors=True)
        # Its user database is made for each sandbox.
        return msgspec.structs.replace(parse_probe(output, host.env), passwd="", group="", any_uid=self._own_uids)

    def _describe(self, version: str | None) -> RuntimeInfo:
        python = self._host.python_executable
        if not self._isolation:
            return RuntimeInfo(
                name="local",
                detail=f"no isolation; python {python}",
                isolation="none: code sees and may do whatever the server's own user may",
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
            own_uids=self._own_uids,
        )


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
