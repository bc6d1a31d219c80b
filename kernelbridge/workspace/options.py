"""The options of a session, checked against the operator's bounds; pure.

`SessionOptions` are the options of one `open_session`, a `Choice` is what the session has as a result, and an `Opening`
holds the choice of one session. An option that is left out has the server's default in a session that is not open, and
stays unchanged in one that is open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from kernelbridge.egress.policy import Level, narrower
from kernelbridge.errors import BadRequest, SessionConflict
from kernelbridge.runtimes.contract import Limits, RuntimeInfo
from kernelbridge.runtimes.facts import Facts
from kernelbridge.settings.quantities import format_size
from kernelbridge.settings.settings import Settings

DEFAULT_KERNEL = "python3"

MIN_MEMORY = 64 << 20
"""Bytes; with less, no interpreter starts."""
MIN_CPUS = 0.01
MIN_PIDS = 32
MIN_DISK = 1 << 20
"""Bytes; what an interpreter writes when it starts is less."""

MAX_ENV = 64
"""Environment variables of one session."""
MAX_ENV_BYTES = 64 << 10
"""Bytes of their names and values together: the environment of one process must hold them."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_RESERVED = frozenset(
    {
        *("HOME", "PATH", "PWD", "OLDPWD", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TERM", "TMPDIR"),
        *("ENV", "BASH_ENV", "BASHOPTS", "SHELLOPTS", "PROMPT_COMMAND", "IFS", "PS0", "PS1", "PS2", "PS4"),
        *("PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHONNOUSERSITE", "VIRTUAL_ENV"),
        *("IPYTHONDIR", "PIP_BREAK_SYSTEM_PACKAGES", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_INPUT", "PIP_RETRIES"),
    }
)
"""Variables that the server sets itself, or that change how the shell and the interpreter start."""
_RESERVED_PREFIXES = ("LD_", "KERNELBRIDGE", "JPY_", "JUPYTER_", "BASH_FUNC_")


_ANY_DISK = 1 << 53
"""More bytes than any disk has."""

SERVER_RETURNS = 60.0
"""Seconds, after a session's linger, until a sandbox without a server ends itself."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator allows."""

    limits: Limits
    image: str | None
    """The default image; None where the runtime has no images."""
    images: frozenset[str] = frozenset()
    """The other images that clients may choose."""
    image_setting: str | None = None
    """The name of the default image where the runtime has no images: clients may name it all the same."""
    linger: float = 15.0
    """Seconds that a session stays open after its last connection, unless a client chooses another value."""
    max_linger: float = 3600.0
    """The largest value that clients may choose; at least `linger` is allowed."""
    egress: Level | None = None
    """Which hosts programs may reach; None where sandboxes have the network of the machine."""
    disk: int = 0
    """Bytes that the files may take; 0 for no limit."""

    @property
    def most_linger(self) -> float:
        """The largest `linger` that clients may choose, in seconds."""
        return max(self.max_linger, self.linger)


def bounds_of(settings: Settings, runtime: RuntimeInfo) -> Bounds:
    """Return what the operator of a server with these settings and this runtime allows."""
    return Bounds(
        limits=Limits(
            memory=settings.memory,
            # A machine cannot grant more processors than it has.
            cpus=min(settings.cpus, runtime.cpus or settings.cpus),
            pids=settings.pids,
            ptys=settings.ptys,
        ),
        image=settings.image if runtime.images else None,
        images=frozenset(settings.allow_image) if runtime.images else frozenset(),
        linger=settings.linger,
        max_linger=settings.max_linger,
        image_setting=settings.image,
        egress=settings.egress if runtime.relays else None,
        disk=settings.disk,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The options that a client gives; None for those that it leaves out."""

    image: str | None = None
    kernel: str | None = None
    env: Mapping[str, str] | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk: int | None = None
    linger: float | None = None
    keep_while_running: bool | None = None
    egress: Level | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session is opened with."""

    limits: Limits
    image: str | None = None
    """None for the runtime's default."""
    kernel: str = DEFAULT_KERNEL
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    egress: Level | None = None
    """None for the server's."""
    disk: int | None = None
    """Bytes that the files may take; None for the server's limit."""

    def differing(self, options: SessionOptions) -> str | None:
        """Return the name of the first field in which `options` differ, or None."""
        pairs = (
            ("image", options.image, self.image),
            ("kernel", options.kernel, self.kernel),
            ("env", options.env, self.env),
            ("limits.memory", options.memory, self.limits.memory),
            ("limits.cpus", options.cpus, self.limits.cpus),
            ("limits.pids", options.pids, self.limits.pids),
            ("limits.disk", options.disk, self.disk),
            ("egress", options.egress, self.egress),
        )
        return next((name for name, asked, has in pairs if asked is not None and asked != has), None)


def checked(options: SessionOptions, bounds: Bounds) -> SessionOptions:
    """Return the options with the full name of their image; raises `BadRequest` for a field outside its bounds."""
    most = bounds.limits
    _within("limits.memory", options.memory, (MIN_MEMORY, most.memory), f"bytes ({format_size(most.memory)})")
    _within("limits.cpus", options.cpus, (MIN_CPUS, most.cpus), "processors")
    _within("limits.pids", options.pids, (MIN_PIDS, most.pids), "processes")
    most_disk = bounds.disk or _ANY_DISK
    _within("limits.disk", options.disk, (MIN_DISK, most_disk), f"bytes ({format_size(most_disk)})")
    if options.linger is not None and options.linger > bounds.most_linger:
        raise _invalid("linger", f"expected at most {bounds.most_linger:g} seconds, the server's limit")
    if options.env is not None:
        _check_env(options.env)
    if options.egress is not None:
        _check_egress(options.egress, bounds.egress)
    return replace(options, image=_granted_image(options.image, bounds))


def choose(options: SessionOptions, bounds: Bounds) -> Choice:
    """Complete checked options with the defaults."""
    limits = bounds.limits
    return Choice(
        limits=replace(
            limits,
            memory=limits.memory if options.memory is None else options.memory,
            cpus=limits.cpus if options.cpus is None else options.cpus,
            pids=limits.pids if options.pids is None else options.pids,
        ),
        image=bounds.image if options.image is None else options.image,
        kernel=options.kernel or DEFAULT_KERNEL,
        env=MappingProxyType(dict(options.env or {})),
        egress=options.egress,
        disk=options.disk,
    )


def within(choice: Choice, bounds: Bounds) -> Choice:
    """Return a choice that an earlier server allowed, reduced to what this server allows."""
    most, has = bounds.limits, choice.limits
    limits = replace(
        has, memory=min(has.memory, most.memory), cpus=min(has.cpus, most.cpus), pids=min(has.pids, most.pids)
    )
    image = choice.image if choice.image in {bounds.image, *bounds.images} else bounds.image
    return replace(choice, limits=limits, image=image)


def _granted_image(image: str | None, bounds: Bounds) -> str | None:
    if image is None:
        return None
    granted = [name for name in (bounds.image, *sorted(bounds.images)) if name is not None]
    found = next((name for name in granted if _tagged(name) == _tagged(image)), None)
    if found is not None:
        return found
    if bounds.image is None:
        if bounds.image_setting is not None and _tagged(image) == _tagged(bounds.image_setting):
            return None
        raise _invalid("image", "this server's sandboxes are not made of images; leave the field out")
    raise _invalid("image", f"expected an image that the server allows: {', '.join(granted)}")


def _tagged(image: str) -> str:
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"


def _within(name: str, value: float | None, bounds: tuple[float, float], unit: str) -> None:
    least, most = bounds
    if value is not None and not least <= value <= most:
        raise _invalid(name, f"expected at least {least} and at most {most} {unit}, the limits of the server")


def _check_env(env: Mapping[str, str]) -> None:
    if len(env) > MAX_ENV:
        raise _invalid("env", f"expected at most {MAX_ENV} variables, found {len(env)}")
    for name, value in env.items():
        if _ENV_NAME.fullmatch(name) is None:
            raise _invalid("env", f"{name[:200]!r} is not a name of a variable: up to 128 letters, digits and '_'")
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise _invalid("env", f"the sandbox sets {name}; code can set it for itself when it runs")
        if "\0" in value:
            raise _invalid("env", f"the value of {name} contains a NUL character")
    if (size := sum(len(part.encode()) for pair in env.items() for part in pair)) > MAX_ENV_BYTES:
        raise _invalid("env", f"expected at most {MAX_ENV_BYTES} bytes of names and values together, found {size}")


def _check_egress(asked: Level, most: Level | None) -> None:
    if most is None:
        raise _invalid("egress", "this server's sandboxes have the network of its machine; leave the field out")
    if narrower(asked, most) != asked:
        raise _invalid("egress", f"expected at most {most!r}, the policy of the server")


def _invalid(name: str, expected: str) -> BadRequest:
    return BadRequest(f"The field {name!r} is wrong", expected, field=name, code="invalid_field")


class Opening:
    """The choice of one session. It is fixed from the first start of its sandbox until the session is closed."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.ran = False
        """Whether a sandbox has run with the choice."""
        self._linger: float | None = None
        self.keep_while_running = False
        """Whether the session stays open without a connection while a cell or a command runs."""
        self.choice: Choice = choose(SessionOptions(), bounds)
        self.language: str | None = None
        """Of the kernel; None before the sandbox has run."""
        self.facts: Facts | None = None
        """The facts of an adopted sandbox: its image may have been replaced or removed since."""

    @property
    def linger(self) -> float:
        """Seconds that the session stays open after its last connection."""
        bounds = self._bounds
        return bounds.linger if self._linger is None else min(self._linger, bounds.most_linger)

    @property
    def egress(self) -> Level | None:
        """Which hosts its programs may reach; None where the sandbox has the network of the machine."""
        most, chosen = self._bounds.egress, self.choice.egress
        return most if most is None or chosen is None else narrower(chosen, most)

    @property
    def disk(self) -> int:
        """Bytes that its files may take; 0 for no limit."""
        most, chosen = self._bounds.disk, self.choice.disk
        if chosen is None:
            return most
        return min(chosen, most) if most else chosen

    @property
    def seconds_without_server(self) -> float:
        """After which the sandbox ends itself. Without a server, nobody knows whether something runs in it."""
        linger = self._bounds.most_linger if self.keep_while_running else self.linger
        return linger + SERVER_RETURNS

    @property
    def asked_linger(self) -> float | None:
        """The value that a client has chosen; None if none has."""
        return self._linger

    def set_linger(self, linger: float | None, *, keep_while_running: bool | None) -> None:
        """Change how long the session stays open, which is possible at any time; None changes nothing."""
        if linger is not None:
            self._linger = linger
        if keep_while_running is not None:
            self.keep_while_running = keep_while_running

    def apply(self, options: SessionOptions, *, starting: bool) -> bool:
        """Apply checked options; return whether the session's directory must be prepared again for them.

        Raises `SessionConflict` if the choice is fixed and the options differ from it.
        """
        image, disk = self.choice.image, self.choice.disk
        # What is the server's own is as if it was left out.
        if self.choice.egress is None and options.egress == self._bounds.egress != "none":
            options = replace(options, egress=None)
        if self.choice.disk is None and options.disk == self._bounds.disk:
            options = replace(options, disk=None)
        if not (self.ran or starting):
            self.choice = choose(options, self._bounds)
        elif (name := self.choice.differing(options)) is not None:
            raise SessionConflict(
                f"The session is open with another {name.rpartition('.')[2]}",
                f"leave the field {name!r} out to use the session as it is, or close it first with close_session;"
                " its files stay",
            )
        self.set_linger(options.linger, keep_while_running=options.keep_while_running)
        return (self.choice.image, self.choice.disk) != (image, disk)

    def adopt(self, choice: Choice, facts: Facts | None) -> None:
        """Adopt an earlier server's choice, and the facts of its sandbox if that still runs.

        What clients cannot choose is as on this server, whose runtime may be another one, with images or without.
        """
        bounds, has = self._bounds, choice.limits
        limits = replace(bounds.limits, memory=has.memory, cpus=has.cpus, pids=has.pids)
        image = None if bounds.image is None else choice.image or bounds.image
        self.choice, self.ran, self.facts = replace(choice, limits=limits, image=image), True, facts

    def keep_to_bounds(self) -> bool:
        """Reduce the choice to this server's bounds, before a sandbox is made; return whether the image changes.

        The sandbox of an earlier server is used as it is, but the next one follows this server's bounds.
        """
        image = self.choice.image
        self.choice = within(self.choice, self._bounds)
        if self.choice.image == image:
            return False
        self.facts = None
        return True

    def check_kernel(self, facts: Facts) -> None:
        """Raise `BadRequest` for a chosen kernel that the image lacks. Without the default one, shells still work."""
        name = self.choice.kernel
        if name not in facts.kernelspecs and name != DEFAULT_KERNEL:
            have = ", ".join(sorted(facts.kernelspecs)) or "none"
            raise BadRequest(
                f"The kernel {name!r} is not in the image", f"it has: {have}", field="kernel", code="invalid_field"
            )

    def started(self, facts: Facts) -> None:
        """Note that a sandbox runs with the choice."""
        self.ran = True
        spec = facts.kernelspecs.get(self.choice.kernel)
        self.language = spec.language if spec is not None else None
