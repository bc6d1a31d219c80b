"""`kernelbridge serve`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click
import structlog

from kernelbridge import log
from kernelbridge.cli import screen
from kernelbridge.cli.options import EVERYWHERE, GroupedCommand, with_settings
from kernelbridge.errors import KernelBridgeError
from kernelbridge.server.start_report import StartReport
from kernelbridge.settings.settings import Settings


@click.command(cls=GroupedCommand, epilog=EVERYWHERE)
@with_settings()
def serve(settings: Settings) -> int:
    """Serve the WebSocket until SIGTERM or Ctrl-C.

    The first message of a session starts its sandbox. Without the workspace image (docker), it is built first.
    """
    from kernelbridge.server import allocator, app  # noqa: PLC0415 - loads the whole server: not for --help

    allocator.return_large_blocks()
    log.configure(settings.log_format, settings.log_level)
    on_progress, on_started, on_stopping = _announcements(settings)
    # Until the server handles it: a SIGTERM during the start ends it as Ctrl-C does, in order.
    # A shell starts what runs in the background with SIGINT ignored: then neither would do anything.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _signum, _frame: signal.raise_signal(signal.SIGINT))
    serving = app.serve(settings, on_progress=on_progress, on_started=on_started, on_stopping=on_stopping)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_stoppable(serving))
    return 0


async def _stoppable(serving: Coroutine[Any, Any, None]) -> None:
    """Serve; a start that was told to stop was stopped, also if what it waited for fails just then."""
    try:
        await serving
    except KernelBridgeError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise


def _announcements(
    settings: Settings,
) -> tuple[Callable[[str], None], Callable[[StartReport], None], Callable[[str], None]]:
    """Say how progress, the start and the stop are told: to a person on the screen, to a machine in its log."""
    if settings.log_format == "console":
        console = screen.output()
        return console.print, lambda report: screen.write_started(console, report), screen.errors().print
    logger = structlog.get_logger(__name__)

    def started(report: StartReport) -> None:
        logger.info(
            "started",
            url=report.url,
            runtime=report.runtime,
            detail=report.detail,
            isolation=report.isolation,
            image=report.image,
            data_dir=str(report.data_dir),
            warning=report.warning,
        )

    return (
        lambda line: logger.info("progress", line=line),
        started,
        lambda line: logger.info("stopping", detail=line),
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give uvloop's loops where it is installed: it is not for every platform."""
    if find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory
