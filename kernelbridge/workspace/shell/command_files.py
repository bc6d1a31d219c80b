"""The files that the shells of a sandbox read: the text of a command, a shell's set-up, a terminal's set-up.

They lie in the sandbox's socket directory, which its programs can read and not write. They are made with the sandbox
and then overwritten in place: that needs no room on a full disk for up to `ROOM` bytes, and no entry in the file
system's journal, for which a busy disk lets a program wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO

from kernelbridge.errors import TerminalError
from kernelbridge.workspace.shell.script import COMMAND, POSIX_KEYS, SETUP

TERMINAL_SETUP = "terminal.rc"
"""Name of the file that the shell of an interactive terminal reads when it starts, the user's own included."""
ROOM = 4096
"""Bytes that a file keeps on disk, however short its content is."""

_TERMINAL_SETUP = r"""alias ls='ls --color=auto' grep='grep --color=auto'
if [ -z "${BASH_VERSION-}" ]; then
    PS1='$PWD\$ '
else
    PS1='\[\e[1;32m\]\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
    if [ -r ~/.bashrc ]; then . ~/.bashrc; fi
fi
"""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_TRAPS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Where the sandbox has the same user as the server, a link or a FIFO could lie there."""


def prepare_directory(directory: Path) -> None:
    """Make those of the files that are missing, in the socket directory of a sandbox. Blocking; raises `OSError`.

    Called before a sandbox starts, and when one of an earlier server's is taken over, whose version had others.
    """
    files = {COMMAND: "\n" * ROOM, SETUP: "\n" * ROOM, TERMINAL_SETUP: _TERMINAL_SETUP}
    for name, content in files.items():
        with contextlib.suppress(FileExistsError), _opened(directory / name, os.O_CREAT | os.O_EXCL) as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask says: the sandbox's user has to read it
            file.write(content.encode())
    name, target = POSIX_KEYS
    with contextlib.suppress(FileExistsError):
        (directory / name).symlink_to(target)


def overwrite(path: Path, content: bytes) -> None:
    """Replace the content of a file that `prepare_directory` has made. Raises `TerminalError`."""
    try:
        with _opened(path) as file:
            file.write(content)
            file.truncate()
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno in _FULL:
            reason = (
                "the disk of the server's data directory is full; delete files, with delete_file or a short command"
            )
        raise TerminalError("The terminal command was not run", f"it could not be handed over: {reason}") from exc


def _opened(path: Path, flags: int = 0) -> BinaryIO:
    flags |= os.O_RDWR | _NO_TRAPS
    return open(path, "r+b", opener=lambda name, _: os.open(name, flags, 0o600))
