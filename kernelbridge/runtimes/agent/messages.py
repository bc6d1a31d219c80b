"""The messages between the bridge and an agent; pure. `kernelbridge/guest/agent.py` documents each of them.

The agent runs among the user's programs and as the same user, so it may be hostile: its messages are bounded and
validated here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

PACKET = 4096
"""Bytes of the longest message."""
NAME_LENGTH = 200
"""Characters of the longest name of a program."""

Id = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Pid = Annotated[int, msgspec.Meta(ge=1, le=2**22)]
Code = Annotated[int, msgspec.Meta(ge=0, le=255)] | None
SignalNumber = Annotated[int, msgspec.Meta(ge=1, le=64)] | None
Name = Annotated[str, msgspec.Meta(max_length=NAME_LENGTH)]
Step = Literal["fork", "cwd", "program", "terminal"]


class Ready(msgspec.Struct, frozen=True, tag_field="op", tag="ready"):
    """The agent is ready; comes with a descriptor of the sandbox's ptmx."""

    relay: bool = False
    """Whether it listens at the proxy's port; agents of earlier versions do not say."""


class Connection(msgspec.Struct, frozen=True, tag_field="op", tag="connection"):
    """Comes with a connection that a program has made to the proxy's port."""


class Started(msgspec.Struct, frozen=True, tag_field="op", tag="started"):
    """A program runs."""

    id: Id
    pid: Pid


class Refused(msgspec.Struct, frozen=True, tag_field="op", tag="refused"):
    """A program could not be started."""

    id: Id
    step: Step
    errno: Annotated[int, msgspec.Meta(ge=0, le=4095)]


class Ended(msgspec.Struct, frozen=True, tag_field="op", tag="ended"):
    """A program has ended; what it started may still run."""

    id: Id
    code: Code
    signal: SignalNumber


class Killed(msgspec.Struct, frozen=True, tag_field="op", tag="killed"):
    """A kill is done."""

    id: Id
    all: bool
    """Whether nothing is left of the program; then the agent has forgotten it."""


class Known(msgspec.Struct, frozen=True, tag_field="op", tag="known"):
    """A program that runs, or has ended and was not killed; one of the answers to `List`."""

    id: Id
    program: Id
    name: Name
    pid: Pid
    tty: bool
    running: bool
    code: Code
    signal: SignalNumber


class Attached(msgspec.Struct, frozen=True, tag_field="op", tag="attached"):
    """Comes with the requested descriptor."""

    id: Id


class Room(msgspec.Struct, frozen=True, tag_field="op", tag="room"):
    """How much room there is for processes."""

    id: Id
    crowded: bool | None
    """Whether there is hardly any; None if the agent cannot know."""
    waits: bool
    """Whether the bash that was asked about sleeps before it tries again to fork."""


class Moment(msgspec.Struct, frozen=True, tag_field="op", tag="moment"):
    """The time in the sandbox."""

    id: Id
    ticks: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    last: Annotated[int, msgspec.Meta(ge=0, le=2**22)]
    kills: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Done(msgspec.Struct, frozen=True, tag_field="op", tag="done"):
    """The last answer to a request, or the only one."""

    id: Id
    all: bool
    """Whether it was done completely."""


Answer = Started | Refused | Ended | Killed | Known | Attached | Room | Moment | Done | Connection
_DECODER = msgspec.json.Decoder(Ready | Answer)


def decode(data: bytes) -> Ready | Answer | None:
    """Parse a packet of an agent; None if it is not a valid message."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None


class Spawn(msgspec.Struct, frozen=True, tag_field="op", tag="spawn"):
    """Start a program. Its argv, env and cwd, which may exceed a packet, and its output come as descriptors."""

    id: int
    name: str
    tty: bool


class Signal(msgspec.Struct, frozen=True, tag_field="op", tag="signal"):
    """Send a signal to the process group of a program."""

    id: int
    signal: int


class Kill(msgspec.Struct, frozen=True, tag_field="op", tag="kill"):
    """SIGKILL a program and everything that it ever started, and forget it."""

    id: int


class Prune(msgspec.Struct, frozen=True, tag_field="op", tag="prune"):
    """SIGKILL everything that a program has started, but not the program itself."""

    id: int
    program: int
    since: tuple[int, int] | None
    """`ticks` and `last` of a `Moment`."""


class AskMoment(msgspec.Struct, frozen=True, tag_field="op", tag="moment"):
    """Ask for the time in the sandbox."""

    id: int


class List(msgspec.Struct, frozen=True, tag_field="op", tag="list"):
    """Ask for every program."""

    id: int


class Attach(msgspec.Struct, frozen=True, tag_field="op", tag="attach"):
    """Ask for the bridge's end of a program's pipe or terminal."""

    id: int
    program: int


class Hold(msgspec.Struct, frozen=True, tag_field="op", tag="hold"):
    """Keep the descriptor that comes with it, the bridge's end of a terminal, under a name."""

    name: str


class Take(msgspec.Struct, frozen=True, tag_field="op", tag="take"):
    """Ask for the descriptor that is kept under a name."""

    id: int
    name: str


class Drop(msgspec.Struct, frozen=True, tag_field="op", tag="drop"):
    """Close the descriptor that is kept under a name."""

    name: str


class Pause(msgspec.Struct, frozen=True, tag_field="op", tag="pause"):
    """SIGSTOP every program, until none runs."""

    id: int


class Resume(msgspec.Struct, frozen=True, tag_field="op", tag="resume"):
    """SIGCONT what `Pause` stopped."""

    id: int


class AskRoom(msgspec.Struct, frozen=True, tag_field="op", tag="room"):
    """Ask whether there is room for more processes, and whether a bash waits for it."""

    id: int
    pid: int


class Relay(msgspec.Struct, frozen=True, tag_field="op", tag="relay"):
    """Accept so many more connections at the proxy's port. Only for an agent whose `Ready` says that it can."""

    count: int


class Outlive(msgspec.Struct, frozen=True, tag_field="op", tag="outlive"):
    """Set for how long to live without a bridge."""

    seconds: float


class End(msgspec.Struct, frozen=True, tag_field="op", tag="end"):
    """End everything, and the agent."""


Request = (
    Spawn | Signal | Kill | Prune | AskMoment | List | Attach | Hold | Take | Drop | Pause | Resume | AskRoom
    | Relay | Outlive | End
)  # fmt: skip
