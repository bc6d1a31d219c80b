"""What a session may be opened with: checked against what the operator grants; pure.

`SessionOptions` are what one `open_session` asks for, a `Choice` is what the session then has, and an `Opening` keeps
the choice of one session. What the options leave out is the server's default for a session that is not open, and stays
as it is for one that is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from kernelbridge.errors import BadRequest, SessionConflict
from kernelbridge.runtimes.contract import Limits
from kernelbridge.runtimes.facts import Facts
from kernelbridge.settings.quantities import format_size

DEFAULT_KERNEL = "python3"

MIN_MEMORY = 64 << 20
"""Bytes below which no interpreter starts."""
MIN_CPUS = 0.01
MIN_PIDS = 32

MAX_ENV = 64
"""Variables that a session may be given."""
MAX_ENV_BYTES = 64 << 10
"""Bytes of their names and values together; one process must take them all."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_RESERVED = frozenset(
    {
        *("HOME", "PATH", "PWD", "OLDPWD", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TERM", "TMPDIR"),
        *("ENV", "BASH_ENV", "BASHOPTS", "SHELLOPTS", "PROMPT_COMMAND", "IFS", "PS0", "PS1", "PS2", "PS4"),
        *("PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHONNOUSERSITE", "VIRTUAL_ENV"),
        *("IPYTHONDIR", "PIP_BREAK_SYSTEM_PACKAGES", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_INPUT", "PIP_RETRIES"),
    }
)
"""What the bridge sets itself, and what decides how the shell and the interpreter come up."""
_RESERVED_PREFIXES = ("LD_", "KERNELBRIDGE", "JPY_", "JUPYTER_", "BASH_FUNC_")


SERVER_RETURNS = 60.0
"""Seconds beyond a session's linger in which a server must come back to its sandbox."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator grants."""

    limits: Limits
    image: str | None
    """The default image; None where the runtime has no images."""
    images: frozenset[str] = frozenset()
    """The others that may be chosen."""
    image_setting: str | None = None
    """The default image's name where the runtime has none: a client may say it all the same."""
    linger: float = 15.0
    """Seconds that a session lives on after its last connection, unless it ask for something else."""
    max_linger: float = 3600.0
    """Most of them that it may ask for; never less than `linger`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What a client asks for; None where it says nothing."""

    image: str | None = None
    kernel: str | None = None
    env: Mapping[str, str] | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    linger: float | None = None
    keep_while_running: bool | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session is opened with."""

    limits: Limits
    image: str | None = None
    """None for the runtime's own."""
    kernel: str = DEFAULT_KERNEL
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def differing(self, options: SessionOptions) -> str | None:
        """Name the first field in which `options` ask for something else, or None."""
        pairs = (
            ("image", options.image, self.image),
            ("kernel", options.kernel, self.kernel),
            ("env", options.env, self.env),
            ("limits.memory", options.memory, self.limits.memory),
            ("limits.cpus", options.cpus, self.limits.cpus),
            ("limits.pids", options.pids, self.limits.pids),
        )
        return next((name for name, asked, has in pairs if asked is not None and asked != has), None)


def checked(options: SessionOptions, bounds: Bounds) -> SessionOptions:
    """Refuse what the operator does not grant; raises `BadRequest` that names the field and its bound."""
    most = bounds.limits
    _within("limits.memory", options.memory, (MIN_MEMORY, most.memory), f"bytes ({format_size(most.memory)})")
    _within("limits.cpus", options.cpus, (MIN_CPUS, most.cpus), "processors")
    _within("limits.pids", options.pids, (MIN_PIDS, most.pids), "processes")
    most_linger = max(bounds.max_linger, bounds.linger)
    if options.linger is not None and options.linger > most_linger:
        raise _invalid("linger", f"expected at most {most_linger:g} seconds, which is what the server grants")
    if options.env is not None:
        _check_env(options.env)
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
    )


def within(choice: Choice, bounds: Bounds) -> Choice:
    """Give a choice that another server granted as far as this one does, which may grant less."""
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
    raise _invalid("image", f"expected one that the server allows: {', '.join(granted)}")


def _tagged(image: str) -> str:
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"


def _within(name: str, value: float | None, bounds: tuple[float, float], unit: str) -> None:
    least, most = bounds
    if value is not None and not least <= value <= most:
        raise _invalid(name, f"expected at least {least} and at most {most} {unit}, which is what the server grants")


