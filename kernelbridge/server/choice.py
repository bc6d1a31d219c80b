"""Which runtime a server uses, and the workspace image that it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelbridge.config import Settings
from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.images import ensure_image
from kernelbridge.runtimes.base import Runtime
from kernelbridge.runtimes.docker import DockerRuntime, probe_engine
from kernelbridge.runtimes.local import LocalRuntime, find_bubblewrap


async def open_runtime(settings: Settings, *, instance: str, on_progress: Callable[[str], None]) -> Runtime:
    """Choose and open the runtime; the workspace image is built if it is absent.

    `auto` takes docker if its engine answers, else local. Raises `RuntimeUnavailable` that says what
    to install, or `ImageError`.
    """
    if settings.runtime in {"auto", "docker"}:
        engine = await probe_engine()
        if engine.available:
            await asyncio.to_thread(
                ensure_image,
                settings.image,
                base=settings.images_base,
                ca_bundle=settings.ca_bundle,
                progress=on_progress,
            )
            return await DockerRuntime.open(image=settings.image, instance=instance)
        if settings.runtime == "docker":
            raise RuntimeUnavailable("The Docker engine does not answer", engine.reason)
        on_progress(f"no Docker engine answers ({engine.reason}); using the local runtime")
    if settings.isolation:
        bubblewrap = await find_bubblewrap()
        if not bubblewrap.usable:
            raise RuntimeUnavailable("There is nothing to isolate workspaces with", bubblewrap.remedy)
    return await LocalRuntime.open(
        isolation=settings.isolation, instance=instance, state_dir=settings.data_dir / "local"
    )
