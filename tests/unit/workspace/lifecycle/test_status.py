"""What is told of a session that is paused."""

from typing import Any

import pytest

from kernelbridge.workspace.lifecycle.status import StatusReporter
from kernelbridge.workspace.states import KernelState, WorkspaceState

S, K = WorkspaceState, KernelState


class Told:
    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []
        self.teller = StatusReporter(lambda status, _detail, cause: self.all.append((status, cause or None)))

    def walk(self, *states: tuple[WorkspaceState, KernelState]) -> list[str]:
        for sandbox, kernel in states:
            self.teller.changed(sandbox, kernel, lost=False)
        return [status for status, _ in self.all]


ACTIVE = ((S.STARTING, K.ABSENT), (S.ACTIVE, K.STARTING), (S.ACTIVE, K.READY))


def test_a_pause_and_its_end_are_reported_once_each() -> None:
    told = Told()
    again = ((S.PAUSING, K.READY), (S.PAUSED, K.READY), (S.RESUMING, K.READY), (S.ACTIVE, K.READY))
    assert told.walk(*ACTIVE, *again, *again) == ["starting", "ready", *["paused", "resumed"] * 2]


def test_a_pause_that_a_message_undoes_early_is_not_reported() -> None:
    assert Told().walk(*ACTIVE, (S.PAUSING, K.READY), (S.RESUMING, K.READY), (S.ACTIVE, K.READY)) == [
        "starting",
        "ready",
    ]


def test_a_failed_resume_is_not_reported_as_another_pause() -> None:
    failed = ((S.PAUSED, K.READY), (S.RESUMING, K.READY))
    assert Told().walk(*ACTIVE, *failed, *failed, (S.ACTIVE, K.READY)) == ["starting", "ready", "paused", "resumed"]


def test_a_change_of_the_interpreter_is_reported_after_the_pause() -> None:
    states = ((S.PAUSED, K.READY), (S.PAUSED, K.DEAD), (S.RESUMING, K.DEAD), (S.ACTIVE, K.DEAD))
    told = Told()
    assert told.walk(*ACTIVE, *states) == ["starting", "ready", "paused", "resumed", "ready"]
    assert told.all[-1] == ("ready", "kernel_died")


@pytest.mark.parametrize("state", [S.PAUSED, S.RESUMING])
def test_a_paused_session_that_is_closed_is_not_resumed_first(state: WorkspaceState) -> None:
    states = ((S.PAUSED, K.READY), (state, K.READY), (S.CLOSING, K.READY), (S.CLOSED, K.READY))
    assert Told().walk(*ACTIVE, *states) == ["starting", "ready", "paused", "closing", "closed"]


def test_the_loss_of_a_paused_sandbox_is_reported() -> None:
    told = Told()
    told.walk(*ACTIVE, (S.PAUSED, K.READY))
    told.teller.changed(S.ABSENT, K.READY, lost=True)
    assert told.all[-1] == ("closed", "sandbox_lost")
    assert told.walk((S.STARTING, K.DEAD), (S.ACTIVE, K.RESTARTING), (S.ACTIVE, K.READY))[-1] == "ready"
    assert "resumed" not in [status for status, _ in told.all]
