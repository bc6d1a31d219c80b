"""The files that the shells of a sandbox read: the text of a command, a shell's set-up, a terminal's set-up.

They are in the sandbox's socket directory, which its programs can read and not write; but where the sandbox has the
same user as the server, a link or a FIFO may be in the place of one. They are made with the sandbox and overwritten in
place: so up to `ROOM` bytes fit in on a full disk, and no command waits until a file is made and removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from kernelbridge.errors import TerminalError
from kernelbridge.workspace.shell.script import COMMAND, POSIX_KEYS, SETUP

TERMINAL_SETUP = "terminal.rc"
"""Name of the file that the shell of an interactive terminal reads when it starts."""
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


def prepare_directory(directory: Path) -> None:
    """Make those of the files that are missing in the socket directory of a sandbox. Blocking; raises `OSError`.

    Called before a sandbox starts, and when one is adopted, because an older server may have made others.
    """
    files = {COMMAND: b"\n" * ROOM, SETUP: b"\n" * ROOM, TERMINAL_SETUP: _TERMINAL_SETUP.encode()}
    for name, content in files.items():
        with contextlib.suppress(FileExistsError):
            _write(directory / name, content, os.O_CREAT | os.O_EXCL)
    name, target = POSIX_KEYS
    with contextlib.suppress(FileExistsError):
        (directory / name).symlink_to(target)


def overwrite(path: Path, content: bytes) -> None:
    """Replace the content of a file that `prepare_directory` has made. Raises `TerminalError`."""
    try:
        _write(path, content)
    except OSError as exc:
        reason = exc.strerror
        if exc.errno in _FULL:
            reason = (
                "the disk of the server's data directory is full; delete files, with delete_file or a short command"
            )
        raise TerminalError("The terminal command was not run", f"it could not be handed over: {reason}") from exc


def _write(path: Path, content: bytes, flags: int = 0) -> None:
    fd = os.open(path, flags | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if flags & os.O_CREAT:
            os.fchmod(fd, 0o644)  # independent of the umask: the sandbox's user has to read it
        written = 0
        while written < len(content):
            written += os.pwrite(fd, content[written:], written)
        os.ftruncate(fd, len(content))
    finally:
        os.close(fd)
