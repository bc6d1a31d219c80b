"""The smallest WebSocket client: blocking, text frames only. Its own cost must not hide the server's."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from typing import Any
from urllib.parse import urlsplit


class WebSocketClient:
    """One connection; `ask` sends a message and gives the next frame."""

    def __init__(self, url: str, timeout: float = 120.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(head.decode(errors="replace"))
        self.connected = self.receive()

    def ask(self, **message: object) -> dict[str, Any]:
        """Send one message and wait for one frame."""
        self.send(**message)
        return self.receive()

    def send(self, **message: object) -> None:
        """Send one message. The mask is zero: it only has to be there."""
        data = json.dumps(message).encode()
        if len(data) < 126:
            head = struct.pack("!BB", 0x81, 0x80 | len(data))
        elif len(data) < 1 << 16:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, len(data))
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, len(data))
        self._socket.sendall(head + bytes(4) + data)

    def receive(self) -> dict[str, Any]:
        """Wait for the next text frame; pings are answered."""
        frame: dict[str, Any] = json.loads(self.receive_raw())
        return frame

    def receive_raw(self) -> bytes:
        """Wait for the next text frame and give its JSON; pings are answered."""
        while True:
            opcode, length = self._exactly(2)
            length &= 0x7F
            if length == 126:
                length = struct.unpack("!H", self._exactly(2))[0]
            elif length == 127:
                length = struct.unpack("!Q", self._exactly(8))[0]
            data = self._exactly(length)
            if opcode == 0x81:
                return data
            if opcode == 0x89:
                self._socket.sendall(struct.pack("!BB", 0x8A, 0x80 | length) + bytes(4) + data)
            if opcode & 0x0F == 8:
                raise ConnectionError(f"closed: {data!r}")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        if len(self._buffer) < size:
            parts, missing = [self._buffer], size - len(self._buffer)
            while missing > 0:
                self._buffer = b""
                self._more(missing)
                parts.append(self._buffer)
                missing -= len(self._buffer)
            self._buffer = b"".join(parts)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _more(self, size: int = 0) -> None:
        data = self._socket.recv(max(65536, size))
        if not data:
            raise ConnectionError("the server hung up")
        self._buffer += data
