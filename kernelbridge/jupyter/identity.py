"""The data that another server needs to connect to a kernel (pure)."""

from __future__ import annotations

import msgspec

from kernelbridge.runtimes.facts import KernelSpec


class KernelIdentity(msgspec.Struct, frozen=True):
    """One incarnation of a kernel."""

    spec: KernelSpec
    incarnation: int
    """Number of the directory of its sockets."""
    key: str
    """The key that signs its messages."""
    routing_id: str
    """Names the client: the kernel sends replies to the connection with this id."""
    has_hooks: bool
    """Whether our hooks run in it. They keep the messages of its newest cell."""
    subshells: bool
    answers_interrupts: bool
    """Whether it can be interrupted by a message."""
    process: str
    """The id of its process (`contract.Process`)."""
