r"""What the bridge tells a shell: the set-up that it reads once, and the one line that runs a command; pure.

The shell is interactive (`-i`): only then do a syntax error, an unset variable under `set -u` or an interrupt
lead back to its prompt instead of ending it, and only then do aliases and job control work. It is
not a login shell (`-l`): /etc/profile on Debian sets PATH anew and loses the one that the sandbox gives.

A command never travels through the terminal, whose input lines end at 4095 bytes and whose special
characters act. It lies in a file that the shell reads into a variable and evaluates. `eval` stands at the
top level, not in a function, where `declare` would make local variables. Its redirections mean that
a command cannot eat the shell's own input, and that `exec >file` in it ends with it.

The end mark is printed after the command and once more by the prompt, because a shell drops the rest of the
line where a command was interrupted, used an unset variable under `set -u`, or in a POSIX shell was
no valid syntax. The first of the two counts. Each command's end sets the prompt anew: users and
activated environments change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from posixpath import basename
from shlex import quote
from types import MappingProxyType

PLAIN: Mapping[str, str] = MappingProxyType(
    {
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "MANPAGER": "cat",
        "SYSTEMD_PAGER": "cat",
        # Questions that nobody will answer.
        "GIT_TERMINAL_PROMPT": "0",
        "DEBIAN_FRONTEND": "noninteractive",
    }
)
"""The environment in which programs write plain text and do not wait for keys."""

_BASH = r"""
__kb_begin() {
    # At the end of the file `read` fails although it has read all of it.
    { IFS= builtin read -r -d '' __kb_c <@DIRECTORY@/"$__kb_n" || [[ $__kb_c ]]; } &&
        builtin printf '\033]133;C;%s\007' "$__kb_n" >/dev/tty
    return "$__kb_s"
}
__kb_end() {
    __kb_s=$?
    builtin printf '\033]133;D;%s;%s;%s%s\007' "$__kb_n" "$__kb_s" "${PWD-}" "$__kb_n" >/dev/tty
    PS1=$__kb_ps1 PS2= PROMPT_COMMAND=
    return "$__kb_s"
}
HISTIGNORE='*'
unset HISTFILE MAILCHECK
"""

_POSIX = r"""
__kb_begin() {
    __kb_c=$(command -p cat @DIRECTORY@/"$__kb_n") &&
        command printf '\033]133;C;%s\007' "$__kb_n" >/dev/tty
    return "$__kb_s"
}
__kb_end() {
    __kb_s=$?
    command printf '\033]133;D;%s;%s;%s%s\007' "$__kb_n" "$__kb_s" "${PWD-}" "$__kb_n" >/dev/tty
    PS1=$__kb_ps1 PS2=
    return "$__kb_s"
}
unset ENV MAILCHECK
"""

_START = """
__kb_ps1='\x1b]133;D;$__kb_n;$?;${PWD-}$__kb_n\x07'
__kb_n=@NONCE@ __kb_s=0 __kb_c= PS1=$__kb_ps1 PS2=
printf '\\033]133;C;%s\\007' "$__kb_n" >/dev/tty
"""

_USER_FILE = """
if [ -r ~/.bashrc ]; then . ~/.bashrc; fi </dev/null
set +o vi +o emacs
"""


def is_bash(shell: str) -> bool:
    """Say whether a shell is bash, by its name."""
    return basename(shell) == "bash"


def setup(shell: str, directory: str, nonce: str, *, user_file: bool) -> str:
    """Give the file that a new shell reads; it reports as a command with this nonce does.

    `directory` is where the shell finds commands; `user_file` is whether it reads the user's
    own ~/.bashrc, which only bash has.
    """
    own = _BASH if is_bash(shell) else _POSIX
    user = _USER_FILE if user_file and is_bash(shell) else ""
    # Ours comes first, so that a user's file that fails half-way still leaves a shell that reports.
    script = own + _START + user + "__kb_end\n"
    return script.replace("@DIRECTORY@", quote(directory)).replace("@NONCE@", nonce)


def start(shell: str, setup_path: str) -> tuple[list[str], dict[str, str]]:
    """Give the arguments and the environment that make a shell read its set-up."""
    if is_bash(shell):
        return [shell, "--noediting", "--rcfile", setup_path, "-i"], {}
    return [shell, "-i"], {"ENV": setup_path}


def run(shell: str, nonce: str) -> bytes:
    """Give the line to type that runs the command in the file named `nonce`."""
    # A function of the user's may be called eval; in a POSIX shell none can.
    evaluate = "\\builtin eval" if is_bash(shell) else "eval"
    # Emptied first: where __kb_begin is gone, nothing runs and the end mark comes alone.
    # `&& :` keeps the status of the last command as `$?` and keeps `set -e` and ERR traps quiet about it.
    return (
        f"__kb_s=$? __kb_n={nonce} __kb_c=; {{ __kb_begin && :; }} 2>/dev/null; "
        f'{evaluate} "$__kb_c" </dev/null >/dev/tty 2>&1; {{ __kb_end && :; }} 2>/dev/null\n'
    ).encode("ascii")
