"""Memory is returned to the system when it is free.

Once glibc has freed large blocks, it keeps free blocks of up to 32 MiB between others that are in use: the memory for
the messages of a few clients would stay with the server for ever.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
"""Blocks of at least this many bytes are mapped: they are returned when they are freed, and grow without a copy."""


def return_large_blocks() -> None:
    """Make glibc return large blocks as soon as they are freed. Does nothing with other C libraries."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
