"""Opens the runtime docker, and builds the workspace image if it is missing.

Apart from `open_runtime`, because it loads the engine's library: a server with the local runtime starts without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelbridge.images.build import ensure_image
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.engine import probe_engine
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.settings.settings import Settings

__all__ = ["open_docker", "probe_engine"]


async def open_docker(
    settings: Settings,
    *,
    instance: str,
    directories: HostDirectories,
    own_uid: int | None,
    on_progress: Callable[[str], None],
) -> DockerRuntime:
    """Build or pull the workspace image if it is absent, and open the runtime.

    Raises `RuntimeUnavailable` or `ImageError`.
    """
    await asyncio.to_thread(
        ensure_image,
        settings.image,
        base=settings.images_base,
        ca_bundle=settings.ca_bundle,
        network=settings.images_network,
        mirror=settings.images_mirror,
        progress=on_progress,
    )
    return await DockerRuntime.open(
        image=settings.image,
        instance=instance,
        directories=directories,
        profile_file=settings.seccomp_profile,
        own_uid=own_uid,
        oci_runtime=settings.oci_runtime,
        gpus=settings.gpus,
    )
