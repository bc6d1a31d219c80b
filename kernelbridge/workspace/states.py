"""The two state machines of a workspace, as tables; pure.

`WORKSPACE` is the life of the sandbox, `KERNEL` that of the interpreter in it. A transition has the next state and one
action, which the caller performs. An event that the table does not list for a state is a bug, and raises
`InvalidTransitionError`. The diagrams in docs/explanation/architecture.md are drawn from these tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar


class WorkspaceState(Enum):
    """Where a workspace's sandbox is in its life."""

    ABSENT = "absent"
    STARTING = "starting"
    ACTIVE = "active"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    CLOSING = "closing"
    CLOSED = "closed"


class WorkspaceEvent(Enum):
    """What happens to a workspace."""

    NEED = "a message needs the sandbox"
    STARTED = "the sandbox runs"
    START_FAILED = "the sandbox could not be started"
    IDLE = "nothing has used it for idle_timeout"
    PAUSED = "it is paused"
    PAUSE_FAILED = "it could not be paused"
    RESUMED = "it runs again"
    RESUME_FAILED = "it could not be resumed"
    LOST = "the sandbox ended by itself"
    CLOSE = "linger is over, or the server stops"
    DESTROYED = "the sandbox is gone"
    ADOPT = "an earlier server's sandbox still runs"


class WorkspaceAction(Enum):
    """What the sandbox's owner must do after a transition."""

    START = "start the sandbox"
    ADOPT = "adopt the sandbox"
    PAUSE = "pause the sandbox"
    RESUME = "resume the sandbox"
    NOTHING = "nothing"
    FORGET = "forget the sandbox; the next message starts another"


class KernelState(Enum):
    """Where a workspace's interpreter is in its life."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"
    RESTARTING = "restarting"
    ADOPTING = "adopting"
    """An earlier server's interpreter has not answered yet."""
    REPLACING = "replacing"
    """The same, and a client has asked for a restart."""


class KernelEvent(Enum):
    """What happens to an interpreter."""

    NEED = "a cell waits"
    STARTED = "it answered"
    START_FAILED = "it did not start"
    DIED = "it ended; its variables are lost"
    RESTART = "a client asks for a new one, or this one cannot be interrupted"
    ADOPT = "an earlier server's kernel still runs"


class KernelAction(Enum):
    """What the kernel's supervisor must do after a transition."""

    START = "start a kernel"
    ADOPT = "adopt the kernel"
    KILL = "end the kernel"
    NOTHING = "nothing"


S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
A = TypeVar("A", bound=Enum)


class Transition(NamedTuple, Generic[S, A]):
    """The next state, and the action to perform."""

    state: S
    action: A


class InvalidTransitionError(Exception):
    """An event that the present state does not allow: a bug in the caller."""


_WS, _WE, _WA = WorkspaceState, WorkspaceEvent, WorkspaceAction
WORKSPACE: Mapping[tuple[WorkspaceState, WorkspaceEvent], Transition[WorkspaceState, WorkspaceAction]] = (
    MappingProxyType(
        {
            (_WS.ABSENT, _WE.NEED): Transition(_WS.STARTING, _WA.START),
            (_WS.ABSENT, _WE.ADOPT): Transition(_WS.STARTING, _WA.ADOPT),
            (_WS.ABSENT, _WE.CLOSE): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.STARTING, _WE.STARTED): Transition(_WS.ACTIVE, _WA.NOTHING),
            (_WS.STARTING, _WE.START_FAILED): Transition(_WS.ABSENT, _WA.NOTHING),
            (_WS.STARTING, _WE.CLOSE): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.ACTIVE, _WE.IDLE): Transition(_WS.PAUSING, _WA.PAUSE),
            (_WS.PAUSING, _WE.PAUSED): Transition(_WS.PAUSED, _WA.NOTHING),
            # A pause that is under way is completed first, and then undone.
            (_WS.PAUSING, _WE.NEED): Transition(_WS.RESUMING, _WA.NOTHING),
            (_WS.RESUMING, _WE.PAUSED): Transition(_WS.RESUMING, _WA.RESUME),
            # The sandbox may be paused all the same.
            (_WS.PAUSING, _WE.PAUSE_FAILED): Transition(_WS.RESUMING, _WA.RESUME),
            (_WS.RESUMING, _WE.PAUSE_FAILED): Transition(_WS.RESUMING, _WA.RESUME),
            (_WS.PAUSED, _WE.NEED): Transition(_WS.RESUMING, _WA.RESUME),
            (_WS.RESUMING, _WE.RESUMED): Transition(_WS.ACTIVE, _WA.NOTHING),
            (_WS.RESUMING, _WE.RESUME_FAILED): Transition(_WS.PAUSED, _WA.NOTHING),
            (_WS.ACTIVE, _WE.LOST): Transition(_WS.ABSENT, _WA.FORGET),
            (_WS.PAUSING, _WE.LOST): Transition(_WS.ABSENT, _WA.FORGET),
            (_WS.PAUSED, _WE.LOST): Transition(_WS.ABSENT, _WA.FORGET),
            (_WS.RESUMING, _WE.LOST): Transition(_WS.ABSENT, _WA.FORGET),
            (_WS.ACTIVE, _WE.CLOSE): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.PAUSING, _WE.CLOSE): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.PAUSED, _WE.CLOSE): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.RESUMING, _WE.CLOSE): Transition(_WS.CLOSING, _WA.NOTHING),
            # A start that was under way when the close began still reports its end.
            (_WS.CLOSING, _WE.STARTED): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.CLOSING, _WE.START_FAILED): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.CLOSING, _WE.LOST): Transition(_WS.CLOSING, _WA.NOTHING),
            (_WS.CLOSING, _WE.DESTROYED): Transition(_WS.CLOSED, _WA.NOTHING),
        }
    )
)

