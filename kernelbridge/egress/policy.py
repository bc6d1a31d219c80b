"""Which hosts the programs of a session may reach; pure.

`admit` is the only function that decides: it brings the host into its canonical form, compares it with the allowed
ones, has it resolved, and checks the addresses. What it returns is dialled; nothing is resolved a second time. The
allowed hosts and the guard of addresses are separate: an allowed name that leads to a private address is refused,
unless the operator has named that network, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from types import MappingProxyType
from typing import Final, Literal, get_args

from kernelbridge.egress.hosts import (
    Address,
    BadHostError,
    Network,
    canonical_host,
    embedded,
    literal_address,
    not_public,
    split_authority,
    written,
)

Level = Literal["none", "packages", "open"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""From the strictest to the widest."""

Reason = Literal[
    "bad_request",
    "host",
    "port",
    "plain_http",
    "ip_literal",
    "private_address",
    "own_address",
    "own_port",
    "no_tls",
    "server_name",
    "host_header",
    "method",
    "upgrade",
    "bytes",
]
"""Why something was refused: its form; the host, its port, or HTTP without TLS is not allowed; the host is written as
an address; its name leads to an address that is not public, or to this machine; the port is the server's own; what
came is not TLS, or for another host; where the server ends TLS, a request is for another host, has a method or wants
an upgrade that is not passed on; the session has moved all the bytes that it may."""

_STATUS: Final[Mapping[Reason, int]] = MappingProxyType(
    {"bad_request": 400, "host_header": 421, "method": 405, "upgrade": 501}
)
"""In HTTP; 403 for all others."""

_OPERATOR = "Trying again, or elsewhere, does not help: only the operator of the server can allow more"
_HELPS: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        "host": f"{_OPERATOR} (--egress, --egress-allow).",
        "port": f"{_OPERATOR} (--egress-allow).",
        "plain_http": "Use https.",
        "ip_literal": "Use the name of the host, if it is an allowed one.",
        "private_address": f"{_OPERATOR} (--egress-allow-net).",
        "own_address": f"{_OPERATOR} (--egress-allow-net).",
        "own_port": "Trying again, or elsewhere, does not help.",
        "bytes": f"{_OPERATOR} (--egress-bytes).",
    }
)
"""What to do. What has a wrong form says that itself."""

HTTPS, HTTP = 443, 80


@dataclass(frozen=True, slots=True)
class Rule:
    """An allowed host."""

    host: str
    """Canonical; `*.example.org` means every name below example.org, and not itself."""
    port: int = HTTPS
    plain: bool = False
    """Whether HTTP without TLS is allowed, and not TLS."""

    def covers(self, host: str) -> bool:
        """Return whether it is about this canonical host."""
        return host.endswith(self.host[1:]) and literal_address(host) is None if self.wildcard else host == self.host

    @property
    def wildcard(self) -> bool:
        """Whether it is about all names below another."""
        return self.host.startswith("*.")

    def __str__(self) -> str:
        return ("http://" if self.plain else "") + written(self.host, self.port)


def read_rule(text: str) -> Rule:
    """Read `HOST[:PORT]`, `*.DOMAIN[:PORT]` or `http://HOST[:PORT]`. Raises `ValueError`."""
    plain = text.startswith("http://")
    authority = text.removeprefix("http://") if plain else text.removeprefix("https://")
    wild = "*." if authority.startswith("*.") else ""
    host, port = split_authority(authority.removeprefix("*."), HTTP if plain else HTTPS)
    if wild and (literal_address(host) is not None or "." not in host):
        raise BadHostError("a wildcard needs a domain with a dot in it")
    return Rule(wild + host, port, plain)


def read_network(text: str) -> Network:
    """Read a network in CIDR notation. Raises `ValueError`."""
    return ip_network(text)


def read_upstream(text: str) -> tuple[str, int]:
    """Read `http://HOST:PORT`, the address of a proxy; return the canonical host and the port. Raises `ValueError`."""
    authority = text.removeprefix("http://")
    if authority == text:
        raise ValueError("it does not begin with http://")
    return split_authority(authority.removesuffix("/"))


PACKAGES: Final = (Rule("pypi.org"), Rule("files.pythonhosted.org"))
"""What pip needs by default."""


