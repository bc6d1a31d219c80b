r"""What a shell reads: its set-up, and the lines that run a command; pure.

The shell is interactive (`-i`): only then does it return to its prompt after a syntax error, an unset variable under
`set -u` or an interrupt, and only then do aliases work. It is not a login shell (`-l`): /etc/profile on Debian sets
PATH anew and loses the one that the sandbox gives.

It reads from and writes to a terminal that is not its controlling one, because it leads no session. So programs have a
terminal to write on, and none to read from: a program that opens /dev/tty to ask something (ssh, sudo, a pager) fails
at once with its own message, and does not wait for keys that nobody presses.

The text of a command is not typed, because a terminal's input lines end at 4095 bytes and some characters act on the
terminal. It is in a file, which the shell reads into a variable and evaluates. `eval` is at the top level: in a
function, `declare` would make local variables. Because `eval` is redirected, a command cannot read the shell's own
input, and `exec >file` in it ends with it.

The end mark is printed after the command, once more by a line of its own, and by the prompt. A shell drops the rest of
a line where a command was interrupted, used an unset variable under `set -u`, or, in a POSIX shell, has a syntax error;
and a command may redefine what one of the three needs. The first mark counts. The nonce is in the lines themselves, and
in no variable that a command could change.

busybox up to 1.35 takes a signal for the end of its standard input: a background job that ended while the shell was
idle ended the shell. A script it reads again after a signal. So it gets its terminal as a script and is interactive
all the same (`-i FILE`), but shows no prompt. The script is called `sh`, because error messages begin with that name.
It cannot change to another script; therefore the shell moves only its output from one terminal to the next.

None of this starts a process, so a shell works where no more can be started, and does not wait for that (bash tries for
15 seconds). Only for a long command does a POSIX shell start `cat`, which is faster there.
"""

from __future__ import annotations

from collections.abc import Mapping
from posixpath import basename, join
from shlex import quote
from types import MappingProxyType

from kernelbridge.errors import BadRequest

PLAIN: Mapping[str, str] = MappingProxyType(
    {
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "MANPAGER": "cat",
        "SYSTEMD_PAGER": "cat",
        # Do not ask what nobody answers.
        "GIT_TERMINAL_PROMPT": "0",
        "DEBIAN_FRONTEND": "noninteractive",
    }
)
"""The environment variables with which programs write plain text and do not wait for keys."""

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
"""Bytes that a POSIX shell reads faster than it starts a program."""

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
# Sent while a command is killed: the shell must not run the rest of the command after the program that dies.
trap '\builtin kill -INT $$' URG
HISTIGNORE='*'
unset HISTFILE MAILCHECK
"""

_POSIX = r"""
__kb_begin() {
    PS1=@PROMPT@
    if [ "${4-}" = short ]; then
        __kb_c=
        # The word is still $1 where `command` was replaced, so that nothing was read.
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
"""For a POSIX shell: a part is expanded when it is set, the rest at the prompt. bash has `printf -v`, which also sets a
read-only variable."""

_BEGIN = """
@CD@__kb_s=0 __kb_c= __kb_j=${!-} PS1='\x1b]133;D;@NONCE@;$?;;${PWD-}@NONCE@\x07' PS2=
printf '\\033]133;C;%s\\007' @NONCE@ >@TERMINAL@
"""
_USER_FILE = """
if [ -r ~/.bashrc ]; then . ~/.bashrc; fi </dev/null
set +o vi +o emacs
"""


def encoded(text: str, failure: str, field: str) -> bytes:
    """Return the UTF-8 form of a text for a shell or a terminal; raises `BadRequest(failure)` if it has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        reason = "it contains half of a surrogate pair, which has no UTF-8 form"
        raise BadRequest(failure, reason, field=field) from exc


def is_bash(shell: str) -> bool:
    """Return whether a shell is bash, by its name."""
    return basename(shell) == "bash"


def setup(shell: str, directory: str, workspace: str, terminal: str, nonce: str, *, user_file: bool) -> str:
    """Return what a new shell reads first; it writes marks with this nonce, as a command does.

    `directory` is where the shell finds the files of commands, `workspace` its working directory, `terminal` the path
    of its terminal. With `user_file`, bash reads the user's ~/.bashrc.
    """
    own = _BASH if is_bash(shell) else _POSIX
    user = _USER_FILE if user_file and is_bash(shell) else ""
    # Ours comes first, so that a shell works of which the user's file fails half-way.
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
    """Return the arguments and the environment variables that start a shell with its set-up; `directory` as above."""
    setup_path = join(directory, SETUP)
    if is_bash(shell):
        return [shell, "--noediting", "--rcfile", setup_path, "-i"], {}
    return ["/bin/sh", "-c", _START_POSIX.replace("@NAME@", POSIX_KEYS[0]), "sh", directory, shell], {"ENV": setup_path}


def move(terminal: str) -> bytes:
    """Return the line that makes the shell write on another terminal."""
    return f"exec >{terminal} 2>&1\n".encode("ascii")


def run(shell: str, nonce: str, terminal: str, *, size: int) -> bytes:
    """Return the lines that run the command in the file `COMMAND`, which has `size` bytes."""
    # The user may have a function called eval; in a POSIX shell that is impossible.
    evaluate, call = ("\\builtin eval", "\\builtin") if is_bash(shell) else ("eval", "command")
    # Emptied first: if __kb_begin is gone, nothing runs, and the end mark is printed alone.
    # `&& :` keeps the status of the last command in `$?`, without an effect on `set -e` and ERR traps.
    begin = f"__kb_begin {nonce} {terminal} {COMMAND}" + (" short" if size <= _SHORT else "")
    end = f"__kb_end {nonce} {terminal}"
    mark = f'printf \'\\033]133;D;%s;%s;;%s%s\\007\' {nonce} "$__kb_s" "${{PWD-}}" {nonce} >{terminal}'
    # For busybox, which shows no prompt when it reads a script.
    last = "" if is_bash(shell) else f'printf \'\\033]133;D;%s;%s;;%s%s\\007\' {nonce} "$?" "${{PWD-}}" {nonce}\n'
    return (
        f"__kb_c=; {{ {begin} && :; }} 2>/dev/null; "
        f'{evaluate} "$__kb_c" </dev/null >{terminal} 2>&1; {{ {end} && :; }} 2>/dev/null\n'
        f"{{ __kb_s=$?; {call} {mark}; PS1= PS2= PROMPT_COMMAND=; }} 2>/dev/null\n" + last
    ).encode("ascii")
