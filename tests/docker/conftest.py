"""Docker alone: what the contract suite cannot ask of every runtime."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import docker
import pytest

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import Limits, SandboxSpec
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from tests.contract.docker_fixture import docker_runtime
from tests.contract.driving import make_files
from tests.docker.faulty_engine import CuttableWire, cuttable_wire

MakeSpec = Callable[..., SandboxSpec]
MakeImage = Callable[..., str]


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    """The engine itself, behind the runtime's back."""
    opened = docker.from_env(version="auto")
    yield opened
    opened.close()


@pytest.fixture
def directories(tmp_path: Path) -> HostDirectories:
    """Those of all runtimes of a test."""
    return HostDirectories(tmp_path)


@pytest.fixture
async def runtime(workspace_image: str, directories: HostDirectories) -> AsyncIterator[DockerRuntime]:
    async with docker_runtime(workspace_image, directories=directories) as opened:
        yield opened


@pytest.fixture
def new_spec(directories: HostDirectories) -> MakeSpec:
    """Make a spec of a workspace with files of its own; keyword arguments are limits."""

    def make(uid: int = 1000, gid: int = 100, **limits: float) -> SandboxSpec:
        name = secrets.token_hex(8)
        make_files(directories, name, uid, gid)
        return SandboxSpec(name, Limits(**limits))  # type: ignore[arg-type]  # int or float, by name

    return make


@pytest.fixture
async def sandbox(runtime: DockerRuntime, new_spec: MakeSpec) -> AsyncIterator[DockerSandbox]:
    made = await runtime.create(new_spec())
    yield made
    await made.destroy()


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[CuttableWire]:
    async with cuttable_wire(tmp_path / "wire") as opened:
        yield opened


@pytest.fixture
async def wired(wire: CuttableWire, workspace_image: str, directories: HostDirectories) -> AsyncIterator[DockerRuntime]:
    async with docker_runtime(workspace_image, client_factory=wire.factory, directories=directories) as opened:
        yield opened


@pytest.fixture
def derived_image(client: docker.DockerClient, workspace_image: str) -> Iterator[MakeImage]:
    """Make an image like the workspace's, changed by Dockerfile instructions; removed after the test."""
    made: list[str] = []

    def make(*changes: str, name: str | None = None) -> str:
        container = client.api.create_container(workspace_image, ["true"])["Id"]
        try:
            repository = name or f"kernelbridge-test-{secrets.token_hex(4)}"
            made.append(client.api.commit(container, repository, "latest", changes="\n".join(changes))["Id"])
        finally:
            client.api.remove_container(container)
        return f"{repository}:latest"

    yield make
    for image in made:
        client.api.remove_image(image, force=True)
