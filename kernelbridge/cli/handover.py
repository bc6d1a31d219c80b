"""Hands an address with a token to the browser of the same user, past the command line of the browser.

All users of a machine can read command lines, and that of a browser lasts as long as the browser. So the browser is
started with an address of this process, which is good for one answer: it leads to the address with the token. On Linux,
connections of other users are refused.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_HOST = "127.0.0.1"
_CONNECTIONS = Path("/proc/net/tcp")
_LOCAL, _REMOTE, _UID = 1, 2, 7
"""Columns of this file."""


class Handover:
    """An address that leads to another one, once."""

    def __init__(self, server: ThreadingHTTPServer, path: str) -> None:
        self.url = f"http://{_HOST}:{server.server_port}{path}"
        self._taken = threading.Lock()
        self.done = threading.Event()
        """Set when the answer was sent."""

    def take(self) -> bool:
        """Return whether this is the first call."""
        return self._taken.acquire(blocking=False)


@contextmanager
def handover(address: str, uids: frozenset[int]) -> Iterator[Handover]:
    """Yield what leads to `address`, for processes of these users; with the context it ends."""
    path = f"/{secrets.token_urlsafe(24)}"

    class Answer(BaseHTTPRequestHandler):
        timeout = 5  # a connection that asks nothing keeps no thread

        def do_GET(self) -> None:
            uid = _owner(self.client_address[1], made.server_port)
            if not secrets.compare_digest(self.path, path) or (uid is not None and uid not in uids):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif not given.take():
                self.send_error(HTTPStatus.GONE, explain="This address was used already: run the command again.")
            else:
                self.send_response(HTTPStatus.SEE_OTHER)
                for name, value in (("Location", address), ("Cache-Control", "no-store"), ("Content-Length", "0")):
                    self.send_header(name, value)
                self.end_headers()
                given.done.set()

        def log_message(self, *_: object) -> None:
            pass  # the log would have the address

    with ThreadingHTTPServer((_HOST, 0), Answer) as made:
        given = Handover(made, path)
        thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield given
        finally:
            made.shutdown()
            thread.join()


def _owner(port: int, to_port: int) -> int | None:
    """Return the user whose connection from `port` to `to_port` this is, or None if the system does not say."""
    number = int.from_bytes(socket.inet_aton(_HOST), sys.byteorder)
    ends = f"{number:08X}:{port:04X}", f"{number:08X}:{to_port:04X}"
    try:
        rows = [line.split() for line in _CONNECTIONS.read_text("ascii").splitlines()]
    except OSError:
        return None
    return next((int(row[_UID]) for row in rows if (row[_LOCAL], row[_REMOTE]) == ends), None)
