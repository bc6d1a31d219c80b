"""All runtimes, and specs for them."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import Limits, Runtime, Sandbox, SandboxSpec
from tests.contract import tiny_runtime
from tests.contract.driving import make_files
from tests.contract.local_fixture import local_runtime

MakeSpec = Callable[..., SandboxSpec]
MakeSandbox = Callable[..., Awaitable[Sandbox]]


DECLINED: Mapping[str, frozenset[str]] = {"docker": frozenset(), "local": frozenset(), "tiny": tiny_runtime.DECLINED}
"""The runtimes, and the promises that they do not make; see `needs`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on the runtimes that make the promises that it `needs`."""
    if "runtime" in metafunc.fixturenames:
        needed = {promise for mark in metafunc.definition.iter_markers("needs") for promise in mark.args}
        able = [name for name, declined in DECLINED.items() if not needed & declined]
        metafunc.parametrize("runtime", able, indirect=True)


@pytest.fixture
async def runtime(request: pytest.FixtureRequest, directories: HostDirectories) -> AsyncIterator[Runtime]:
    async with _open(request, directories) as opened:
        yield opened
    assert not (directories.root / "run").exists() or list((directories.root / "run").iterdir()) == []


def _open(request: pytest.FixtureRequest, directories: HostDirectories) -> AbstractAsyncContextManager[Runtime]:
    if request.param == "local":
        return local_runtime(directories)
    if request.param == "tiny":
        return tiny_runtime.tiny_runtime(directories)
    from tests.contract.docker_fixture import docker_runtime  # noqa: PLC0415 - the local half runs without an engine

    return docker_runtime(request.getfixturevalue("workspace_image"), directories=directories)


@pytest.fixture
def directories(tmp_path: Path) -> HostDirectories:
    """Those of the runtime."""
    return HostDirectories(tmp_path)


@pytest.fixture
async def make_spec(runtime: Runtime, directories: HostDirectories) -> MakeSpec:
    """Make a spec of a workspace with files of its own; keyword arguments are limits."""
    facts = await runtime.prepare()
    made: list[SandboxSpec] = []

    def make(**limits: Any) -> SandboxSpec:
        spec = SandboxSpec(f"c0ffee{os.getpid():x}{len(made):02x}", Limits(**limits))
        make_files(directories, spec.workspace_id, facts.uid, facts.gid)
        made.append(spec)
        return spec

    return make


@pytest.fixture
async def make_sandbox(runtime: Runtime, make_spec: MakeSpec) -> AsyncIterator[MakeSandbox]:
    """Make a running sandbox; keyword arguments are limits. Destroyed after the test."""
    made: list[Sandbox] = []

    async def make(**limits: Any) -> Sandbox:
        sandbox = await runtime.create(make_spec(**limits))
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        await sandbox.destroy()


@pytest.fixture
async def spec(make_spec: MakeSpec) -> SandboxSpec:
    return make_spec()


@pytest.fixture
def files(directories: HostDirectories, spec: SandboxSpec) -> Path:
    """The files of the workspace of `spec`."""
    return directories.files(spec.workspace_id)


@pytest.fixture
async def sandbox(runtime: Runtime, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
    """One running sandbox with default limits, made of the `spec` of the same test."""
    made = await runtime.create(spec)
    yield made
    await made.destroy()
