"""An engine whose containers are processes of this machine: what the Docker runtime asks of it, and nothing else.

The SDK talks to it by HTTP on a Unix socket, as to the real one. Tests see what was asked, and let it fail.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import docker
from aiohttp import web
from aiohttp.typedefs import Handler

API = "1.43"


@dataclass
class Container:
    """A container, which may run."""

    name: str
    config: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(32))
    process: asyncio.subprocess.Process | None = None
    status: str = "created"
    code: int = 0
    output: bytes = b""
    errors: bytes = b""
    paused: bool = False
    oom_killed: bool = False

    @property
    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.config["Labels"]
        return found

    @property
    def mounts(self) -> dict[str, str]:
        return {each["Target"]: each["Source"] for each in self.config["HostConfig"]["Mounts"] if "Source" in each}

    def on_host(self, word: str) -> str:
        """Replace a path of the container by the one on this machine."""
        for inside, outside in sorted(self.mounts.items(), reverse=True):
            word = word.replace(f"{inside}/", f"{outside}/")
        return word


class HostEngine:
    """The engine. `fail` answers requests in its place: given "METHOD /path", it returns a status and a message."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: dict[str, Container] = {}
        self.images: dict[str, dict[str, Any]] = {
            "i": {"Id": "sha256:1", "Os": "linux", "Config": {"Env": [f"PATH={Path(sys.executable).parent}:/bin"]}}
        }
        self.info: dict[str, Any] = {
            "ServerVersion": "1.2.3",
            "CgroupVersion": "2",
            "NCPU": 2,
            "MemTotal": 1 << 30,
            "SecurityOptions": ["name=seccomp,profile=builtin"],
            "Runtimes": {"runc": {}, "crun": {}},
        }
        self.volumes: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.fail: Callable[[str], tuple[int, str] | None] = lambda _: None
        self.held: dict[str, asyncio.Event] = {}
        """Requests that wait for an event before they are carried out."""
        self.stats: dict[str, Any] = {"memory_stats": {"usage": 12345}}
        self._streams: list[tuple[web.StreamResponse, asyncio.Event]] = []
        self._ends: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    @property
    def client(self) -> Callable[..., docker.DockerClient]:
        return partial(docker.DockerClient, base_url=f"unix://{self.path}")

    @property
    def only(self) -> Container:
        """The one container that there is."""
        (found,) = self.containers.values()
        return found

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until something is true, which only requests and ends change."""
        async with self._changed, asyncio.timeout(60):
            await self._changed.wait_for(true)

    async def cut_events(self) -> None:
        """End all streams of events."""
        for _, over in self._streams:
            over.set()
        self._streams.clear()

    async def event(self, action: str, container: Container, **attributes: str) -> None:
        raw = {
            "Type": "container",
            "Action": action,
            "Actor": {"ID": container.id, "Attributes": {**container.labels, **attributes}},
            "timeNano": 10**18,
        }
        for stream, _ in self._streams:
            with contextlib.suppress(ConnectionError):
                await stream.write(json.dumps(raw).encode() + b"\n")

    async def kill(self, container: Container) -> None:
        """End a container's process, from outside."""
        process = container.process
        if process is not None and container.status == "running":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await self.until(lambda: container.status != "running")

    async def remove(self, container: Container) -> None:
        await self.kill(container)
        self.containers.pop(container.id, None)
        await self.event("destroy", container)

    async def aclose(self) -> None:
        await self.cut_events()
        for container in list(self.containers.values()):
            await self.kill(container)
        await asyncio.gather(*self._ends)

    # -- requests -------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        at = f"/v{API}"
        app.router.add_routes(
            [
                web.get("/version", self._version),
                web.get(f"{at}/info", self._info),
                web.get(f"{at}/events", self._events),
                web.get(f"{at}/images/{{name}}/json", self._image),
                web.get(f"{at}/containers/json", self._list),
                web.post(f"{at}/containers/create", self._create),
                web.post(f"{at}/containers/{{id}}/start", self._start),
                web.post(f"{at}/containers/{{id}}/unpause", self._unpause),
                web.get(f"{at}/containers/{{id}}/json", self._inspect),
                web.get(f"{at}/containers/{{id}}/logs", self._logs),
                web.get(f"{at}/containers/{{id}}/stats", self._stats),
                web.delete(f"{at}/containers/{{id}}", self._delete),
                web.get(f"{at}/volumes", self._volumes),
                web.delete(f"{at}/volumes/{{name}}", self._delete_volume),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = f"{request.method} {request.path.removeprefix(f'/v{API}')}"
        self.asked.append(asked)
        try:
            if (failure := self.fail(asked)) is not None:
                return _refusal(*failure)
            if (proceed := self.held.get(asked)) is not None:
                await proceed.wait()
            return await handler(request)
        finally:
            async with self._changed:
                self._changed.notify_all()

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": API, "Version": "1.2.3"})

    async def _info(self, _request: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        stream, over = web.StreamResponse(), asyncio.Event()
        stream.enable_chunked_encoding()
        await stream.prepare(request)
        self._streams.append((stream, over))
        await over.wait()
        return stream

    async def _image(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = self.images.get(name)
        return _refusal(404, f"No such image: {name}") if found is None else web.json_response(found)

    async def _list(self, request: web.Request) -> web.Response:
        (label,) = json.loads(request.query["filters"])["label"]
        name, _, value = label.partition("=")
        rows = [
            {"Id": each.id, "Labels": each.labels, "State": each.status}
            for each in self.containers.values()
            if each.labels.get(name) == value
        ]
        return web.json_response(rows)

    async def _create(self, request: web.Request) -> web.Response:
        name = request.query["name"]
        if any(each.name == name for each in self.containers.values()):
            return _refusal(409, f"The container name {name} is already in use")
        made = Container(name, await request.json())
        self.containers[made.id] = made
        await self.event("create", made)
        return web.json_response({"Id": made.id, "Warnings": []}, status=201)

    async def _start(self, request: web.Request) -> web.Response:
        container = self.containers.get(request.match_info["id"])
        if container is None:
            return _refusal(404, "No such container")
        env = dict(each.split("=", 1) for each in container.config["Env"])
        image = next(each for each in self.images.values() if each["Id"] == container.config["Image"])
        env |= dict(each.split("=", 1) for each in image["Config"]["Env"])
        container.process = await asyncio.create_subprocess_exec(
            *map(container.on_host, container.config["Entrypoint"]),
            env=env,
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        container.status = "running"
        await self.event("start", container)
        self._ends.add(asyncio.create_task(self._until_ended(container, container.process)))
        return web.Response(status=204)

    async def _until_ended(self, container: Container, process: asyncio.subprocess.Process) -> None:
        container.output, container.errors = await process.communicate()
        code = await process.wait()
        container.code, container.status = (128 - code if code < 0 else code), "exited"
        await self.event("die", container, exitCode=str(container.code))
        async with self._changed:
            self._changed.notify_all()

    async def _unpause(self, request: web.Request) -> web.Response:
        self.containers[request.match_info["id"]].paused = False
        return web.Response(status=204)

    async def _inspect(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        for each in self.containers.values():
            if wanted in {each.id, each.name}:
                running = each.status == "running"
                state = {"Status": each.status, "Running": running, "Paused": each.paused, "ExitCode": each.code}
                mounts = [{"Destination": to, "Source": source} for to, source in each.mounts.items()]
                state["OOMKilled"] = each.oom_killed
                config = {"Labels": each.labels, "Tty": False}
                return web.json_response({"Id": each.id, "State": state, "Mounts": mounts, "Config": config})
        return _refusal(404, f"No such container: {wanted}")

    async def _logs(self, request: web.Request) -> web.Response:
        container = self.containers[request.match_info["id"]]
        shown = b""
        for number, text in ((1, container.output), (2, container.errors)):
            if text and request.query["stdout" if number == 1 else "stderr"] in {"1", "True", "true"}:
                shown += bytes((number, 0, 0, 0)) + len(text).to_bytes(4, "big") + text
        return web.Response(body=shown, content_type="application/vnd.docker.multiplexed-stream")

    async def _stats(self, _request: web.Request) -> web.Response:
        return web.json_response(self.stats)

    async def _delete(self, request: web.Request) -> web.Response:
        container = self.containers.get(request.match_info["id"])
        if container is None:
            return _refusal(404, "No such container")
        await self.remove(container)
        return web.Response(status=204)

    async def _volumes(self, request: web.Request) -> web.Response:
        filters = json.loads(request.query["filters"])
        (label,) = filters["label"]
        name, _, value = label.partition("=")
        found = [each for each in self.volumes if each["Labels"].get(name) == value]
        return web.json_response({"Volumes": found if filters["dangling"] == ["true"] else self.volumes})

    async def _delete_volume(self, request: web.Request) -> web.Response:
        self.volumes = [each for each in self.volumes if each["Name"] != request.match_info["name"]]
        return web.Response(status=204)


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)


@asynccontextmanager
async def host_engine(directory: Path) -> AsyncIterator[HostEngine]:
    """Run an engine whose socket is in a directory, which must have a short path."""
    engine = HostEngine(directory / "engine")
    runner = web.AppRunner(engine.app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.UnixSite(runner, str(engine.path)).start()
    try:
        yield engine
    finally:
        await engine.aclose()
        await runner.cleanup()
