"""Conditions and ranges of HTTP requests for files (RFC 9110); pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from kernelbridge.errors import BadRequest

_RANGE = re.compile(r"bytes=(?P<first>[0-9]*)-(?P<last>[0-9]*)", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'\s*(?P<weak>W/)?"(?P<tag>[\x21\x23-\x7e\x80-\xff]*)"\s*')
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGITS = 18
"""No size of a file has more."""


class Span(NamedTuple):
    """The bytes of a file that are sent."""

    start: int
    length: int


class Tags(NamedTuple):
    """The entity tags that a header names, without their quotes."""

    any: bool
    """`*`: any version."""
    strong: frozenset[str]
    weak: frozenset[str]

    @property
    def hashes(self) -> frozenset[str]:
        """The tags that are a sha256: they identify content, also when the file's times changed."""
        return frozenset(tag for tag in self.strong if _SHA256.fullmatch(tag))


def span(header: str | None, size: int) -> Span | None:
    """Return the part of a file of `size` bytes that a Range header asks for; None if there is no such part.

    Anything but one range of bytes is ignored, as the RFC allows: then the whole file is returned.
    """
    whole = Span(0, size)
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or len(found["first"]) > _DIGITS or len(found["last"]) > _DIGITS:
        return whole
    first, last = found["first"], found["last"]
    if not first:
        if not last:
            return whole
        length = min(int(last), size)
        return Span(size - length, length) if length else None
    start = int(first)
    if last and int(last) < start:
        return whole
    if start >= size:
        return None
    end = min(int(last) + 1, size) if last else size
    return Span(start, end - start)


def tags(header: str, name: str) -> Tags:
    """Read an If-Match or If-None-Match header; raises `BadRequest` that names it."""
    if header.strip() == "*":
        return Tags(any=True, strong=frozenset(), weak=frozenset())
    strong, weak = set[str](), set[str]()
    at = 0
    while at < len(header):
        found = _TAG.match(header, at)
        if found is None or (found.end() < len(header) and header[found.end()] != ","):
            raise BadRequest(
                f"The header {name} cannot be read", 'expected * or entity tags in quotes, as in "abc"', field=name
            )
        (weak if found["weak"] else strong).add(found["tag"])
        at = found.end() + 1
    return Tags(any=False, strong=frozenset(strong), weak=frozenset(weak))
