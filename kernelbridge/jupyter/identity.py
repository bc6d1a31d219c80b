"""What another server has to know of a kernel to speak to it (pure)."""

from __future__ import annotations

import msgspec

from kernelbridge.runtimes.facts import KernelSpec


class KernelIdentity(msgspec.Struct, frozen=True):
    """One incarnation of a kernel."""

    spec: KernelSpec
    incarnation: int
    """Names the directory of its sockets."""
    key: str
    """Signs its messages."""
    routing_id: str
    """What it sends replies to: whoever connects with it gets them."""
    recalls: bool
    """Whether it keeps what its newest cell tells: our hooks are in it."""
    subshells: bool
    answers_interrupts: bool
    """Whether it takes interrupts as messages."""
    process: str
    """The handle of its process."""
