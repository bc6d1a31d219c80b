"""Sandboxes as Docker containers, one per workspace.

DockerRuntime        makes, adopts and removes containers (this module)
├── spec             the request that makes one: all of its isolation (pure)
├── guest            the agent's program, as a file that is mounted into containers
├── image            what an image offers, once per digest
├── sandbox          one container
│   └── exit_status  what its exit means: code, signal, out of memory
├── info             the description of the runtime
├── sockets          the limit of socket buffers, which engines do not set
├── removals         removals that the engine has not carried out yet
├── events           the thread that follows the engine's event stream
└── engine           calls to the engine, in threads, in bounded time

The engine makes and removes containers and reports their ends. Everything in them is started, paused and ended by their
agent (`runtimes/agent`), so it does not depend on the engine.
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
from kernelbridge.runtimes.accounts import group, passwd
from kernelbridge.runtimes.agent.client import START_SECONDS, agent_command
from kernelbridge.runtimes.agent.directory import NAME as AGENT
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import PROXY_PORT, SHARED_PATH, PreviousSandbox, SandboxSpec
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
from kernelbridge.runtimes.docker.info import check_oci_runtime, mounts_terminals, runtime_info, start_problem
from kernelbridge.runtimes.docker.removals import Removals
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from kernelbridge.runtimes.docker.sockets import limit_socket_buffers
from kernelbridge.runtimes.docker.spec import (
    GUEST_PATH,
    HOSTNAME,
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

_REMOVAL_POLL = 0.1
"""Seconds between two checks of a removal that is under way."""
_CONFLICT = 409
_NOT_FOUND = 404


class DockerRuntime:
    """Makes sandboxes with a Docker engine (`contract.Runtime`). Made by `open`."""

    def __init__(
        self,
        engine: Engine,
        about: EngineInfo,
        *,
        image: str,
        instance: str,
        directories: HostDirectories,
        seccomp: str | None,
        own_uid: int | None,
        oci_runtime: str | None,
        gpus: str | None,
    ) -> None:
        own_uid = None if os.geteuid() or "rootless" in about.security else own_uid
        self.info = runtime_info(about, own_uids=own_uid is not None, oci_runtime=oci_runtime)
        self._engine = engine
        self._instance = instance
        self._directories = directories
        self._cpus = about.cpus
        self._old_cgroups = about.cgroup_version == "1"
        self._background = Background()
        self._removals = Removals(self._background)
        self._sandboxes: dict[str, DockerSandbox] = {}
        # Launches that failed while the engine did not answer: it may still carry them out.
        self._given_up: set[str] = set()
        self._closed = False
        self._released = False
        self._connected = asyncio.Event()
        self._launch = partial(
            Launch,
            instance=instance,
            seccomp=seccomp,
            oci_runtime=oci_runtime,
            gpus=gpus,
            userns_remap="userns" in about.security,
            own_terminals=mounts_terminals(about),
        )
        self._new_image = partial(
            WorkspaceImage, engine=engine, background=self._background, launch=self._new_launch, any_uid=own_uid
        )
        self._default_image = image
        self._images: dict[str, WorkspaceImage] = {}
        self._events = EventFollower(
            engine.new_client,
            label=self._own_label,
            on_event=self._on_event,
            on_connected=self._on_connected,
        )

    @classmethod
    async def open(
        cls,
        *,
        image: str,
        instance: str,
        directories: HostDirectories,
        client_factory: ClientFactory = docker.from_env,
        profile_file: Path | None = None,
        call_timeout: float = CALL_TIMEOUT,
        own_uid: int | None = None,
        oci_runtime: str | None = None,
        gpus: str | None = None,
    ) -> DockerRuntime:
        """Connect to the engine; raises `RuntimeUnavailable`, or `ConfigError` for an option that cannot be used.

        Arguments: `image`, the default one; `instance`, a label for this server's containers, and only these are ever
        touched; `directories`, what containers see of this machine, with the same paths for the engine; `profile_file`,
        a seccomp profile in place of kernelbridge's own; `call_timeout`, seconds for one call to the engine; `own_uid`,
        one of the user ids that `SandboxSpec.uid` may name, or None if sandboxes have no own ones; `oci_runtime`, the
        engine's name of the program that runs containers, or None for its default one; `gpus`, those of each container:
        `all`, a number, or `device=ID,…`.
        """
        profile = docker_profile() if profile_file is None else _read_profile(profile_file)
        engine = Engine(client_factory, timeout=call_timeout)
        try:
            about = await engine.open()
            if oci_runtime is not None:
                check_oci_runtime(oci_runtime, about)
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
            directories=directories,
            seccomp=profile if "seccomp" in about.security else None,
            own_uid=own_uid,
            oci_runtime=oci_runtime,
            gpus=gpus,
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
        """Return what a sandbox of an image offers; raises `ImageError`."""
        _, facts = await self._image(image).current()
        return facts

    def _image(self, name: str | None) -> WorkspaceImage:
        name = self._default_image if name is None else name
        if name not in self._images:
            self._images[name] = self._new_image(name, start=partial(self._start, name))
        return self._images[name]

    async def create(self, spec: SandboxSpec) -> DockerSandbox:
        """Make and start a container; raises `SandboxError` or `ImageError`."""
        if self._closed:
            raise SandboxError("The sandbox could not be started", "the server is stopping")
        return await self._background.whole(self._create(spec), undo=DockerSandbox.destroy)

    async def adopt(self, previous: Mapping[str, PreviousSandbox]) -> dict[str, DockerSandbox]:
        """Adopt the containers of earlier servers that still run."""
        adopted: dict[str, DockerSandbox] = {}
        for row in await self._listed(self._own_label):
            workspace_id = row["Labels"].get(WORKSPACE_LABEL, "")
            found = previous.get(workspace_id)
            if found is None or found.sandbox_id != row["Id"]:
                continue
            sandbox = self._track(row["Id"])  # before it is inspected: from here on its end may be reported
            if await self._adopted(sandbox, found.facts):
                adopted[workspace_id] = sandbox
            else:
                sandbox.leave()
                await sandbox.remove_shared()
                self._forget(sandbox)
        return adopted

    async def _adopted(self, sandbox: DockerSandbox, facts: Facts) -> bool:
        """Connect to a container that an earlier server started; return whether it runs."""
        state = await self._inspected(sandbox)
        if state is None or not state["State"].get("Running"):
            return False
        mounts = {mount["Destination"]: mount.get("Source", "") for mount in state["Mounts"]}
        if state["State"].get("Paused"):  # by somebody else
            await self._unpause(sandbox)
        try:
            shared = self._directories.adopt(Path(mounts[SHARED_PATH]), SHARED_PATH)
            await sandbox.reconnect(shared, facts)
        except SandboxError as exc:
            log.warning("sandbox_not_adopted", container=sandbox.id, reason=str(exc))
            return False
        return sandbox.alive

    async def reclaim(self) -> int:
        """Remove the containers of earlier servers with the same instance; return how many. The rest is retried."""
        found = await self._listed(self._own_label)
        stale = [row["Id"] for row in found if row["Id"] not in self._sandboxes]
        attempts = (self._removals.attempt(each, partial(self._remove, each)) for each in stale)
        removed = sum(await asyncio.gather(*attempts))
        await self._remove_volumes(self._own_label)
        await asyncio.to_thread(self._directories.remove_others)
        return removed

    async def _remove_volumes(self, label: str) -> None:
        """Remove volumes with a label that no container uses: somebody removed the container without them."""
        try:
            await self._engine.call(partial(_remove_unused_volumes, label=label), doing="removing volumes")
        except (APIError, RuntimeUnavailable) as exc:
            log.warning("volumes_left", label=label, reason=str(exc))  # the next server tries again

    async def aclose(self, *, keep: bool = False) -> None:
        """Remove every container, or leave all to the next server; end the threads. Idempotent.

        Containers that cannot be removed are logged.
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
        image, image_facts = await workspace_image.current()
        facts = msgspec.structs.replace(
            image_facts,
            uid=image_facts.uid if spec.uid is None else spec.uid,
            env={"HOSTNAME": HOSTNAME, **thread_counts(spec.limits.cpus, image_facts.env), **image_facts.env},
        )
        if spec.uid is not None and facts.passwd:
            database = {"passwd": passwd(image_facts, spec.uid).encode(), "group": group(image_facts).encode()}
            spec = replace(spec, texts={**spec.texts, **database})
        try:
            guest = await asyncio.to_thread(deliver, self._directories.root / "guest")
        except OSError as exc:
            raise SandboxError("The sandbox could not be made", f"{exc.strerror}: {exc.filename}") from exc
        shared = await self._directories.share(self.info.name, spec)
        launch = self._new_launch(
            workspace_id=spec.workspace_id,
            image=image,
            command=agent_command(
                facts.python.executable,
                f"{GUEST_PATH}/{FILE}",
                f"{SHARED_PATH}/{AGENT}",
                rlimits={},  # the engine sets them
                start=START_SECONDS,
                proxy=PROXY_PORT,
            ),
            user=f"{facts.uid}:{facts.gid}",
            # The engine refuses more than the host has.
            limits=replace(spec.limits, cpus=min(spec.limits.cpus, self._cpus or spec.limits.cpus)),
            mounts=workspace_mounts(self._directories.files(spec.workspace_id), shared.host, guest, spec),
        )
        try:
            sandbox = await self._start(workspace_image.name, launch)
        except BaseException:
            await asyncio.to_thread(shared.remove)
            raise
        try:
            await sandbox.connect(shared, facts)
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def _start(self, image: str, launch: Launch) -> DockerSandbox:
        """Make and start a container: two calls to the engine, if nothing goes wrong."""
        sandbox: DockerSandbox | None = None
        try:
            sandbox = await self._make(launch)
            container_id = sandbox.id
            await self._engine.call(lambda api: api.start(container_id), doing="starting a container")
            if self._old_cgroups:
                await asyncio.to_thread(limit_socket_buffers, container_id, launch.limits.socket_buffers)
        except (RuntimeUnavailable, APIError) as exc:
            if sandbox is not None:
                self._forget(sandbox)
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
        return self._track(container_id)

    def _track(self, container_id: str) -> DockerSandbox:
        """Return a new object for a container, which from now on gets the container's events."""
        sandbox = self._sandboxes[container_id] = DockerSandbox(
            container_id,
            engine=self._engine,
            background=self._background,
            on_removed=self._forget,
            removals=self._removals,
        )
        return sandbox

    def _forget(self, sandbox: DockerSandbox) -> None:
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
            # The engine may still be at it: it does not report the end, only that the name is still in use.
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=_REMOVAL_POLL)
        elif known is not None:
            raise SandboxError("The sandbox could not be made", "this workspace already has one")
        if not ours:
            raise SandboxError(
                "The sandbox could not be made",
                f"another server's container is called {launch.name}; rename or remove it",
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
        """Remove what a failed launch has left; later, if the engine cannot do it now."""
        try:
            await self._remove_launch(token)
        except SandboxError as exc:
            self._given_up.add(token)
            self._removals.insist(token, partial(self._remove_launch, token), reason=exc)

    def _give_up(self, launch: Launch) -> None:
        """Give up a launch that the engine did not answer. Its container is removed if it is made after all."""
        self._given_up.add(launch.token)
        self._background.create(self._clean_up(launch.token))

    async def _remove_launch(self, token: str) -> None:
        for row in await self._listed(f"{LAUNCH_LABEL}={token}"):
            await self._remove(row["Id"])
            self._given_up.discard(token)

    def _on_event(self, event: EngineEvent) -> None:
        if (sandbox := self._sandboxes.get(event.container)) is not None:
            if event.action == "destroy" and not sandbox.leaving and (token := event.labels.get(LAUNCH_LABEL)):
                label = f"{LAUNCH_LABEL}={token}"
                self._background.create(self._remove_volumes(label))
            elif event.action == "pause":  # by somebody else: the server pauses programs, not containers
                self._background.create(self._unpause(sandbox))
            sandbox.on_event(event)
        elif event.action in {"create", "start"} and (token := event.labels.get(LAUNCH_LABEL)) in self._given_up:
            self._background.create(self._clean_up(token))

    async def _unpause(self, sandbox: DockerSandbox) -> None:
        """Unpause a container, whose session would hang otherwise."""
        try:
            await self._engine.call(lambda api: api.unpause(sandbox.id), doing="unpausing a container")
        except (APIError, RuntimeUnavailable) as exc:
            log.warning("container_not_unpaused", container=sandbox.id, reason=str(exc))
        else:
            log.warning("container_unpaused", container=sandbox.id)

    def _on_connected(self) -> None:
        if self._connected.is_set() and not self._closed:
            self._background.create(self._catch_up())
        self._connected.set()

    async def _catch_up(self) -> None:
        """Find out what happened while there was no event stream."""
        try:
            for sandbox in list(self._sandboxes.values()):
                try:
                    await self._look_at(sandbox)
                except RuntimeUnavailable:
                    raise
                except SandboxError as exc:  # the others have to be inspected all the same
                    log.warning("container_not_inspected", container=sandbox.id, reason=str(exc))
            for token in list(self._given_up):
                await self._remove_launch(token)
        except SandboxError as exc:
            log.warning("docker_catch_up_failed", reason=str(exc))
            self._events.reconnect()

    async def _look_at(self, sandbox: DockerSandbox) -> None:
        # Not from a list of all: that may still show as running what the engine has already reported as ended.
        found = await self._inspected(sandbox)
        if found is None:
            sandbox.on_loss()
        elif found["State"]["Status"] in {"exited", "dead"}:
            sandbox.on_death(end_of(found["State"]))
        elif found["State"].get("Paused"):
            await self._unpause(sandbox)

    async def _inspected(self, sandbox: DockerSandbox) -> dict[str, Any] | None:
        """Return the engine's data about a container; None if it does not exist. Raises `SandboxError`."""
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
        with contextlib.suppress(NotFound):  # somebody else has removed it
            api.remove_volume(volume["Name"])


def _read_profile(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The seccomp profile {path} cannot be read", str(exc)) from exc
