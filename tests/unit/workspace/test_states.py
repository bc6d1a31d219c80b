"""The two tables: complete where it matters, and no state without a way out."""

from enum import Enum
from pathlib import Path

import pytest

import kernelbridge.workspace
from kernelbridge.workspace.lifecycle.pausing import ASLEEP
from kernelbridge.workspace.states import (
    KERNEL,
    WORKSPACE,
    InvalidTransitionError,
    KernelAction,
    KernelEvent,
    KernelState,
    Machine,
    WorkspaceAction,
    WorkspaceEvent,
    WorkspaceState,
)


def reachable(table: object, start: Enum) -> set[Enum]:
    seen = {start}
    while True:
        more = {t.state for (state, _), t in table.items() if state in seen} - seen  # type: ignore[attr-defined]
        if not more:
            return seen
        seen |= more


def test_every_state_is_reachable() -> None:
    assert reachable(WORKSPACE, WorkspaceState.ABSENT) == set(WorkspaceState)
    assert reachable(KERNEL, KernelState.ABSENT) == set(KernelState)


@pytest.mark.parametrize("actions", [WorkspaceAction, KernelAction])
def test_every_action_is_executed(actions: type[Enum]) -> None:
    room = Path(kernelbridge.workspace.__file__).parent
    code = "".join(path.read_text() for path in room.rglob("*.py") if path.name != "states.py")
    assert [action for action in actions if action.name != "NOTHING" and f"is {action}" not in code] == []


def test_every_living_workspace_can_be_closed() -> None:
    for state in set(WorkspaceState) - {WorkspaceState.CLOSING, WorkspaceState.CLOSED}:
        assert WORKSPACE[state, WorkspaceEvent.CLOSE] == (WorkspaceState.CLOSING, WorkspaceAction.NOTHING)


def test_a_lost_sandbox_is_started_again_by_the_next_message() -> None:
    machine = Machine(WORKSPACE, WorkspaceState.ACTIVE)
    assert machine.on(WorkspaceEvent.LOST) is WorkspaceAction.FORGET
    assert machine.on(WorkspaceEvent.NEED) is WorkspaceAction.START


def test_a_start_that_ends_during_the_close_does_not_bring_the_workspace_back() -> None:
    machine = Machine(WORKSPACE, WorkspaceState.STARTING)
    machine.on(WorkspaceEvent.CLOSE)
    machine.on(WorkspaceEvent.STARTED)
    machine.on(WorkspaceEvent.LOST)
    assert machine.state.name == "CLOSING"
    machine.on(WorkspaceEvent.DESTROYED)
    assert machine.state.name == "CLOSED"


def test_only_a_kernel_that_was_ready_makes_its_successor_a_restart() -> None:
    machine = Machine(KERNEL, KernelState.ABSENT)
    machine.on(KernelEvent.NEED)
    assert machine.on(KernelEvent.START_FAILED) is KernelAction.NOTHING
    assert machine.state.name == "ABSENT"
    machine.on(KernelEvent.NEED)
    assert machine.on(KernelEvent.STARTED) is KernelAction.NOTHING
    machine.on(KernelEvent.DIED)
    machine.on(KernelEvent.NEED)
    assert machine.state.name == "RESTARTING"


def test_an_event_that_a_state_does_not_know_is_a_bug() -> None:
    with pytest.raises(InvalidTransitionError, match="DIED in state ABSENT"):
        Machine(KERNEL, KernelState.ABSENT).on(KernelEvent.DIED)


def test_a_message_during_a_pause_resumes_the_sandbox() -> None:
    machine = Machine(WORKSPACE, WorkspaceState.ACTIVE)
    assert machine.on(WorkspaceEvent.IDLE) is WorkspaceAction.PAUSE
    assert machine.on(WorkspaceEvent.NEED) is WorkspaceAction.NOTHING
    assert machine.on(WorkspaceEvent.PAUSED) is WorkspaceAction.RESUME
    assert machine.on(WorkspaceEvent.RESUMED) is WorkspaceAction.NOTHING
    assert machine.state.name == "ACTIVE"


@pytest.mark.parametrize("state", [state for state in WorkspaceState if state in ASLEEP], ids=lambda state: state.value)
def test_a_sandbox_may_be_lost_at_any_point_of_a_pause(state: WorkspaceState) -> None:
    assert WORKSPACE[state, WorkspaceEvent.LOST] == (WorkspaceState.ABSENT, WorkspaceAction.FORGET)


def test_only_the_end_of_its_sandbox_ends_a_workspace_that_closes() -> None:
    """Until then a session of this name must wait: both would have the same container and directories."""
    for (state, event), transition in WORKSPACE.items():
        if state is WorkspaceState.CLOSING:
            ends = transition.state is WorkspaceState.CLOSED
            assert ends is (event is WorkspaceEvent.DESTROYED), event
            assert ends or transition.state is WorkspaceState.CLOSING
