"""The texts that the shells of a sandbox read: a command, a shell's set-up, a terminal's set-up (pure).

They are in the sandbox's shared directory from its start on, so that short ones can be replaced on a full disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kernelbridge.runtimes.contract import TEXT_ROOM
from kernelbridge.workspace.shell.script import COMMAND, POSIX_KEYS, SETUP

TERMINAL_SETUP = "terminal.rc"
"""Name of the text that the shell of an interactive terminal reads when it starts."""

_TERMINAL_SETUP = rb"""alias ls='ls --color=auto' grep='grep --color=auto'
if [ -z "${BASH_VERSION-}" ]; then
    PS1='$PWD\$ '
else
    PS1='\[\e[1;32m\]\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
    if [ -r ~/.bashrc ]; then . ~/.bashrc; fi
fi
"""

TEXTS: Mapping[str, bytes] = MappingProxyType(
    {COMMAND: b"\n" * TEXT_ROOM, SETUP: b"\n" * TEXT_ROOM, TERMINAL_SETUP: _TERMINAL_SETUP}
)
"""Those of a new sandbox."""
LINKS: Mapping[str, str] = MappingProxyType(dict((POSIX_KEYS,)))
"""Symlinks beside them."""
