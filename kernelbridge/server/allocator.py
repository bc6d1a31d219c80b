"""Memory that goes back to the system when it is free.

glibc keeps blocks of up to 32 MiB, once some have been freed, between others that are in use: what the messages of a
few clients took would stay with the server for good.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
"""Bytes from which on a block is one of the system's own, which goes back when it is freed and grows without a copy."""


def return_large_blocks() -> None:
    """Have the C library give large blocks back at once; where it is another than glibc, nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
