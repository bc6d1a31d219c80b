r"""What the bridge tells a shell: the set-up that it reads once, and the lines that run a command; pure.

The shell is interactive (`-i`): only then do a syntax error, an unset variable under `set -u` or an interrupt
lead back to its prompt instead of ending it, and only then do aliases work. It is
not a login shell (`-l`): /etc/profile on Debian sets PATH anew and loses the one that the sandbox gives.

It reads from and writes to a terminal that is not its own: it leads no session, so none becomes its controlling one.
So programs see a terminal to write on, and none to read from: what opens /dev/tty to ask something (ssh, sudo, a
pager) fails at once with its own words instead of waiting for keys that never come.

A command never travels through the terminal, whose input lines end at 4095 bytes and whose special
characters act. It lies in a file that the shell reads into a variable and evaluates. `eval` stands at the
top level, not in a function, where `declare` would make local variables. Its redirections mean that
a command cannot eat the shell's own input, and that `exec >file` in it ends with it.

The end mark is printed after the command, once more by a line of its own, and by the prompt, because a shell drops the
rest of the line where a command was interrupted, used an unset variable under `set -u`, or in a POSIX shell was
no valid syntax; and because a command may redefine whatever one of them needs. The first of them counts. What tells
one command from another stands in these lines themselves: there is no variable that could be lost.

busybox up to 1.35 reads its standard input so that a signal interrupts it, and takes that for the end of the file: a
background job that ended while it was idle ended it. What it reads as a script it reads again when that happens. So it
gets its terminal as a script, and is interactive nevertheless (`-i FILE`), but shows no prompt. The script is called
`sh`, because its errors begin with that name. It cannot change to another script: what a shell writes moves from one
terminal to the next, and what it reads does not.

Nothing of this starts a process, so that a shell is of use where no more can be started, and does not wait for that
(bash tries for 15 seconds). Only a long command in a POSIX shell has `cat` read it, which is the faster one there.
"""

from __future__ import annotations

from collections.abc import Mapping
from posixpath import basename, join
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

_START_POSIX = """
case $("$2" --help 2>&1 </dev/null) in
BusyBox*) cd "$1" && exec "$2" -i @NAME@ ;;
esac
exec "$2" -i
"""

COMMAND, SETUP = "command", "setup"
"""Names of the files with the text of a command, and with what a new shell reads first."""
POSIX_KEYS = "sh", "/proc/self/fd/0"
"""Name and target of the link to a shell's own standard input, beside the commands."""

_SHORT = 2048
"""Bytes that a POSIX shell reads sooner than it starts a program."""

_BASH = r"""
__kb_begin() {
    builtin printf -v PS1 "$__kb_p" "$1" "$1"
    # At the end of the file `read` fails although it has read all of it.
    { IFS= builtin read -r -d '' __kb_c <@DIRECTORY@/"$3" || [[ $__kb_c ]]; } &&
        builtin printf '\033]133;C;%s\007' "$1" >"$2"
    return "${__kb_s:-0}"
}
__kb_end() {
    __kb_s=$?
    if [[ ${!-} = "$__kb_j" ]]; then __kb_j=; else __kb_j=$!; fi
    if [[ /proc/$__kb_j/fd/1 -ef $2 || /proc/$__kb_j/fd/2 -ef $2 ]]; then :; else __kb_j=; fi
    builtin printf '\033]133;D;%s;%s;%s;%s%s\007' "$1" "$__kb_s" "$__kb_j" "${PWD-}" "$1" >"$2"
    builtin printf -v PS1 "$__kb_p" "$1" "$1"
    __kb_j=${!-} PS2= PROMPT_COMMAND=
    return "${__kb_s:-0}"
}
__kb_p='\033]133;D;%s;$?;;${PWD-}%s\007'
# When a command is being killed: the shell shall not go on with what stands behind the program that dies.
trap '\builtin kill -INT $$' URG
HISTIGNORE='*'
unset HISTFILE MAILCHECK
"""

_POSIX = r"""
__kb_begin() {
    PS1=@PROMPT@
    if [ "${4-}" = short ]; then
        __kb_c=
        # The word is another one where `command` was replaced and nothing was read.
        while __kb_l=$1; IFS= command read -r __kb_l && [ "$__kb_l" != "$1" ]; do
            __kb_c="$__kb_c$__kb_l
"
        done <@DIRECTORY@/"$3" && [ "$__kb_c" ]
    else
        __kb_c=$(command -p cat @DIRECTORY@/"$3")
    fi &&
        command printf '\033]133;C;%s\007' "$1" >"$2"
    return "${__kb_s:-0}"
}
__kb_end() {
    __kb_s=$?
    if [ "${!-}" = "$__kb_j" ]; then __kb_j=; else __kb_j=$!; fi
    if [ "/proc/$__kb_j/fd/1" -ef "$2" ] || [ "/proc/$__kb_j/fd/2" -ef "$2" ]; then :; else __kb_j=; fi
    command printf '\033]133;D;%s;%s;%s;%s%s\007' "$1" "$__kb_s" "$__kb_j" "${PWD-}" "$1" >"$2"
    __kb_j=${!-} PS1=@PROMPT@ PS2=
    return "${__kb_s:-0}"
}
unset ENV MAILCHECK
"""

