"""What the bridge and an agent say to each other; pure. `kernelbridge/guest/agent.py` says what each of them means.

The agent runs among the user's programs and as the same user, so it may be anybody: what it sends is bounded and
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
    """The agent listens; a descriptor of the sandbox's ptmx comes with it."""


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
    """A program has ended; what it started may go on."""

    id: Id
    code: Code
    signal: SignalNumber


class Killed(msgspec.Struct, frozen=True, tag_field="op", tag="killed"):
    """A kill is over."""

    id: Id
    all: bool
    """Whether nothing is left of the program; then it is forgotten."""


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
    """The descriptor that was asked for comes with it."""

    id: Id


class Room(msgspec.Struct, frozen=True, tag_field="op", tag="room"):
    """Whether there is room for more processes."""

    id: Id
    crowded: bool | None
    waits: bool


class Moment(msgspec.Struct, frozen=True, tag_field="op", tag="moment"):
    """What time it is in the sandbox."""

    id: Id
    ticks: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    last: Annotated[int, msgspec.Meta(ge=0, le=2**22)]


class Done(msgspec.Struct, frozen=True, tag_field="op", tag="done"):
    """The last answer to a request that has no other."""

    id: Id
    all: bool
    """Whether it could be done."""


Answer = Started | Refused | Ended | Killed | Known | Attached | Room | Moment | Done
_DECODER = msgspec.json.Decoder(Ready | Answer)


def decode(data: bytes) -> Ready | Answer | None:
    """Read what an agent says; None if it is nothing that an agent says."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None


class Spawn(msgspec.Struct, frozen=True, tag_field="op", tag="spawn"):
    """Start a program. What may be longer than a packet (argv, env, cwd), and its output, come as descriptors."""

    id: int
    name: str
    tty: bool


class Signal(msgspec.Struct, frozen=True, tag_field="op", tag="signal"):
    """Signal the process group that the program leads."""

    id: int
    signal: int


class Kill(msgspec.Struct, frozen=True, tag_field="op", tag="kill"):
    """SIGKILL a program and all that it ever started, and forget it."""

    id: int


class Prune(msgspec.Struct, frozen=True, tag_field="op", tag="prune"):
    """SIGKILL what a program has started, but not itself."""

    id: int
    program: int
    since: tuple[int, int] | None
    """Ticks and the latest pid, as `Moment` tells them."""


class AskMoment(msgspec.Struct, frozen=True, tag_field="op", tag="moment"):
    """Say what time it is."""

    id: int


class List(msgspec.Struct, frozen=True, tag_field="op", tag="list"):
    """Tell of every program."""

    id: int


class Attach(msgspec.Struct, frozen=True, tag_field="op", tag="attach"):
    """Give the bridge's end of a program's pipe or terminal."""

    id: int
    program: int


class Hold(msgspec.Struct, frozen=True, tag_field="op", tag="hold"):
    """Keep the descriptor that comes with it: the bridge's end of a terminal."""

    name: str


class Take(msgspec.Struct, frozen=True, tag_field="op", tag="take"):
    """Give what was to be held."""

    id: int
    name: str


class Drop(msgspec.Struct, frozen=True, tag_field="op", tag="drop"):
    """Hold it no longer."""

    name: str


class Pause(msgspec.Struct, frozen=True, tag_field="op", tag="pause"):
    """SIGSTOP every program, until all stand still."""

    id: int


class Resume(msgspec.Struct, frozen=True, tag_field="op", tag="resume"):
    """SIGCONT what a pause stopped."""

    id: int


class AskRoom(msgspec.Struct, frozen=True, tag_field="op", tag="room"):
    """Say whether there is room for more processes, and whether a bash waits for some."""

    id: int
    pid: int


class Outlive(msgspec.Struct, frozen=True, tag_field="op", tag="outlive"):
    """Go on for so long without a bridge."""

    seconds: float


class End(msgspec.Struct, frozen=True, tag_field="op", tag="end"):
    """End everything."""


Request = (
    Spawn | Signal | Kill | Prune | AskMoment | List | Attach | Hold | Take | Drop | Pause | Resume | AskRoom
    | Outlive | End
)  # fmt: skip