def _check_env(env: Mapping[str, str]) -> None:
    if len(env) > MAX_ENV:
        raise _invalid("env", f"expected at most {MAX_ENV} variables, found {len(env)}")
    for name, value in env.items():
        if _ENV_NAME.fullmatch(name) is None:
            raise _invalid("env", f"{name[:200]!r} is not the name of a variable: letters, digits and '_', up to 128")
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise _invalid("env", f"{name} is set by the sandbox; code may set it for itself when it runs")
        if "\0" in value:
            raise _invalid("env", f"the value of {name} holds a zero character")
    if (size := sum(len(part.encode()) for pair in env.items() for part in pair)) > MAX_ENV_BYTES:
        raise _invalid("env", f"expected at most {MAX_ENV_BYTES} bytes of names and values together, found {size}")


def _invalid(name: str, expected: str) -> BadRequest:
    return BadRequest(f"The field {name!r} is wrong", expected, field=name, code="invalid_field")


class Opening:
    """The choice of one session. It is fixed once the sandbox runs, or while it starts; until the session is closed."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._ran = False
        self._linger: float | None = None
        self.keep_while_running = False
        """Whether the session lives on while a cell or a command runs, whoever is connected."""
        self.choice: Choice = choose(SessionOptions(), bounds)
        self.language: str | None = None
        """The kernel's, once the sandbox has run."""
        self.facts: Facts | None = None
        """What an adopted sandbox offers: its image may be another by now, or gone."""

    @property
    def ran(self) -> bool:
        """Whether a sandbox has run with it."""
        return self._ran

    @property
    def linger(self) -> float:
        """Seconds that the session lives on after its last connection."""
        bounds = self._bounds
        return bounds.linger if self._linger is None else min(self._linger, max(bounds.max_linger, bounds.linger))

    @property
    def outlives(self) -> float:
        """Seconds that the sandbox goes on without a server: nobody looks then whether something runs in it."""
        bounds = self._bounds
        linger = max(bounds.max_linger, bounds.linger) if self.keep_while_running else self.linger
        return linger + SERVER_RETURNS

    @property
    def asked_linger(self) -> float | None:
        """The same as somebody has asked for it; None if nobody has."""
        return self._linger

    def stay(self, linger: float | None, *, keep_while_running: bool | None) -> None:
        """Change how long the session lives on; None changes nothing. Unlike the rest, that can be done at any time."""
        if linger is not None:
            self._linger = linger
        if keep_while_running is not None:
            self.keep_while_running = keep_while_running

    def take(self, options: SessionOptions, *, starting: bool) -> bool:
        """Make it what checked options ask for; say whether that is another image.

        Raises `SessionConflict` when it is fixed and something else.
        """
        image = self.choice.image
        if not (self._ran or starting):
            self.choice = choose(options, self._bounds)
        elif (name := self.choice.differing(options)) is not None:
            raise SessionConflict(
                f"The session is open with another {name.rpartition('.')[2]}",
                f"leave the field {name!r} out to use the session as it is, or close it first with close_session;"
                " its files stay",
            )
        self.stay(options.linger, keep_while_running=options.keep_while_running)
        return self.choice.image != image

    def adopt(self, choice: Choice, facts: Facts | None) -> None:
        """Take what an earlier server has opened the session with, and what its sandbox offers, if it is there."""
        self.choice, self._ran, self.facts = choice, True, facts

    def keep_to_bounds(self) -> bool:
        """Before a sandbox is made: grant no more than this server does; say whether that is another image.

        A sandbox that an earlier server made is used as it is, but no other is made like it.
        """
        image = self.choice.image
        self.choice = within(self.choice, self._bounds)
        if self.choice.image == image:
            return False
        self.facts = None
        return True

    def check_kernel(self, facts: Facts) -> None:
        """Refuse a kernel that was asked for and is not in the image; without the default one, shells can still run."""
        name = self.choice.kernel
        if name not in facts.kernelspecs and name != DEFAULT_KERNEL:
            have = ", ".join(sorted(facts.kernelspecs)) or "none"
            raise BadRequest(
                f"The kernel {name!r} is not in the image", f"it has: {have}", field="kernel", code="invalid_field"
            )

    def started(self, facts: Facts) -> None:
        """Take note that a sandbox runs with it."""
        self._ran = True
        spec = facts.kernelspecs.get(self.choice.kernel)
        self.language = spec.language if spec is not None else None