_PROMPT = '"\x1b]133;D;$1;\\$?;;\\${PWD-}$1\x07"'
"""For a POSIX shell; expanded once when it is set, and its rest at the prompt. bash has `printf -v`, which a read-only
variable does not stop."""

_BEGIN = """
@CD@__kb_s=0 __kb_c= __kb_j=${!-} PS1='\x1b]133;D;@NONCE@;$?;;${PWD-}@NONCE@\x07' PS2=
printf '\\033]133;C;%s\\007' @NONCE@ >@TERMINAL@
"""
_USER_FILE = """
if [ -r ~/.bashrc ]; then . ~/.bashrc; fi </dev/null
set +o vi +o emacs
"""


def is_bash(shell: str) -> bool:
    """Say whether a shell is bash, by its name."""
    return basename(shell) == "bash"


def setup(shell: str, directory: str, workspace: str, terminal: str, nonce: str, *, user_file: bool) -> str:
    """Give the file that a new shell reads; it reports as a command with this nonce does.

    `directory` is where the shell finds commands, `workspace` where it shall be, `terminal` the path of its terminal;
    `user_file` is whether it reads the user's own ~/.bashrc, which only bash has.
    """
    own = _BASH if is_bash(shell) else _POSIX
    user = _USER_FILE if user_file and is_bash(shell) else ""
    # Ours comes first, so that a user's file that fails half-way still leaves a shell that reports.
    script = own + _BEGIN + user + "__kb_end @NONCE@ @TERMINAL@\n"
    cd = "" if is_bash(shell) else f"cd {quote(workspace)}; unset OLDPWD\n"
    values = {
        "@CD@": cd,
        "@PROMPT@": _PROMPT,
        "@DIRECTORY@": quote(directory),
        "@TERMINAL@": terminal,
        "@NONCE@": nonce,
    }
    for name, value in values.items():
        script = script.replace(name, value)
    return script


def start(shell: str, directory: str) -> tuple[list[str], dict[str, str]]:
    """Give the arguments and the environment that start a shell on a terminal and make it read its set-up."""
    setup_path = join(directory, SETUP)
    if is_bash(shell):
        return [shell, "--noediting", "--rcfile", setup_path, "-i"], {}
    return ["/bin/sh", "-c", _START_POSIX.replace("@NAME@", POSIX_KEYS[0]), "sh", directory, shell], {"ENV": setup_path}


def move(terminal: str) -> bytes:
    """Give the line to type that makes the shell itself write on another terminal."""
    return f"exec >{terminal} 2>&1\n".encode("ascii")


def run(shell: str, nonce: str, terminal: str, *, size: int) -> bytes:
    """Give the lines to type that run the command in the file `COMMAND`, which has `size` bytes."""
    # A function of the user's may be called eval; in a POSIX shell none can.
    evaluate, call = ("\\builtin eval", "\\builtin") if is_bash(shell) else ("eval", "command")
    # Emptied first: where __kb_begin is gone, nothing runs and the end mark comes alone.
    # `&& :` keeps the status of the last command as `$?` and keeps `set -e` and ERR traps quiet about it.
    begin = f"__kb_begin {nonce} {terminal} {COMMAND}" + (" short" if size <= _SHORT else "")
    end = f"__kb_end {nonce} {terminal}"
    mark = f'printf \'\\033]133;D;%s;%s;;%s%s\\007\' {nonce} "$__kb_s" "${{PWD-}}" {nonce} >{terminal}'
    # What busybox does in place of a prompt: it shows none where it reads a script.
    last = "" if is_bash(shell) else f'printf \'\\033]133;D;%s;%s;;%s%s\\007\' {nonce} "$?" "${{PWD-}}" {nonce}\n'
    return (
        f"__kb_c=; {{ {begin} && :; }} 2>/dev/null; "
        f'{evaluate} "$__kb_c" </dev/null >{terminal} 2>&1; {{ {end} && :; }} 2>/dev/null\n'
        f"{{ __kb_s=$?; {call} {mark}; PS1= PS2= PROMPT_COMMAND=; }} 2>/dev/null\n" + last
    ).encode("ascii")
