"""`kernelbridge serve`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
import structlog
from rich.console import Console

from kernelbridge import log
from kernelbridge.cli import screen
from kernelbridge.cli.build_progress import BuildProgress
from kernelbridge.cli.options import EVERYWHERE, GroupedCommand, with_settings
from kernelbridge.errors import KernelBridgeError
from kernelbridge.settings.settings import Settings

if TYPE_CHECKING:
    from kernelbridge.server.app import StartReport


@click.command(cls=GroupedCommand, epilog=EVERYWHERE)
@with_settings()
def serve(settings: Settings) -> int:
    """Start the server; stop it with Ctrl-C or SIGTERM.

    The first message of a session starts its sandbox. With docker, a missing workspace image is built first.
    """
    from kernelbridge.server import app  # noqa: PLC0415 - loads the whole server: not for --help

    log.configure(settings.log_format, settings.log_level)
    console = screen.output()
    progress = BuildProgress(console)
    on_progress, on_started, on_stopping = _announcements(settings, console, progress)
    # A SIGTERM during the start ends it in order, as Ctrl-C does; later the server handles both.
    # A shell ignores SIGINT for programs in the background, so it is set here as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _signum, _frame: signal.raise_signal(signal.SIGINT))
    serving = app.serve(settings, on_progress=on_progress, on_started=on_started, on_stopping=on_stopping)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_stoppable(serving))
    finally:
        progress.end()  # if the start failed
    return 0


async def _stoppable(serving: Coroutine[Any, Any, None]) -> None:
    """Serve. If the start is cancelled and then fails, it counts as cancelled."""
    try:
        await serving
    except KernelBridgeError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise


def _announcements(
    settings: Settings, console: Console, progress: BuildProgress
) -> tuple[Callable[[str], None], Callable[[StartReport], None], Callable[[str], None]]:
    """Return how to report progress, the start and the stop: on the screen, or in a JSON log."""
    if settings.log_format == "console":

        def on_started(report: StartReport) -> None:
            progress.end()
            screen.write_started(console, report)

        return progress, on_started, screen.errors().print
    logger = structlog.get_logger(__name__)

    def started(report: StartReport) -> None:
        logger.info(
            "started",
            url=report.url,
            auth=report.auth,
            runtime=report.runtime.name,
            detail=report.runtime.detail,
            isolation=report.runtime.isolation,
            network=report.network,
            image=report.image,
            data_dir=str(report.data_dir),
            metrics=report.metrics,
            warning=report.runtime.warning,
        )

    return (
        lambda line: logger.info("progress", line=line),
        started,
        lambda line: logger.info("stopping", detail=line),
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory if it is installed; it is not available on every platform."""
    if find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory
