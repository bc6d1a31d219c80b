"""What one session is opened with, and whether that can still be chosen; pure."""

from __future__ import annotations

from kernelbridge.errors import BadRequest, SessionConflict
from kernelbridge.runtimes.facts import Facts
from kernelbridge.workspace.options import DEFAULT_KERNEL, Bounds, Choice, Wish, choose, within


class Opening:
    """The choice of one session. It is fixed once the sandbox runs, or while it starts; until the session is closed."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._ran = False
        self._linger: float | None = None
        self.keep_while_running = False
        """Whether the session lives on while a cell or a command runs, whoever is connected."""
        self.choice: Choice = choose(Wish(), bounds)
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
    def asked_linger(self) -> float | None:
        """The same as somebody has asked for it; None if nobody has."""
        return self._linger

    def stay(self, linger: float | None, *, keep_while_running: bool | None) -> None:
        """Change how long the session lives on; None changes nothing. Unlike the rest, that can be done at any time."""
        if linger is not None:
            self._linger = linger
        if keep_while_running is not None:
            self.keep_while_running = keep_while_running

    def take(self, wish: Wish, *, starting: bool) -> bool:
        """Make it what a checked wish asks for; say whether that is another image.

        Raises `SessionConflict` when it is fixed and something else.
        """
        image = self.choice.image
        if not (self._ran or starting):
            self.choice = choose(wish, self._bounds)
        elif (name := self.choice.differing(wish)) is not None:
            raise SessionConflict(
                f"The session is open with another {name.rpartition('.')[2]}",
                f"leave the field {name!r} out to use the session as it is, or close it first with close_session;"
                " its files stay",
            )
        self.stay(wish.linger, keep_while_running=wish.keep_while_running)
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
