"""Sizes and durations as people write them: `512m`, `1.5GiB`, `90s`, `250ms`. Pure.

Units of size are powers of 1024, as Docker reads them: `1k`, `1kb` and `1KiB` are the same 1024 bytes.
A plain number is bytes, or seconds. The `format_` functions return a text that is parsed to the same value.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
DURATION_UNITS = {
    "": Decimal(1),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?", re.IGNORECASE | re.ASCII)

_LARGEST_SIZE = (1 << 63) - 1
_LARGEST_DURATION = Decimal(86400) * 36500


def parse_size(text: str) -> int:
    """Return the bytes of `512m`, `1g`, `16MiB` or `4096`. Raises `ValueError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a size: {text!r}")
    size = Decimal(match[1]) * SIZE_UNITS[(match[2] or "").lower()]
    if size != size.to_integral_value() or size > _LARGEST_SIZE:
        raise ValueError(f"not a whole number of bytes below 8 EiB: {text!r}")
    return int(size)


def parse_duration(text: str) -> float:
    """Return the seconds of `90s`, `5m`, `1h`, `250ms` or `15`. Raises `ValueError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a duration: {text!r}")
    seconds = Decimal(match[1]) * DURATION_UNITS[(match[2] or "").lower()]
    if seconds > _LARGEST_DURATION:
        raise ValueError(f"longer than a century: {text!r}")
    return float(seconds)


def format_size(size: int) -> str:
    """Return `size` bytes in the largest unit that divides it: `1g`, `1536m`, `1000`."""
    for unit in ("t", "g", "m", "k"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return str(size)


def format_duration(seconds: float) -> str:
    """Return `seconds` in the largest unit that divides it: `1h`, `90s`, `250ms`, `0.0004s`."""
    try:
        exact = Decimal(repr(seconds))
    except InvalidOperation as exc:
        raise ValueError(f"not a duration: {seconds!r}") from exc
    if exact == 0:
        return "0s"
    for unit in ("h", "m", "s", "ms"):
        count = exact / DURATION_UNITS[unit]
        if count == count.to_integral_value():
            return f"{count:f}".partition(".")[0] + unit
    return f"{exact:f}s"


def human_size(size: float) -> str:
    """Return `size` bytes rounded, for people: `3.4 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004 - the base of the units
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