class Denied(Exception):  # noqa: N818 - the field's own word for it
    """A connection that the policy refuses; `sentence` is for the person who wanted it."""

    def __init__(self, reason: Reason, sentence: str, host: str = "", port: int = 0) -> None:
        super().__init__(sentence)
        self.reason, self.sentence, self.host, self.port = reason, sentence, host, port

    @property
    def status(self) -> int:
        """The status of the answer in HTTP."""
        return _STATUS.get(self.reason, 403)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Where a connection may go: to one of these addresses at this port, or to the host if there are none."""

    host: str
    port: int
    addresses: tuple[Address, ...]

    @property
    def server_name(self) -> str | None:
        """The name that TLS must be for; None for an address, which has none."""
        return self.host if literal_address(self.host) is None else None


@dataclass(frozen=True, slots=True)
class Policy:
    """What one session may reach."""

    level: Level
    rules: tuple[Rule, ...] = ()
    networks: tuple[Network, ...] = ()
    """Networks that are reachable although they are not public."""
    own_ports: frozenset[int] = field(default_factory=frozenset)
    """Ports at which the server itself listens."""

    def check_name(self, host: str, port: int, *, plain: bool) -> bool:
        """Return whether the operator has named a host, its port and the use of TLS; False if `open` allows them.

        `host` is canonical. Raises `Denied` if they are not allowed.
        """
        if port in self.own_ports:
            raise self.denied("own_port", host, port, "the server itself listens at this port")
        rules = [rule for rule in self.rules if rule.covers(host)]
        if any((rule.port, rule.plain) == (port, plain) for rule in rules):
            return True
        literal = literal_address(host) is not None
        if literal and not rules:
            raise self.denied("ip_literal", host, port, "a host must be given by its name, and not by its address")
        usual = HTTP if plain else HTTPS
        if self.level == "open" and not literal:
            if port == usual:
                return False
            raise self.denied("port", host, port, f"the port is not {usual}")
        if not rules:
            raise self.denied("host", host, port, "the host is not one of the allowed ones")
        if plain and not any(rule.plain for rule in rules):
            raise self.denied("plain_http", host, port, "the host is allowed with https only, and not with http")
        raise self.denied("port", host, port, "the host is allowed at another port, or in the other one of http, https")

    def check_address(
        self, host: str, port: int, address: Address, is_own: Callable[[Address], bool], *, named: bool
    ) -> None:
        """Raise `Denied` if an address is not public, or belongs to this machine, unless its network is allowed.

        That needs a host that the operator has `named`: everybody can make a name that leads into the network. This
        machine's own address must be allowed by itself, as a network of one address.
        """
        inner = None if address.version == 4 else embedded(address)  # noqa: PLR2004 - of IP
        allowed = [each for each in self.networks if named and ((inner or address) in each or address in each)]
        if any(each.num_addresses == 1 for each in allowed):
            return
        if allowed:
            if is_own(inner or address):
                raise self.denied("own_address", host, port, f"the name leads to {address}, the server's machine")
            return
        if (kind := not_public(address)) is not None:
            raise self.denied("private_address", host, port, f"the name leads to {address}, which is {kind}")
        if is_own(address):
            raise self.denied("own_address", host, port, f"the name leads to {address}, which is the server's machine")

    def denied(self, reason: Reason, host: str, port: int, why: str) -> Denied:
        """Return the refusal of a host for a reason."""
        refused = f"The egress policy of this session ({self.level}) refuses {written(host, port)}: {why}."
        return Denied(reason, f"{refused} {_HELPS.get(reason, '')}".rstrip(), host, port)


Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""Returns the addresses of a name, at least one; raises `OSError`."""


async def admit(
    policy: Policy, authority: str, *, plain: bool, resolve: Resolve | None, is_own: Callable[[Address], bool]
) -> Admitted:
    """Decide about `host:port`, as a program wrote it, and return the addresses that may be dialled.

    `plain`: without TLS; then the port may be left out. `is_own` says whether an address is one of this machine. Raises
    `Denied`, or what `resolve` raises; that is called once, and only for an allowed name. If it is None, names are
    resolved by somebody else: then there are no addresses, and none is checked.
    """
    try:
        host, port = split_authority(authority, HTTP if plain else None)
    except BadHostError as exc:
        raise Denied("bad_request", f"The host cannot be used: {exc}.") from exc
    named = policy.check_name(host, port, plain=plain)
    literal = literal_address(host)
    if literal is not None:
        addresses: tuple[Address, ...] = (literal,)
    else:
        addresses = () if resolve is None else tuple(await resolve(host))
    for address in addresses:
        policy.check_address(host, port, address, is_own, named=named)
    return Admitted(host, port, addresses)


def check_server_name(policy: Policy, admitted: Admitted, name: str | None) -> None:
    """Raise `Denied` unless the name in a TLS ClientHello is the host that was asked for."""
    try:
        found = None if name is None else canonical_host(name)
    except BadHostError:
        found = ""
    if found != admitted.server_name:
        said = "for another host" if found else "without the name of a host (SNI)"
        raise policy.denied("server_name", admitted.host, admitted.port, f"the TLS connection is {said}")


@dataclass(frozen=True, slots=True)
class Policies:
    """The operator's policy, from which each session has its own."""

    level: Level = "none"
    allowed: tuple[Rule, ...] = ()
    """Hosts that are reachable whatever the level is."""
    packages: tuple[Rule, ...] = PACKAGES
    """Hosts of packages, for the levels `packages` and `open`."""
    networks: tuple[Network, ...] = ()
    own_ports: frozenset[int] = field(default_factory=frozenset)

    def __str__(self) -> str:
        hosts = [str(rule) for rule in (*self.allowed, *(() if self.level == "none" else self.packages))]
        public = ["every public host"] if self.level == "open" else []
        return f"{self.level}: {', '.join([*public, *hosts]) or 'no host'}"

    def of_session(self, asked: Level | None) -> Policy:
        """Return the policy of a session that has asked for a level, or for none; never wider than the operator's.

        A session that asks for `none` reaches nothing at all, not even what is allowed at every level.
        """
        level = self.level if asked is None else narrower(asked, self.level)
        rules = () if asked == "none" else (*self.allowed, *(() if level == "none" else self.packages))
        return Policy(level, rules, self.networks, self.own_ports)


def narrower(one: Level, other: Level) -> Level:
    """Return the stricter of two levels."""
    return min(one, other, key=LEVELS.index)
