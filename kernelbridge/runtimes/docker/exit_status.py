"""How containers ended, according to the engine, and which ends were for want of memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from signal import SIGKILL
from typing import Any

from kernelbridge.runtimes.contract import OOM_EXIT_SECONDS, ExitStatus

OOM_GRACE = 0.5
"""Seconds that a SIGKILL waits for such an event: the engine may report it later."""
OOM_ECHO = 0.1
"""Seconds between two such events, by the engine's clock, that belong to one kill: each process that waits for memory
causes one. Measured on version 1 of control groups: up to 26 for two kills, most within 25 ms."""

_SIGNAL_BASE = 128
_LAST_SIGNAL = 64


def exit_status(code: int | None) -> ExitStatus:
    """Translate an exit code of the engine: 128 + the number stands for a signal."""
    if code is not None and _SIGNAL_BASE < code <= _SIGNAL_BASE + _LAST_SIGNAL:
        return ExitStatus(signal=code - _SIGNAL_BASE)
    return ExitStatus(code=code)


def end_of(state: Mapping[str, Any]) -> ExitStatus:
    """Translate the engine's `State` of a container that has ended."""
    status = exit_status(state["ExitCode"])
    return replace(status, oom=bool(state.get("OOMKilled")) and status.signal is not None)


class OomCount:
    """Counts a container's out-of-memory kills; pure."""

    def __init__(self) -> None:
        self.kills = 0
        self._last: float | None = None

    def event(self, at: float | None) -> bool:
        """Count an event, with its time in seconds of the engine's clock; return whether it is another kill."""
        last, self._last = self._last, at
        if last is not None and at is not None and abs(at - last) <= OOM_ECHO:
            return False
        self.kills += 1
        return True


@dataclass(slots=True)
class _Case:
    status: ExitStatus
    then: Callable[[ExitStatus], None]
    timer: asyncio.TimerHandle | None = None


class OomWatch:
    """Decides whether a SIGKILL in a container came from the out-of-memory killer.

    The engine's event names the container, not the process, and may come before or after the report of the death.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._last = -OOM_EXIT_SECONDS
        self._cases: list[_Case] = []

    def reported(self) -> None:
        """Note an out-of-memory event."""
        self._last = self._loop.time()
        for case in list(self._cases):
            self._close(case, oom=True)

    def judge(self, status: ExitStatus, then: Callable[[ExitStatus], None]) -> None:
        """Call `then` with the final status: at once, or within `OOM_GRACE` seconds."""
        if status.signal != SIGKILL or status.oom:
            then(status)
        elif self._loop.time() - self._last <= OOM_EXIT_SECONDS:
            then(replace(status, oom=True))
        else:
            case = _Case(status, then)
            case.timer = self._loop.call_later(OOM_GRACE, self._close, case)
            self._cases.append(case)

    def _close(self, case: _Case, *, oom: bool = False) -> None:
        self._cases.remove(case)
        if case.timer is not None:
            case.timer.cancel()
        case.then(replace(case.status, oom=oom))
