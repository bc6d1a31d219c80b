"""How the kernel reports an out-of-memory kill in a control group: as an event, without polling.

Version 1: an eventfd that is registered with `memory.oom_control`. Version 2: `memory.events` has an exceptional
condition (POLLPRI) after every change, so an epoll instance watches it, and that can be waited for.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

from kernelbridge.runtimes.contract import OOM_EXIT_SECONDS


class OomNotice:
    """A descriptor that becomes readable when there may have been a kill. Made by `open_notice`."""

    def __init__(self, fd: int, take: Callable[[], object], closes: Callable[[], object]) -> None:
        self.fd = fd
        self._take, self._closes = take, closes

    def take(self) -> None:
        """Reset it until the next event; never blocks."""
        with contextlib.suppress(OSError):  # there was no event
            self._take()

    def close(self) -> None:
        """Close it. Idempotent."""
        closes, self._closes = self._closes, lambda: None
        closes()


class KillsSeen:
    """Decides which counted kills may explain an end that is seen now: a count has no names; pure."""

    def __init__(self) -> None:
        self._over = self._latest = 0
        self._since = 0.0

    def seen(self, kills: int, now: float) -> bool:
        """Note the count at a time in seconds; return whether it has grown."""
        if kills <= self._latest:
            return False
        self._over, self._latest, self._since = self.over(now), kills, now
        return True

    def over(self, now: float) -> int:
        """Return how many were seen so long ago that they explain nothing that ends now."""
        return self._latest if now - self._since > OOM_EXIT_SECONDS else self._over


def open_notice(group: Path, version: int) -> OomNotice:
    """Watch a memory group; raises OSError if the kernel does not report kills."""
    return _by_eventfd(group) if version == 1 else _by_epoll(group)


def _by_eventfd(group: Path) -> OomNotice:
    with contextlib.ExitStack() as undo:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        undo.callback(os.close, event)
        control = os.open(group / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            (group / "cgroup.event_control").write_text(f"{event} {control}", encoding="ascii")
        finally:
            os.close(control)
        return OomNotice(event, lambda: os.eventfd_read(event), undo.pop_all().close)


def _by_epoll(group: Path) -> OomNotice:
    with contextlib.ExitStack() as undo:
        events = os.open(group / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, events)
        watch = select.epoll()
        undo.callback(watch.close)
        watch.register(events, select.EPOLLPRI)

        def take() -> None:
            os.pread(events, 4096, 0)  # it stays readable until it has been read
            watch.poll(0)

        take()
        return OomNotice(watch.fileno(), take, undo.pop_all().close)
