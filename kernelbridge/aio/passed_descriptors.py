"""Descriptors that a program passes over a UNIX socket (SCM_RIGHTS), wanted or not.

Whoever closes the last descriptor of a socket with SO_LINGER waits until its data has been sent: for hours, if a
hostile program likes. That holds for descriptors that are received, for those that the system drops because there is no
room for them, and for those in messages that nobody has received when the UNIX socket is closed. None of this may
happen on the event loop.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Sequence

_MOST = 253  # SCM_MAX_FD: more cannot be passed in one message
_ROOM = socket.CMSG_SPACE(_MOST * array.array("i").itemsize) + socket.CMSG_SPACE(struct.calcsize("3i"))
_SO_PASSRIGHTS = 83  # since Linux 6.16
_NO_LINGER = struct.pack("ii", 0, 0)
_PIECE = 1 << 16


def refuse(connection: socket.socket) -> None:
    """Let nobody pass descriptors over this UNIX socket, where the system can do that (Linux 6.16)."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def receive(connection: socket.socket, size: int) -> tuple[bytes, list[int], int]:
    """Receive at most `size` bytes; return them, all descriptors that came with them, and the flags of `recvmsg`.

    Raises `OSError` like `recvmsg`. The caller closes the descriptors with `drop`, or checks them.
    """
    data, ancillary, flags, _ = connection.recvmsg(size, _ROOM, socket.MSG_CMSG_CLOEXEC)
    return data, _passed(ancillary) if ancillary else [], flags


def _passed(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return list(fds)


def drop(fds: Sequence[int]) -> None:
    """Close descriptors of a program that is not trusted, without waiting."""
    nested = []
    for fd in fds:
        if stat.S_ISSOCK(os.fstat(fd).st_mode) and _is_unix_socket(fd):
            nested.append(fd)
        else:
            os.close(fd)
    if nested:
        # In a thread, because descriptors that wait in it are closed with it.
        threading.Thread(target=_close_all, args=(nested,), name="passed descriptors", daemon=True).start()


def _is_unix_socket(fd: int) -> bool:
    """Tell a UNIX socket from others, which are made not to wait when they are closed."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return False  # only a path
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    finally:
        connection.detach()
    return connection.family == socket.AF_UNIX


def close(connection: socket.socket) -> None:
    """Close a non-blocking UNIX socket, with what was passed over it and not received yet."""
    in_packets = connection.type != socket.SOCK_STREAM
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # nothing more can come
        if in_packets:  # each comes with its sender then, which tells an empty one from the end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        while True:
            data, ancillary, _, _ = connection.recvmsg(_PIECE, _ROOM, socket.MSG_CMSG_CLOEXEC)
            drop(_passed(ancillary))
            if not data and not (in_packets and ancillary):
                break
    connection.close()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
