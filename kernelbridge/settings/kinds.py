"""The kinds of values that settings have: how each is read, written and described. Pure.

A `Kind` reads text (from a flag or an environment variable) and the values of a TOML file with the same function, so a
setting means the same wherever it is written. Reading raises `ValueError`; `expected` then completes the sentence
"expected …".
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from kernelbridge.egress.hosts import written
from kernelbridge.egress.policy import read_network, read_rule, read_upstream
from kernelbridge.egress.secrets import read_secret_rule
from kernelbridge.settings.quantities import format_duration, format_size, parse_duration, parse_size

_LARGEST_PORT = 65535
_LEAST_UID, _LARGEST_UID = 1001, 0x7FFFFFFF
"""The user ids of sandboxes. Lower ones are the machine's users; some programs read higher ones as negative numbers."""


_LONGEST_SOCKET = 107
"""Bytes of the path of a UNIX socket."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of one kind are read and written. `read(write(value)) == value`, also for `None`."""

    metavar: str
    expected: str
    read: Callable[[str], object]
    write: Callable[[object], str]
    native: tuple[type, ...] = (str,)
    """Types that it may have in a TOML file; each is read through its text."""
    many: bool = False
    """Whether there may be several: a repeated flag, text with commas, an array in TOML."""
    explained: Mapping[str, str] = field(default_factory=dict)
    """Wrong texts that look right: why they are wrong, and what to do instead."""

    def advice(self, value: object) -> str:
        """Return what to write instead of `value`, which cannot be read."""
        return self.explained.get(str(value).lower(), f"expected {self.expected}")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as users see it; part of the annotation of a field of `Settings`."""

    kind: Kind
    group: str
    help: str
    default_text: str | None = None
    """Shown instead of a default that depends on the machine, or that is `None`."""
    in_file: bool = True
    """Whether it may be in a TOML file."""


def text(metavar: str, expected: str, pattern: str = r"\S.*") -> Kind:
    """Return the kind of text that matches all of `pattern`."""
    compiled = re.compile(pattern, re.ASCII)

    def read(value: str) -> str:
        if compiled.fullmatch(value) is None or not value.isprintable():
            raise ValueError(value)
        return value

    return Kind(metavar, expected, read, str)


def choice(*names: str) -> Kind:
    """Return the kind of one of these words."""

    def read(value: str) -> str:
        if value not in names:
            raise ValueError(value)
        return value

    return Kind("|".join(names), "one of " + ", ".join(names), read, str)


def integer(metavar: str, least: int, most: int | None = None) -> Kind:
    """Return the kind of a whole number from `least` to `most`."""

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
    """Return the kind of a number of at least `least`."""

    def read(value: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII) is None or float(value) < least:
            raise ValueError(value)
        return float(value)

    def write(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    return Kind(metavar, f"a number such as 0.5 or 2, at least {least:g}", read, write, native=(int, float))


def size(least: int, *, unlimited: bool = False) -> Kind:
    """Return the kind of a size of at least `least` bytes. With `unlimited`, 0 is no limit and read as `None`."""

    def read(value: str) -> int | None:
        number = parse_size(value)
        if unlimited and number == 0:
            return None
        if number < least:
            raise ValueError(value)
        return number

    def write(value: object) -> str:
        if value is None:
            return "0"
        return format_size(value) if isinstance(value, int) else str(value)

    expected = f"a size such as 512m, 1g, 16MiB or plain bytes, at least {format_size(least)}"
    if unlimited:
        expected += "; 0 means no limit"
    return Kind("SIZE", expected, read, write, native=(str, int))


def duration(least: float = 0.0, *, unlimited: bool = False) -> Kind:
    """Return the kind of a duration of at least `least` seconds. With `unlimited`, 0 is no limit and read as `None`."""

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
    """Return the kind of a range of user ids; `off` is read as `None`."""

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
    """Return the kind of yes or no."""
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
    """Return the kind of a path. A relative one is relative to the place where the setting is written."""

    def read(value: str) -> Path:
        if not value or "\0" in value:
            raise ValueError(value)
        try:
            return Path(value).expanduser()
        except RuntimeError as exc:
            raise ValueError(str(exc)) from exc

    return Kind(metavar, expected, read, str)


def trusted_peers() -> Kind:
    """Return the kind of peers that are believed: addresses, networks, and `unix`."""

    def read(value: str) -> object:
        return value if value == "unix" else ip_network(value)

    expected = "an address such as 127.0.0.1, a network such as 10.0.0.0/8, or unix for --listen unix:PATH"
    return Kind("ADDRESS|unix", expected, read, str, many=True)


def unix_socket() -> Kind:
    """Return the kind of `unix:PATH`; the path is absolute, and short enough for a socket."""

    def read(value: str) -> Path:
        found = value.removeprefix("unix:")
        if found == value or not found.startswith("/") or "\0" in found or len(os.fsencode(found)) > _LONGEST_SOCKET:
            raise ValueError(value)
        return Path(found)

    def write(value: object) -> str:
        return f"unix:{value}"

    expected = f"unix:/absolute/path of at most {_LONGEST_SOCKET} bytes"
    return Kind("unix:PATH", expected, read, write)


def listener() -> Kind:
    """Return the kind of an address to listen on: `HOST:PORT`, read as a tuple, or `unix:PATH`, read as a path."""

    def read(value: str) -> tuple[str, int] | Path:
        if value.startswith("unix:"):
            path = value.removeprefix("unix:")
            if not path or "\0" in path:
                raise ValueError(value)
            return Path(path)
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", value, re.ASCII)
        if found is None or int(found[3]) > _LARGEST_PORT:
            raise ValueError(value)
        return found[1] or found[2], int(found[3])

    def write(value: object) -> str:
        if isinstance(value, Path):
            return f"unix:{value}"
        host, port = value if isinstance(value, tuple) else ("", 0)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    return Kind("HOST:PORT|unix:PATH", "an address such as 127.0.0.1:9101, or unix:/path/of/a/socket", read, write)


def origins() -> Kind:
    """Return the kind of web origins, in the form in which browsers send them."""
    expected = "a web origin such as https://app.example.org or http://localhost:3000, without a path and without `*`"
    opened_from_a_file = (
        "a page opened from a file has no origin (the browser sends null, as for any page that hides its own); serve "
        "the page from http://localhost, for example with `python3 -m http.server`: that needs no --allow-origin"
    )
    return Kind("ORIGIN", expected, canonical_origin, str, many=True, explained={"null": opened_from_a_file})


def egress_rule() -> Kind:
    """Return the kind of hosts that sandboxes may reach."""
    expected = "a host such as api.example.org, api.example.org:8443, *.example.org or http://apt.example.org"
    return Kind("HOST[:PORT]", expected, read_rule, str, many=True)


def egress_secret() -> Kind:
    """Return the kind of secrets that requests for a host get."""
    expected = (
        "HOST[:PORT]=HEADER:FILE with a name as the host, a header field that is not HTTP's own, and an absolute path: "
        "api.example.org=Authorization:/etc/kernelbridge/api-key"
    )
    return Kind("HOST=HEADER:FILE", expected, read_secret_rule, str, many=True)


def upstream_proxy() -> Kind:
    """Return the kind of a proxy's address."""

    def write(value: object) -> str:
        return f"http://{written(*value)}" if isinstance(value, tuple) else str(value)

    expected = "a proxy such as http://proxy.example.org:3128, without a user and a password"
    return Kind("http://HOST:PORT", expected, read_upstream, write)


def network() -> Kind:
    """Return the kind of networks."""
    return Kind("NETWORK", "a network such as 10.0.0.0/8 or fd00::/8", read_network, str, many=True)


def canonical_origin(value: str) -> str:
    """Return `scheme://host[:port]` in lower case, without a default port. Raises `ValueError` for anything else."""
    parts = urlsplit(value)
    ports = {"http": 80, "https": 443}
    host = parts.hostname or ""
    bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ports or not bare or re.fullmatch(r"[a-z0-9.:_-]+", host, re.ASCII) is None:
        raise ValueError(value)
    name = f"[{host}]" if ":" in host else host
    port = parts.port
    return f"{parts.scheme}://{name}" + (f":{port}" if port is not None and port != ports[parts.scheme] else "")
