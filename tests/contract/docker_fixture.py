"""A `DockerRuntime` for tests, with an instance of its own."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import docker

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL


@asynccontextmanager
async def docker_runtime(image: str, **options: Any) -> AsyncIterator[DockerRuntime]:
    """Open a runtime; after it was closed, nothing that it made may be left."""
    instance = f"test-{secrets.token_hex(4)}"
    with TemporaryDirectory() as home:
        directories = options.pop("directories", None) or HostDirectories(Path(home))
        runtime = await DockerRuntime.open(image=image, instance=instance, directories=directories, **options)
        try:
            yield runtime
        finally:
            await runtime.aclose()
    assert containers(instance) == []
    assert volumes(instance) == []


def containers(instance: str) -> list[str]:
    """Names of all containers of an instance, as the default engine knows them."""
    client = docker.from_env(version="auto")
    try:
        rows = client.api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"})
        return sorted(name for row in rows for name in row["Names"])
    finally:
        client.close()


def volumes(instance: str) -> list[str]:
    """Names of all volumes of an instance."""
    client = docker.from_env(version="auto")
    try:
        found = client.api.volumes(filters={"label": f"{INSTANCE_LABEL}={instance}"})["Volumes"] or ()
        return sorted(volume["Name"] for volume in found)
    finally:
        client.close()
