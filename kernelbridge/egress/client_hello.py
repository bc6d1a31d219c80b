"""The server name (SNI) in the first message of a TLS client; pure.

Records (RFC 8446, 5.1) that contain one handshake message, a ClientHello (4.1.2), with the extension server_name
(RFC 6066, 3). With an encrypted ClientHello (ECH), the outer one is read: the name that others see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST: Final = 32 << 10
"""Bytes of a ClientHello with its records. Usual ones have 2000."""
_MOST_RECORDS: Final = 16
"""Usual ones have one or two. All are read again with each piece that comes."""
ACCESS_DENIED: Final = b"\x15\x03\x03\x00\x02\x02\x31"
"""A fatal alert: what a TLS client understands as a refusal."""

_HANDSHAKE, _TLS, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 3, 1, 0, 0
_RECORD_HEADER, _MESSAGE_HEADER, _LONGEST_RECORD = 5, 4, 1 << 14


class NotTlsError(ValueError):
    """Bytes that are not the beginning of a TLS connection."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What matters of it here."""

    server_name: str | None
    """As it was sent; None if there is none."""


def read_client_hello(data: bytes) -> ClientHello | None:
    """Read the ClientHello at the beginning of `data`; None if more bytes are needed. Raises `NotTlsError`."""
    message = bytearray()
    at = 0
    for _ in range(_MOST_RECORDS):
        header = data[at : at + _RECORD_HEADER]
        if header[:1] not in {b"", bytes([_HANDSHAKE])} or header[1:2] not in {b"", bytes([_TLS])}:
            raise NotTlsError
        if len(header) < _RECORD_HEADER:
            return None
        length = int.from_bytes(header[3:], "big")
        if not 0 < length <= _LONGEST_RECORD:
            raise NotTlsError
        at += _RECORD_HEADER
        message += data[at : at + length]
        at += length
        if message and message[0] != _CLIENT_HELLO:
            raise NotTlsError
        size = _MESSAGE_HEADER + int.from_bytes(message[1:4], "big")
        if len(message) >= _MESSAGE_HEADER and size > LONGEST:
            raise NotTlsError
        if len(message) >= max(size, _MESSAGE_HEADER):
            return ClientHello(_server_name(_Fields(bytes(message[_MESSAGE_HEADER:size]))))
        if at > len(data):
            return None
    raise NotTlsError


def _server_name(hello: _Fields) -> str | None:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    if hello.empty:
        return None
    extensions = hello.vector(2)
    found: list[str] = []
    while not extensions.empty:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind == _SERVER_NAME:
            found += _host_names(content)
    if len(found) > 1:
        raise NotTlsError  # which of them a server takes is not known
    return found[0] if found else None


def _host_names(content: _Fields) -> list[str]:
    names = content.vector(2)
    found = []
    while not names.empty:
        kind = names.number(1)
        name = names.vector(2).rest
        if kind == _HOST_NAME:
            found.append(name.decode("latin-1"))
    return found


class _Fields:
    """Takes fields off the front of bytes; raises `NotTlsError` where they end early."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest

    @property
    def empty(self) -> bool:
        return not self.rest

    def take(self, length: int) -> bytes:
        if length > len(self.rest):
            raise NotTlsError
        taken, self.rest = self.rest[:length], self.rest[length:]
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def vector(self, length: int) -> _Fields:
        """Take a field whose own length is in its first `length` bytes."""
        return _Fields(self.take(self.number(length)))
