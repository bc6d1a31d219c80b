"""Descriptors that were passed and not received, when their socket is closed."""

from __future__ import annotations

import socket

import pytest

from kernelbridge.aio import passed_descriptors
from tests.unit.lingering import lingering


@pytest.mark.parametrize("before", [b"", b"x"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_none_of_them_makes_the_close_wait(kind: socket.SocketKind, before: bytes) -> None:
    """Also one that comes after an empty packet, which looks like the end."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
    mine.settimeout(0)
    full, kept = lingering()
    theirs.send(before)
    for _ in range(20):
        socket.send_fds(theirs, [b"y"], [full.fileno()])
    full.close()
    passed_descriptors.close(mine)
    for each in (theirs, *kept):
        each.close()
