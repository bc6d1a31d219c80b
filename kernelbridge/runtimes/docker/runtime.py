"""Sandboxes as Docker containers, one per workspace.

DockerRuntime        makes, finds again and removes containers (this module)
├── spec             what the engine is told about one: all of its isolation (pure)
├── guest            the agent's program, where the engine finds it
├── image            what the image offers, once per digest
├── sandbox          one container, and the connection to its agent
│   ├── pauses       whether it stands still
│   └── exit_status  what its exit means: code, signal, out of memory
├── info             what the runtime says of itself
├── sockets          the limit of socket buffers, which engines do not set
├── removals         what the engine did not remove when it was asked to
├── events           the thread that follows the engine's event stream
└── engine           calls to the engine, in threads, in bounded time

The engine makes, pauses and removes containers and tells of their ends. Programs in them are started by their agent,
`runtimes/agent`: what runs goes on whatever becomes of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import docker
import msgspec
import structlog
from docker.errors import APIError, NotFound

from kernelbridge.errors import ConfigError, RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.agent.client import START_SECONDS, agent_command
from kernelbridge.runtimes.agent.directory import NAME as AGENT
from kernelbridge.runtimes.agent.directory import AgentDirectory
from kernelbridge.runtimes.contract import SOCKETS_PATH, Left, SandboxSpec
from kernelbridge.runtimes.docker.engine import (
    CALL_TIMEOUT,
    GONE,
    ClientFactory,
    Engine,
    EngineInfo,
    explain,
    no_answer,
    probe_engine,
)
from kernelbridge.runtimes.docker.events import EngineEvent, EventFollower
from kernelbridge.runtimes.docker.exit_status import end_of
from kernelbridge.runtimes.docker.guest import FILE, deliver
from kernelbridge.runtimes.docker.image import WorkspaceImage
from kernelbridge.runtimes.docker.info import mounts_terminals, runtime_info, start_problem
from kernelbridge.runtimes.docker.removals import Removals
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from kernelbridge.runtimes.docker.sockets import limit_socket_buffers
from kernelbridge.runtimes.docker.spec import (
    GUEST_PATH,
    INSTANCE_LABEL,
    LAUNCH_LABEL,
    WORKSPACE_LABEL,
    Launch,
    workspace_mounts,
)
from kernelbridge.runtimes.docker.tasks import Background
from kernelbridge.runtimes.facts import Facts
from kernelbridge.runtimes.processors import thread_counts
from kernelbridge.runtimes.seccomp import docker_profile

__all__ = ["DockerRuntime", "EngineInfo", "probe_engine"]

log = structlog.get_logger(__name__)

_REMOVAL_PAUSE = 0.1
"""Seconds between two looks at a removal that is under way."""
_CONFLICT = 409
_NOT_FOUND = 404


class DockerRuntime:
    """Makes sandboxes with a Docker engine (`runtimes.base.Runtime`). Use `open`."""

    def __init__(
        self,
        engine: Engine,
        about: EngineInfo,
        *,
        image: str,
        instance: str,
        guest: Path,
        seccomp: str | None,
        own_uid: int | None,
    ) -> None:
        own_uid = None if os.geteuid() or "rootless" in about.security else own_uid
        self.info = runtime_info(about, own_uids=own_uid is not None)
        self._engine = engine
        self._instance = instance
        self._guest = guest
        self._cpus = about.cpus
        self._old_cgroups = about.cgroup_version == "1"
        self._background = Background()
        self._removals = Removals(self._background)
        self._sandboxes: dict[str, DockerSandbox] = {}
        # Launches that were given up while the engine did not answer: it may still carry them out.
        self._given_up: set[str] = set()
        self._closed = False
        self._released = False
        self._connected = asyncio.Event()
        self._launch = partial(
            Launch,
            instance=instance,
            seccomp=seccomp,
            userns_remap="userns" in about.security,
            own_terminals=mounts_terminals(about),
        )
        self._new_image = partial(
            WorkspaceImage, engine=engine, background=self._background, launch=self._new_launch, any_uid=own_uid
        )
        self._default_image = image
        # As many as the operator allows.
        self._images: dict[str, WorkspaceImage] = {}
        self._events = EventFollower(
            engine.new_client,
            label=self._own_label,
            on_event=self._take_event,
            on_connected=self._stream_began,
        )

    @classmethod
    async def open(
        cls,
        *,
        image: str,
        instance: str,
        guest: Path,
        client_factory: ClientFactory = docker.from_env,
        profile_file: Path | None = None,
        call_timeout: float = CALL_TIMEOUT,
        own_uid: int | None = None,
    ) -> DockerRuntime:
        """Connect to the engine; raises `RuntimeUnavailable`, or `ConfigError` for an unreadable profile.

        `guest` is a directory of this server's for what is mounted into containers; like those of a `SandboxSpec`, it
        has the same path for the engine. `profile_file` is a seccomp profile to use in place of kernelbridge's own.
        `own_uid` is one of the user ids that sandboxes may be given (`SandboxSpec.uid`); None if none shall be.
        `instance` names this server's data directory: its containers carry it, and only those are ever touched.
        """
        profile = docker_profile() if profile_file is None else _read_profile(profile_file)
        engine = Engine(client_factory, timeout=call_timeout)
        try:
            about = await engine.open()
        except APIError as exc:
            await engine.aclose()
            raise RuntimeUnavailable("The Docker engine does not answer", explain(exc)) from exc
        except BaseException:
            await engine.aclose()
            raise
        runtime = cls(
            engine,
            about,
            image=image,
            instance=instance,
            guest=guest,
            seccomp=profile if "seccomp" in about.security else None,
            own_uid=own_uid,
        )
        try:
            async with asyncio.timeout(call_timeout):
                await runtime._connected.wait()
        except TimeoutError as exc:
            await runtime.aclose()
            raise no_answer("following its events", call_timeout) from exc
        except BaseException:
            await runtime.aclose()
            raise
        return runtime

    def __repr__(self) -> str:
        return f"<DockerRuntime {self._instance}, {len(self._sandboxes)} sandboxes>"

    async def prepare(self, image: str | None = None) -> Facts:
        """Learn what a new sandbox will look like; raises `ImageError`."""
        _, facts = await self._image(image).current()
        return facts

    def _image(self, name: str | None) -> WorkspaceImage:
        name = self._default_image if name is None else name
        if name not in self._images:
            self._images[name] = self._new_image(name, start=partial(self._start, name))
        return self._images[name]

    async def create(self, spec: SandboxSpec) -> DockerSandbox:
        """Make and start a container; raises `SandboxError` or `ImageError`, and then leaves nothing behind."""
        if self._closed:
            raise SandboxError("No sandbox can be made", "the runtime was closed")
        return await self._background.whole(
            self._create(spec), undo=DockerSandbox.destroy, doing=f"making the sandbox of {spec.workspace_id}"
        )

    async def adopt(self, left: Mapping[str, Left]) -> dict[str, DockerSandbox]:
        """Take over those containers of earlier servers that still run; see `base.Runtime.adopt`."""
        for row in await self._listed(self._own_label):
            known = left.get(row["Labels"].get(WORKSPACE_LABEL, ""))
            if known is not None and known.sandbox_id == row["Id"] and row["Id"] not in self._sandboxes:
                # Before it is looked at: its end may be told at any time from here on.
                self._known(row["Id"]).facts = known.facts
        adopted: dict[str, DockerSandbox] = {}
        for workspace_id, known in left.items():
            sandbox = self._sandboxes.get(known.sandbox_id)
            if sandbox is not None and await self._adopted(sandbox):
                adopted[workspace_id] = sandbox
            elif sandbox is not None:
                sandbox.leave()
                self._dropped(sandbox)
        return adopted

    async def _adopted(self, sandbox: DockerSandbox) -> bool:
        """Look at a container that an earlier server started; say whether it still runs."""
        found = await self._inspected(sandbox)
        if found is None or not found["State"].get("Running"):
            return False
        mounts = {mount["Destination"]: mount.get("Source", "") for mount in found["Mounts"]}
        if GUEST_PATH not in mounts:
            return False  # made by a version that had no agent
        sandbox.adopted(AgentDirectory(Path(mounts[SOCKETS_PATH])))
        return sandbox.alive

    async def reclaim(self) -> int:
        """Remove the containers of earlier servers with the same instance; return how many. Some may stay at first."""
        found = await self._listed(self._own_label)
        stale = [row["Id"] for row in found if row["Id"] not in self._sandboxes]
        attempts = (self._removals.attempt(each, partial(self._remove, each)) for each in stale)
        removed = sum(await asyncio.gather(*attempts))
        await self._remove_volumes(self._own_label)
        return removed

    async def _remove_volumes(self, label: str) -> None:
        """Remove volumes with a label that no container has any more: it was removed by others, without them."""
        try:
            await self._engine.call(partial(_remove_unused_volumes, label=label), doing="removing volumes")
        except (APIError, RuntimeUnavailable) as exc:
            log.warning("volumes_left", label=label, reason=str(exc))  # the next server removes them

    async def aclose(self, *, keep: bool = False) -> None:
        """Remove every container that it made, but for `keep`; end its threads. Idempotent.

        What cannot be removed is logged.
        """
        self._closed = True
        self._removals.stop()
        await self._background.settle()
        sandboxes = list(self._sandboxes.values())
        await asyncio.gather(*(self._clean_up(token) for token in self._given_up))
        if keep:
            while sandboxes:
                sandboxes.pop().leave()
        results = await asyncio.gather(*(box.destroy() for box in sandboxes), return_exceptions=True)
        for box, result in zip(sandboxes, results, strict=True):
            if isinstance(result, BaseException):
                log.warning("container_left_behind", container=box.id, reason=str(result))
        await self._background.settle()
        if not self._released and not any(isinstance(result, BaseException) for result in results):
            await self._remove_volumes(self._own_label)
        if self._released:
            return
        self._released = True
        self._events.stop()
        await self._engine.join(partial(self._events.join, self._engine.timeout))
        await self._engine.aclose()

    @property
    def _own_label(self) -> str:
        return f"{INSTANCE_LABEL}={self._instance}"

    def _new_launch(self, **details: Any) -> Launch:
        return self._launch(token=secrets.token_hex(8), **details)

    async def _create(self, spec: SandboxSpec) -> DockerSandbox:
        workspace_image = self._image(spec.image)
        image, facts = await workspace_image.current()
        facts = msgspec.structs.replace(
            facts,
            uid=facts.uid if spec.uid is None else spec.uid,
            env={**thread_counts(spec.limits.cpus, facts.env), **facts.env},
        )
        directory = AgentDirectory(spec.sockets)
        try:
            guest = await asyncio.to_thread(self._prepared, directory)
        except OSError as exc:
            raise SandboxError("The sandbox could not be made", f"{exc.strerror}: {exc.filename}") from exc
        launch = self._new_launch(
            workspace_id=spec.workspace_id,
            image=image,
            command=agent_command(
                facts.python.executable,
                f"{GUEST_PATH}/{FILE}",
                f"{SOCKETS_PATH}/{AGENT}",
                rlimits={},  # the engine has set them
                start=START_SECONDS,
            ),
            user=f"{facts.uid}:{facts.gid}",
            # The engine refuses to promise more than the host has.
            limits=replace(spec.limits, cpus=min(spec.limits.cpus, self._cpus or spec.limits.cpus)),
            mounts=workspace_mounts(spec, guest),
        )
        try:
            sandbox = await self._start(workspace_image.name, launch)
        except BaseException:
            directory.close()
            raise
        sandbox.facts = facts
        try:
            await sandbox.reach(directory)
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    def _prepared(self, directory: AgentDirectory) -> Path:
        guest = deliver(self._guest)
        directory.prepare()
        return guest

    async def _start(self, image: str, launch: Launch) -> DockerSandbox:
        """Make and start a container: two calls, when all is well."""
        sandbox: DockerSandbox | None = None
        try:
            sandbox = await self._make(launch)
            container_id = sandbox.id
            await self._engine.call(lambda api: api.start(container_id), doing="starting a container")
            if self._old_cgroups:
                await asyncio.to_thread(limit_socket_buffers, container_id, launch.limits.socket_buffers)
        except (RuntimeUnavailable, APIError) as exc:
            if sandbox is not None:
                self._dropped(sandbox)
            if isinstance(exc, RuntimeUnavailable):
                self._give_up(launch)
                raise
            await self._clean_up(launch.token)
            if exc.status_code == _NOT_FOUND and "no such image" in explain(exc).lower():
                raise self._image(image).absent() from exc
            raise SandboxError("The sandbox could not be started", start_problem(explain(exc))) from exc
        return sandbox

    async def _make(self, launch: Launch) -> DockerSandbox:
        def make(api: Any) -> str:  # untyped: the stubs lack this call
            made: str = api.create_container_from_config(launch.container(), launch.name)["Id"]
            return made

        loop = asyncio.get_running_loop()
        last = loop.time() + self._engine.timeout
        while True:
            try:
                container_id = await self._engine.call(make, doing="making a container")
                break
            except APIError as exc:
                if exc.status_code != _CONFLICT or loop.time() > last:
                    raise
            await self._remove_stale(launch)
        return self._known(container_id)

    def _known(self, container_id: str) -> DockerSandbox:
        """Have its events told to what stands for a container."""
        sandbox = self._sandboxes[container_id] = DockerSandbox(
            container_id,
            engine=self._engine,
            background=self._background,
            on_removed=self._dropped,
            removals=self._removals,
        )
        return sandbox

    def _dropped(self, sandbox: DockerSandbox) -> None:
        self._sandboxes.pop(sandbox.id, None)

    async def _remove_stale(self, launch: Launch) -> None:
        """Remove what an earlier server left under the name that `launch` needs; raises `SandboxError`."""
        try:
            there = await self._engine.call(
                lambda api: api.inspect_container(launch.name), doing="looking up a container"
            )
        except APIError as exc:
            if exc.status_code == _NOT_FOUND:
                return
            raise
        labels = there["Config"]["Labels"] or {}
        ours = labels.get(INSTANCE_LABEL) == self._instance and labels.get(WORKSPACE_LABEL) == launch.workspace_id
        known = self._sandboxes.get(there["Id"])
        if known is not None and known.leaving:
            # Perhaps the engine is about to: it does not say when it has, only that the name is still taken.
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=_REMOVAL_PAUSE)
        elif known is not None:
            raise SandboxError("The sandbox could not be made", "this workspace already has one")
        if not ours:
            raise SandboxError(
                "The sandbox could not be made",
                f"a container that is not this server's is called {launch.name}; rename or remove it",
            )
        await self._remove(there["Id"])

    async def _remove(self, container_id: str) -> None:
        try:
            await self._engine.call(
                lambda api: api.remove_container(container_id, v=True, force=True), doing="removing a container"
            )
        except APIError as exc:
            if exc.status_code not in GONE:
                raise SandboxError(f"Container {container_id[:12]} cannot be removed", explain(exc)) from exc

    async def _listed(self, label: str) -> list[dict[str, Any]]:
        try:
            return await self._engine.call(
                lambda api: api.containers(all=True, filters={"label": label}), doing="listing containers"
            )
        except APIError as exc:
            raise SandboxError("The engine's containers cannot be listed", explain(exc)) from exc

    async def _clean_up(self, token: str) -> None:
        """Remove what a failed launch has left; if the engine cannot, then when it can."""
        try:
            await self._remove_launch(token)
        except SandboxError as exc:
            self._given_up.add(token)
            self._removals.insist(token, partial(self._remove_launch, token), reason=exc)

    def _give_up(self, launch: Launch) -> None:
        """Leave a launch that the engine did not answer. If it comes into being after all, it is removed."""
        self._given_up.add(launch.token)
        self._background.spawn(self._clean_up(launch.token), doing=f"removing what became of {launch.name}")

    async def _remove_launch(self, token: str) -> None:
        for row in await self._listed(f"{LAUNCH_LABEL}={token}"):
            await self._remove(row["Id"])
            self._given_up.discard(token)

    def _take_event(self, event: EngineEvent) -> None:
        if (sandbox := self._sandboxes.get(event.container)) is not None:
            if event.action == "destroy" and not sandbox.leaving and (token := event.labels.get(LAUNCH_LABEL)):
                label = f"{LAUNCH_LABEL}={token}"
                self._background.spawn(self._remove_volumes(label), doing="removing the volumes of a container")
            sandbox.take_event(event)
        elif event.action in {"create", "start"} and (token := event.labels.get(LAUNCH_LABEL)) in self._given_up:
            self._background.spawn(self._clean_up(token), doing="removing a container that came too late")

    def _stream_began(self) -> None:
        if self._connected.is_set() and not self._closed:
            self._background.spawn(self._catch_up(), doing="catching up with the engine")
        self._connected.set()

    async def _catch_up(self) -> None:
        """Learn what happened while the engine's events could not be followed."""
        try:
            for sandbox in list(self._sandboxes.values()):
                try:
                    await self._look_at(sandbox)
                except RuntimeUnavailable:
                    raise
                except SandboxError as exc:  # what is wrong with one is no reason not to look at the others
                    log.warning("container_not_inspected", container=sandbox.id, reason=str(exc))
            for token in list(self._given_up):
                await self._remove_launch(token)
        except SandboxError as exc:
            log.warning("docker_catch_up_failed", reason=str(exc))
            self._events.reconnect()

    async def _look_at(self, sandbox: DockerSandbox) -> None:
        # Not in a list of all: that may still call running what the engine has told the end of.
        found = await self._inspected(sandbox)
        if found is None:
            sandbox.lost()
        elif found["State"]["Status"] in {"exited", "dead"}:
            sandbox.died(end_of(found["State"]))
        else:
            sandbox.pauses.seen(paused=bool(found["State"].get("Paused")))

    async def _inspected(self, sandbox: DockerSandbox) -> dict[str, Any] | None:
        """Give what the engine says of a container; None if it has none of that name. Raises `SandboxError`."""
        try:
            found: dict[str, Any] = await self._engine.call(
                lambda api: api.inspect_container(sandbox.id), doing="inspecting a container"
            )
        except APIError as exc:
            if exc.status_code == _NOT_FOUND:
                return None
            raise SandboxError("The engine's containers cannot be inspected", explain(exc)) from exc
        return found


def _remove_unused_volumes(api: Any, *, label: str) -> None:  # untyped: the stubs leave the answers open
    found = api.volumes(filters={"label": label, "dangling": True})["Volumes"] or ()
    for volume in found:
        with contextlib.suppress(NotFound):  # somebody else was faster
            api.remove_volume(volume["Name"])


def _read_profile(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The seccomp profile {path} cannot be read", str(exc)) from exc
