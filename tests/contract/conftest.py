"""All runtimes, and specs for them."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.runtimes.contract import Limits, Runtime, Sandbox, SandboxSpec
from tests.contract import tiny_runtime
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
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    async with _open(request, tmp_path) as opened:
        yield opened


def _open(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractAsyncContextManager[Runtime]:
    if request.param == "local":
        return local_runtime(tmp_path / "state")
    if request.param == "tiny":
        return tiny_runtime.tiny_runtime(tmp_path / "state")
    from tests.contract.docker_fixture import docker_runtime  # noqa: PLC0415 - the local half runs without an engine

    return docker_runtime(request.getfixturevalue("workspace_image"))


@pytest.fixture
async def make_spec(runtime: Runtime, tmp_path: Path) -> MakeSpec:
    """Make a spec with directories of its own; keyword arguments are limits."""
    facts = await runtime.prepare()
    made: list[SandboxSpec] = []

    def make(**limits: Any) -> SandboxSpec:
        home = tmp_path / f"w{len(made)}"
        files, sockets = home / "files", home / "sockets"
        for path in (files, sockets):
            path.mkdir(parents=True)
            path.chmod(0o755)
            if os.geteuid() == 0:
                os.chown(path, facts.uid, facts.gid)
        spec = SandboxSpec(f"c0ffee{os.getpid():x}{len(made):02x}", files, sockets, Limits(**limits))
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
async def sandbox(runtime: Runtime, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
    """One running sandbox with default limits, made of the `spec` of the same test."""
    made = await runtime.create(spec)
    yield made
    await made.destroy()
