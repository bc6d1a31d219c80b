"""A socket that holds up who closes it."""

import contextlib
import socket
import struct


def lingering() -> tuple[socket.socket, list[socket.socket]]:
    """Return a socket whose close waits for a quarter of an hour, and what has to be kept meanwhile."""
    listener = socket.create_server(("127.0.0.1", 0))
    full = socket.create_connection(listener.getsockname())
    deaf, _ = listener.accept()
    full.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            full.send(bytes(1 << 16))
    full.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 900))
    return full, [listener, deaf]