_KS, _KE, _KA = KernelState, KernelEvent, KernelAction
KERNEL: Mapping[tuple[KernelState, KernelEvent], Transition[KernelState, KernelAction]] = MappingProxyType(
    {
        (_KS.ABSENT, _KE.NEED): Transition(_KS.STARTING, _KA.START),
        (_KS.ABSENT, _KE.ADOPT): Transition(_KS.ADOPTING, _KA.ADOPT),
        (_KS.ADOPTING, _KE.STARTED): Transition(_KS.READY, _KA.NOTHING),
        (_KS.ADOPTING, _KE.START_FAILED): Transition(_KS.ABSENT, _KA.NOTHING),
        # The old kernel cannot be ended before it has answered.
        (_KS.ADOPTING, _KE.RESTART): Transition(_KS.REPLACING, _KA.NOTHING),
        (_KS.REPLACING, _KE.RESTART): Transition(_KS.REPLACING, _KA.NOTHING),
        (_KS.REPLACING, _KE.STARTED): Transition(_KS.RESTARTING, _KA.KILL),
        (_KS.REPLACING, _KE.START_FAILED): Transition(_KS.RESTARTING, _KA.START),
        (_KS.STARTING, _KE.STARTED): Transition(_KS.READY, _KA.NOTHING),
        (_KS.STARTING, _KE.START_FAILED): Transition(_KS.ABSENT, _KA.NOTHING),
        (_KS.READY, _KE.DIED): Transition(_KS.DEAD, _KA.NOTHING),
        (_KS.READY, _KE.RESTART): Transition(_KS.RESTARTING, _KA.KILL),
        (_KS.RESTARTING, _KE.DIED): Transition(_KS.RESTARTING, _KA.START),
        (_KS.DEAD, _KE.RESTART): Transition(_KS.RESTARTING, _KA.START),
        (_KS.ABSENT, _KE.RESTART): Transition(_KS.STARTING, _KA.START),
        # The kernel that is being started is the new one.
        (_KS.STARTING, _KE.RESTART): Transition(_KS.STARTING, _KA.NOTHING),
        (_KS.RESTARTING, _KE.RESTART): Transition(_KS.RESTARTING, _KA.NOTHING),
        # From here on, the next result must report that variables are lost.
        (_KS.DEAD, _KE.NEED): Transition(_KS.RESTARTING, _KA.START),
        (_KS.RESTARTING, _KE.STARTED): Transition(_KS.READY, _KA.NOTHING),
        (_KS.RESTARTING, _KE.START_FAILED): Transition(_KS.DEAD, _KA.NOTHING),
    }
)


class Machine(Generic[S, E, A]):
    """The present state in a table."""

    def __init__(
        self, table: Mapping[tuple[S, E], Transition[S, A]], start: S, observer: Callable[[E], None] | None = None
    ) -> None:
        """Start in a state; `observer` is called with every event, after the transition."""
        self._table = table
        self._observer = observer
        self.state = start

    def on(self, event: E) -> A:
        """Take the transition for `event`, and return the action to perform."""
        transition = self._table.get((self.state, event))
        if transition is None:
            raise InvalidTransitionError(f"{event.name} in state {self.state.name}")
        self.state = transition.state
        if self._observer is not None:
            self._observer(event)
        return transition.action
