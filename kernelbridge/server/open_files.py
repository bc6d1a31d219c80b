"""How many files and sockets the server may have open at the same time."""

from __future__ import annotations

import contextlib
import resource

_ENOUGH = 1 << 20


def raise_limit() -> None:
    """Raise the soft limit, which is 1,024 on most systems, to the hard one, or as far as a server can use."""
    soft, hard = (_ENOUGH if each == resource.RLIM_INFINITY else each for each in _limits())
    if soft < (wanted := min(hard, _ENOUGH)):
        with contextlib.suppress(OSError, ValueError):  # it may not be raised here: the server does with what it has
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, _limits()[1]))


def limit() -> int:
    """Return how many may be open at the same time."""
    soft, _ = _limits()
    return _ENOUGH if soft == resource.RLIM_INFINITY else min(soft, _ENOUGH)


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)
