"""What a local sandbox makes of kills for memory that its control group counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelbridge.runtimes.contract import ExitStatus
from kernelbridge.runtimes.local.sandbox import LocalSandbox


class SlowGroup:
    """Stands for a sandbox whose control group counts a kill some looks after it has told of it."""

    def __init__(self, kills: int = 0, *, counted_before: int = 0, ended: bool = False) -> None:
        self.kills = kills
        self.killed = 0
        self.looks: list[int] = []
        self._look_at_memory = None
        self._loop = SimpleNamespace(time=lambda: 0.0, call_later=self._later)
        self._ended = SimpleNamespace(done=lambda: ended)
        self._ending = False
        """Whether the server is ending it."""
        self._kills = SimpleNamespace(seen=lambda kills, _now: kills > 0, over=lambda _now: counted_before)

    def _later(self, _seconds: float, _look: object, polls: int) -> None:
        self.looks.append(polls)

    def _on_oom_kill(self) -> None:
        self.killed += 1

    def oom_kills(self) -> int:
        return self.kills

    def _killed_for_memory(self) -> bool:
        return self.kills > 0

    def look(self, polls: int) -> None:
        LocalSandbox._look_at_memory(cast("LocalSandbox", self), polls)


def test_a_kill_that_is_not_counted_yet_is_looked_for_again_and_not_for_ever() -> None:
    group = SlowGroup()
    group.look(2)
    while group.looks[-1]:
        group.look(group.looks[-1])
    group.look(0)
    assert group.looks == [1, 0]
    group.kills = 1
    group.look(1)
    assert (group.killed, group.looks) == (1, [1, 0])


def test_nothing_is_looked_for_in_a_sandbox_that_has_ended() -> None:
    group = SlowGroup(ended=True)
    group.look(2)
    assert group.looks == []


@pytest.mark.parametrize(
    ("status", "kills", "before", "at_start", "oom"),
    [
        (ExitStatus(signal=9), 1, 0, 0, True),
        (ExitStatus(code=137), 1, 0, 0, True),  # a shell whose command was killed
        (ExitStatus(signal=9), 1, 0, 1, False),  # the kill was before the program began
        (ExitStatus(signal=9), 1, 1, 0, False),  # it was another program's, and has been told
        (ExitStatus(signal=9), 0, 0, 0, False),
        (ExitStatus(signal=15), 1, 0, 0, False),
        (ExitStatus(code=9), 1, 0, 0, False),
    ],
)
def test_only_what_was_killed_has_run_out_of_memory(
    status: ExitStatus, kills: int, before: int, at_start: int, *, oom: bool
) -> None:
    told: list[Any] = []
    LocalSandbox.judge(cast("LocalSandbox", SlowGroup(kills, counted_before=before)), status, at_start, told.append)
    assert told == [ExitStatus(code=status.code, signal=status.signal, oom=oom)]


@pytest.mark.parametrize(
    ("returncode", "ending", "kills", "status"),
    [
        (0, False, 0, ExitStatus(code=0)),
        (128, False, 0, ExitStatus(code=128)),
        (-15, False, 0, ExitStatus(signal=15)),
        (137, False, 0, ExitStatus(signal=9)),
        (137, False, 1, ExitStatus(signal=9, oom=True)),
        (143, False, 1, ExitStatus(signal=15)),
        # An earlier server was the parent, and the system tells this one nothing.
        (None, False, 0, ExitStatus()),
        (None, False, 1, ExitStatus(signal=9, oom=True)),
        (None, True, 0, ExitStatus(signal=9)),
    ],
)
def test_how_a_sandbox_has_ended(returncode: int | None, kills: int, status: ExitStatus, *, ending: bool) -> None:
    sandbox = SlowGroup(kills)
    sandbox._ending = ending
    assert LocalSandbox._exit_status(cast("LocalSandbox", sandbox), returncode) == status
