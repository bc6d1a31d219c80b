"""Chooses and opens the runtime of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import Runtime
from kernelbridge.runtimes.local.runtime import LocalRuntime
from kernelbridge.settings.settings import Settings


async def open_runtime(
    settings: Settings,
    *,
    instance: str,
    directories: HostDirectories,
    on_progress: Callable[[str], None],
    left_to_docker: Callable[[], int] = lambda: 0,
) -> Runtime:
    """Choose and open the runtime; build or pull the workspace image if it is absent.

    `auto` is docker if its engine answers, else local. But it is not local if an earlier server has left sessions in
    containers: `left_to_docker` returns how many; it may block. Raises `RuntimeUnavailable` with what to install, or
    `ImageError`.
    """
    no_engine = ""
    if settings.runtime in {"auto", "docker"}:
        from kernelbridge.server.open_docker import open_docker, probe_engine  # noqa: PLC0415 - 0.2 s of its start

        engine = await probe_engine()
        if engine.available:
            return await open_docker(
                settings,
                instance=instance,
                directories=directories,
                own_uid=_own_uid(settings),
                on_progress=on_progress,
            )
        if settings.runtime == "docker":
            raise RuntimeUnavailable("The Docker engine does not answer", engine.reason)
        if left := await asyncio.to_thread(left_to_docker):
            raise RuntimeUnavailable("The Docker engine does not answer", _sessions_left(engine.reason, left))
        no_engine = engine.reason
        on_progress(f"No Docker engine answers ({no_engine}): using the local runtime.")
    try:
        # In a thread, because it runs bubblewrap once as a test.
        return await asyncio.to_thread(
            LocalRuntime,
            isolation=settings.isolation,
            instance=instance,
            directories=directories,
            own_uid=_own_uid(settings),
            hidden=settings.own_files(),
        )
    except RuntimeUnavailable as exc:
        if no_engine:
            raise RuntimeUnavailable(
                "Workspaces cannot be isolated here",
                f"no Docker engine answers ({no_engine}), and the local runtime does not work: {exc.reason}",
            ) from exc
        raise


def _sessions_left(reason: str, left: int) -> str:
    sessions = "1 session of an earlier server is" if left == 1 else f"{left} sessions of an earlier server are"
    return (
        f"{reason}. {sessions} still in its containers, so the local runtime is not used instead: start the server"
        " again when the engine runs, or use --runtime local, with which these sessions lose their variables"
    )


def _own_uid(settings: Settings) -> int | None:
    return None if settings.uid_range is None else settings.uid_range[1]
