"""The shell that a person finds in an interactive terminal: how it is started and what it reads first; pure.

It is interactive but not a login shell: /etc/profile on Debian sets PATH anew and loses the one that the sandbox
gives. What a person expects comes from a file that it reads before their own: a prompt, colours.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernelbridge.workspace.shell.script import is_bash

FILE = "terminal.rc"
"""Name of the file that the shell reads, in the directory of the workspace's sockets."""

_BASH = r"""PS1='\[\e[1;32m\]\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
alias ls='ls --color=auto' grep='grep --color=auto'
if [ -r ~/.bashrc ]; then . ~/.bashrc; fi
"""
_POSIX = r"""PS1='$PWD\$ '
alias ls='ls --color=auto' grep='grep --color=auto'
"""


def setup(shell: str) -> str:
    """Give what the shell reads when it starts."""
    return _BASH if is_bash(shell) else _POSIX


def argv(shell: str, file: str) -> list[str]:
    """Give the command that starts it; `file` is where it finds what `setup` gave."""
    return [shell, "--rcfile", file, "-i"] if is_bash(shell) else [shell, "-i"]


def environment(shell: str, file: str, own: Mapping[str, str]) -> dict[str, str]:
    """Give the variables to lay over the sandbox's `own`."""
    variables = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "SHELL": shell}
    if not any(own.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")):
        variables["LANG"] = "C.UTF-8"
    return variables if is_bash(shell) else {**variables, "ENV": file}
