"""The kinds of value that a setting can have: how each is read, written and described. Pure.

A `Kind` reads text (from a flag or an environment variable) and the plain values of a TOML file with the same
function, so a setting means the same wherever it was written. Reading raises `ValueError`; `expected` then completes
the sentence "expected …".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from kernelbridge.settings.quantities import format_duration, format_size, parse_duration, parse_size

_LEAST_UID, _LARGEST_UID = 1001, 0x7FFFFFFF
"""What a sandbox's user may have: below are the machine's own users, above what some programs take for negative."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of one kind are read and written. `read(write(value)) == value`, for `None` too."""

    metavar: str
    expected: str
    read: Callable[[str], object]
    write: Callable[[object], str]
    native: tuple[type, ...] = (str,)
    """What a TOML file may hold for it; each is read through its text."""
    many: bool = False
    """A tuple of them: the flag may be repeated, text is separated by commas, TOML has an array."""
    explained: Mapping[str, str] = field(default_factory=dict)
    """Texts that look right and are not: why, and what to do instead."""

    def advice(self, value: object) -> str:
        """Say what to write instead of `value`, which cannot be read."""
        return self.explained.get(str(value).lower(), f"expected {self.expected}")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as users meet it; stands in the annotation of a field of `Settings`."""

    kind: Kind
    group: str
    help: str
    default_text: str | None = None
    """Shown where the default depends on the machine, or where none needs a word."""
    in_file: bool = True
    """Whether a TOML file may hold it."""


def text(metavar: str, expected: str, pattern: str = r"\S.*") -> Kind:
    """Take text that matches `pattern` in full."""
    compiled = re.compile(pattern, re.ASCII)

    def read(value: str) -> str:
        if compiled.fullmatch(value) is None or not value.isprintable():
            raise ValueError(value)
        return value

    return Kind(metavar, expected, read, str)


def choice(*names: str) -> Kind:
    """Take one of a few words."""

    def read(value: str) -> str:
        if value not in names:
            raise ValueError(value)
        return value

    return Kind("|".join(names), "one of " + ", ".join(names), read, str)


def integer(metavar: str, least: int, most: int | None = None) -> Kind:
    """Take a whole number within bounds, both included."""

    def read(value: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) is None:
            raise ValueError(value)
        number = int(value)
        if number < least or (most is not None and number > most):
            raise ValueError(value)
        return number

    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    return Kind(metavar, f"a whole number {bounds}", read, str, native=(int,))


def decimal(metavar: str, least: float) -> Kind:
    """Take a number, not less than `least`."""

    def read(value: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII) is None or float(value) < least:
            raise ValueError(value)
        return float(value)

    def write(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    return Kind(metavar, f"a number such as 0.5 or 2, at least {least:g}", read, write, native=(int, float))


def size(least: int) -> Kind:
    """Take bytes, not fewer than `least`."""

    def read(value: str) -> int:
        number = parse_size(value)
        if number < least:
            raise ValueError(value)
        return number

    def write(value: object) -> str:
        return format_size(value) if isinstance(value, int) else str(value)

    expected = f"a size such as 512m, 1g, 16MiB or plain bytes, at least {format_size(least)}"
    return Kind("SIZE", expected, read, write, native=(str, int))


def duration(least: float = 0.0, *, unlimited: bool = False) -> Kind:
    """Take seconds, not fewer than `least`; where `unlimited`, 0 stands for no limit and is read as `None`."""

    def read(value: str) -> float | None:
        number = parse_duration(value)
        if unlimited and number == 0:
            return None
        if number < least:
            raise ValueError(value)
        return number

    def write(value: object) -> str:
        if value is None:
            return "0"
        return format_duration(value) if isinstance(value, (int, float)) else str(value)

    expected = "a duration such as 250ms, 90s, 5m, 1h, 30d or plain seconds"
    if least:
        expected += f", at least {format_duration(least)}"
    if unlimited:
        expected += "; 0 means no limit"
    return Kind("DURATION", expected, read, write, native=(str, int, float))


def uid_range() -> Kind:
    """Take the first and the last of some user ids; `off` is read as `None`."""

    def read(value: str) -> tuple[int, int] | None:
        if value == "off":
            return None
        found = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", value, re.ASCII)
        if found is None or not _LEAST_UID <= int(found[1]) < int(found[2]) <= _LARGEST_UID:
            raise ValueError(value)
        return int(found[1]), int(found[2])

    def write(value: object) -> str:
        return "off" if value is None else "{}-{}".format(*value) if isinstance(value, tuple) else str(value)

    expected = f"a range such as 2000000-2065535, from {_LEAST_UID} to {_LARGEST_UID}, or off"
    return Kind("FIRST-LAST|off", expected, read, write)


def switch() -> Kind:
    """Take yes or no."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

    def read(value: str) -> bool:
        try:
            return words[value.lower()]
        except KeyError:
            raise ValueError(value) from None

    def write(value: object) -> str:
        return "true" if value else "false"

    return Kind("BOOLEAN", "true or false", read, write, native=(bool,))


def path(metavar: str, expected: str) -> Kind:
    """Take a place in the file system; a relative one counts from where the setting was written."""

    def read(value: str) -> Path:
        if not value or "\0" in value:
            raise ValueError(value)
        try:
            return Path(value).expanduser()
        except RuntimeError as exc:
            raise ValueError(str(exc)) from exc

    return Kind(metavar, expected, read, str)


def origins() -> Kind:
    """Take web origins, in the form in which browsers send them."""
    expected = "a web origin such as https://app.example.org or http://localhost:3000, without a path and without `*`"
    opened_from_a_file = (
        "a page opened from a file has no origin (the browser sends null, as for any page that hides its own); serve "
        "the page from http://localhost, for example with `python3 -m http.server`: that needs no --allow-origin"
    )
    return Kind("ORIGIN", expected, canonical_origin, str, many=True, explained={"null": opened_from_a_file})


def canonical_origin(value: str) -> str:
    """Give `scheme://host[:port]` in lower case without a default port; raises `ValueError` for anything else."""
    parts = urlsplit(value)
    ports = {"http": 80, "https": 443}
    host = parts.hostname or ""
    bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ports or not bare or re.fullmatch(r"[a-z0-9.:_-]+", host, re.ASCII) is None:
        raise ValueError(value)
    name = f"[{host}]" if ":" in host else host
    port = parts.port
    return f"{parts.scheme}://{name}" + (f":{port}" if port is not None and port != ports[parts.scheme] else "")
