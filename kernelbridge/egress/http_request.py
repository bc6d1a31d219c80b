"""What a program asks its proxy for: the head of one HTTP/1 request, read strictly; pure.

`CONNECT host:port` opens a tunnel. A request whose target begins with `http://` is passed on, with its body of a known
length; the proxy takes one request a connection, so each is judged.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

LONGEST_HEAD: Final = 16 << 10
"""Bytes of a head."""
HEAD_SECONDS: Final = 10.0
"""How long it may take to send one."""
_MOST_FIELDS: Final = 100

_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/1\.([01])")
_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_PHRASE: Final = re.compile(r"[^\x20-\x7e]+")
_NOT_IN_FIELD: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET: Final = re.compile(r"http://([^/?#]*)([/?][^#]*)?", re.ASCII | re.IGNORECASE)
_LENGTH: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_FRAMING: Final = ("content-length", "transfer-encoding", "host")
HOP_BY_HOP: Final = frozenset({"connection", "host", "keep-alive", "te", "trailer", "upgrade"})
"""Fields that are for the proxy alone, or that it writes itself. So is all that begins with `proxy-`."""


class BadRequestError(ValueError):
    """A request that is not understood, or not supported."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a tunnel."""

    authority: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass one request on."""

    authority: str
    version: str
    method: str
    path: str
    fields: tuple[tuple[str, str], ...]
    """Those that are passed on."""
    length: int
    """Bytes of the body."""

    def head(self, host: str) -> bytes:
        """Return the head to send; `host` is the canonical host, with the port if it is not the usual one."""
        lines = [f"{self.method} {self.path} HTTP/{self.version}", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.fields]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


def read_request(data: bytes) -> tuple[Connect | Forward, bytes] | None:
    """Read the request at the beginning of `data`; return it and what follows its head, or None if more is needed.

    Raises `BadRequestError`.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if len(head) > LONGEST_HEAD:
        raise BadRequestError(431, f"The head of the request is longer than {LONGEST_HEAD} bytes.")
    if data[:1] and not data[:1].isalpha():
        raise BadRequestError(400, "This is a proxy for HTTP; its own address begins with http://, not https://.")
    if not end:
        return None
    first, *lines = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None or len(lines) > _MOST_FIELDS:
        raise BadRequestError(400, "The request is not HTTP/1.")
    fields = [_field(each) for each in lines]
    length = _body_length(fields)
    method, target = line[1].decode(), line[2].decode()
    if method == "CONNECT":
        return Connect(target), rest
    return _forward(method, target, f"1.{line[3].decode()}", fields, length), rest


def _field(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or _FIELD_NAME.fullmatch(name) is None or _NOT_IN_FIELD.search(value) is not None:
        raise BadRequestError(400, "A header field of the request is malformed.")
    return name.decode("latin-1"), value.strip(b" \t").decode("latin-1")


def _forward(method: str, target: str, version: str, fields: list[tuple[str, str]], length: int) -> Forward:
    found = _TARGET.fullmatch(target)
    if found is None:
        raise BadRequestError(
            400, "This is a proxy: the target must be http://host/path, or CONNECT host:port for https."
        )
    if method == "TRACE":
        raise BadRequestError(405, "TRACE is not passed on.")
    hops = {part.strip().lower() for name, value in fields if name.lower() == "connection" for part in value.split(",")}
    path = found[2] or "/"
    return Forward(
        found[1],
        version,
        method,
        path if path.startswith("/") else f"/{path}",
        tuple((name, value) for name, value in fields if not stays(name.lower(), hops)),
        length,
    )


def stays(name: str, hops: Collection[str]) -> bool:
    """Return whether a field, in lower case, is not passed on; `hops` are the ones that `Connection` names."""
    return name in HOP_BY_HOP or name.startswith("proxy-") or (name in hops and name not in _FRAMING)


def _body_length(fields: list[tuple[str, str]]) -> int:
    by_name = {name: [value for other, value in fields if other.lower() == name] for name in _FRAMING}
    lengths = by_name["content-length"]
    if by_name["transfer-encoding"]:
        if lengths:
            raise BadRequestError(400, "The request has both Content-Length and Transfer-Encoding.")
        raise BadRequestError(411, "The request needs a Content-Length: this proxy passes on no chunked bodies.")
    if len(lengths) > 1 or len(by_name["host"]) > 1 or (lengths and _LENGTH.fullmatch(lengths[0]) is None):
        raise BadRequestError(400, "The request has a Content-Length or a Host that is doubtful.")
    return int(lengths[0]) if lengths else 0


def response(status: int, phrase: str, sentence: str) -> bytes:
    """Return the answer to a request that is not carried out; many programs show only the phrase."""
    body = f"{sentence}\n".encode()
    phrase = _NOT_IN_PHRASE.sub(" ", phrase)
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
"""The answer to CONNECT when the tunnel is open."""
