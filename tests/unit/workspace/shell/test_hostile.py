"""Whatever a command does to its shell, the command ends, and the next one runs."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError, TerminalError
from kernelbridge.runtimes.contract import ExitStatus, Moment
from kernelbridge.workspace.shell.ptys import OpenTerminals
from kernelbridge.workspace.shell.shell import Shell, ShellSettings
from kernelbridge.workspace.shell.start import start_shell
from tests.unit.workspace.conftest import Place

every = pytest.mark.parametrize("place", ["bash", "dash", "busybox"], indirect=True)


UNUSUAL = f"1000.{os.getpid()}"
"""Seconds that no other process on this machine sleeps, the other test workers included."""


def everything() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def works(place: Place, shell: Shell) -> bool:
    """Whether this shell runs the next command; if it does not, it says so at once and a new one runs it."""
    survived = shell.alive
    if survived:
        try:
            assert "sane\n" in (await shell.run("echo sane", timeout=20)).output
        except TerminalError as exc:
            assert "a new shell takes it" in exc.reason  # noqa: PT017 - either end is right
            survived = False
    if not survived:
        assert not shell.alive
        assert (await (await place.shell()).run("echo sane", timeout=20)).output == "sane\n"
    return survived


@every
@pytest.mark.parametrize(
    "command",
    [
        "stty -F /dev/tty echo",
        "stty -F /dev/tty -echo",
        "stty -F /dev/tty sane",
        "stty -F /dev/tty raw",
        "stty -F /dev/tty -icrnl igncr",
        "stty -F /dev/tty -opost",
        "reset 2>&1 </dev/tty || true",
        "set -u; echo $unset; echo not reached",
        "trap 'echo trapped' INT EXIT TERM HUP; trap '' QUIT",
        "PS1=x PS2=y PS4=z PROMPT_COMMAND='echo prompt'; export PS1",
        "exec >/dev/null",
        "exec 2>/dev/null; nosuch",
        "exec >file 2>&1; echo x",
        "exec </dev/zero",
        "exec 0<&- 1>&- 2>&-",
        "exec 3>&1 4>/dev/tty 9>&-",
        "alias printf=false cat=false read=false return=false",
        "printf() { echo mine; }; cat() { echo mine; }; read() { echo mine; }; pwd() { echo mine; }",
        "set -x",
        "set -v",
        "set -f -C; set +m",
        "set -a; set -b",
        "IFS=0123456789abcdef",
        "PATH=",
        "unset PATH PWD HOME IFS",
        "PWD=x",
        "mkdir gone; cd gone; rmdir ../gone",
        "umask 777",
        "false && true",
        "break; continue",
        "(exit 3) | cat; kill -INT $$",
        "kill -TERM $$ ; kill -QUIT $$",
        "printf '\\033]133;D;0;0;\\007\\033]133;C;x\\007\\033c\\033[?1049h'",
        "yes | head -n 100000 >/dev/null",
        "LC_ALL=xx; LANG=POSIX",
    ],
)
async def test_the_shell_survives(shell: Shell, place: Place, command: str) -> None:
    outcome = await shell.run(command, timeout=20)
    assert outcome.cause is None, outcome
    assert await works(place, shell)


@pytest.mark.parametrize(
    "command",
    [
        "eval() { echo mine; }; unset() { echo mine; }; .() { echo mine; }; set() { :; }; cd() { :; }",
        "enable -n echo",
        "set -o posix",
        "set -o history -H",
        "set -T -E; trap 'echo debug' DEBUG RETURN; false",
        "trap 'echo err' ERR; false",
        "shopt -s extdebug checkjobs failglob nullglob xpg_echo",
        "shopt -u promptvars",
        "readonly PS1 PROMPT_COMMAND",
        "PROMPT_COMMAND='sleep 1000'",
        "declare -r IFS=x",
        "BASH_ENV=/nowhere BASH_XTRACEFD=77; set -x",
        "command() { :; }; alias builtin=false command=false eval=false",
        "ulimit -u 1; ulimit -f 0",
    ],
)
async def test_bash_survives(shell: Shell, place: Place, command: str) -> None:
    outcome = await shell.run(command, timeout=20)
    assert outcome.cause is None, outcome
    assert await works(place, shell)


@every
@pytest.mark.parametrize(
    "command",
    [
        "builtin() { :; }; command() { :; }",
        "unset -f __kb_begin __kb_end",
        "unset -f __kb_begin",
        "__kb_c='echo forged'",
        "readonly __kb_n",
        "ulimit -n 3",
        "set -e",
    ],
)
async def test_a_shell_made_useless_is_noticed(
    shell: Shell, place: Place, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("kernelbridge.workspace.shell.shell.TAKE_TIMEOUT", 2.0)
    outcome = await shell.run(command, timeout=20)
    assert outcome.cause is None, outcome
    await works(place, shell)


@every
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit", 0),
        ("exit 7", 7),
        ("echo bye; exit 3", 3),
        ("set -e; false; echo not reached", 1),
        ("kill -9 $$", 128 + signal.SIGKILL),
        ("kill -HUP $$", 128 + signal.SIGHUP),
        ("exec true", 0),
        ("exec sh -c 'exit 5'", 5),
        ("exec bash", 0),
        ("trap 'echo last' EXIT; exit 4", 4),
        ("sleep 1000 & exit 6", 6),
    ],
)
async def test_the_shells_end_is_the_outcome(shell: Shell, place: Place, command: str, code: int) -> None:
    outcome = await shell.run(command, timeout=20)
    assert (outcome.cause, outcome.exit_code, outcome.cwd) == ("shell_exited", code, None)
    assert not outcome.state_preserved
    assert "not reached" not in outcome.output
    for word in re.findall(r"echo (bye|last)", command):
        assert f"{word}\n" in outcome.output
    assert not shell.alive
    with pytest.raises(TerminalError, match="its shell has ended; send it again"):
        await shell.run("echo x", timeout=20)
    assert not await works(place, shell)


@every
async def test_a_shell_that_dies_between_commands_is_noticed(shell: Shell, place: Place) -> None:
    await shell.run("cd /", timeout=20)
    os.kill(place.sandbox.processes[-1].pid, signal.SIGKILL)
    await place.sandbox.processes[-1].wait()
    with pytest.raises(TerminalError, match="send it again"):
        await shell.run("echo x", timeout=20)
    assert not await works(place, shell)


@every
@pytest.mark.parametrize(
    "command",
    [
        "echo begun; sleep 1000",
        "while :; do :; done",
        "for i in 1 2 3; do sleep 1000; done",
        "sleep 1000 | sleep 1000 | cat",
        "f() { sleep 1000; }; f; echo not reached",
        "trap : INT; sleep 1000",
        "sh -c 'trap \"\" INT; while :; do :; done'",
        "(trap '' INT; exec sleep 1000); echo not reached",
        "sh -c 'trap \"\" INT QUIT; while :; do :; done'; echo not reached",
        "stty -F /dev/tty -isig; sleep 1000",
        "(trap '' INT QUIT HUP TERM; sleep 1000 & sleep 1000); sh -c 'trap \"\" INT; sleep 1000'; echo not reached",
        "sleep 1000 & (trap '' INT HUP; while :; do :; done) & setsid sleep 1000 & sleep 1000",
        "setsid sh -c 'trap \"\" HUP; sleep 1000 & env -i sleep 1000' & wait",
    ],
)
async def test_a_command_that_times_out_is_ended_and_the_shell_is_not(place: Place, command: str) -> None:
    shell = await place.shell(grace=1.0)
    await shell.run("cd /usr; A=1", timeout=20)
    outcome = await shell.run(command.replace("1000", UNUSUAL), timeout=1)
    assert outcome.cause == "timeout"
    assert "not reached" not in outcome.output
    assert ("begun" in outcome.output) == ("begun" in command)
    assert (outcome.state_preserved, outcome.cwd) == (True, "/usr")
    assert place.sandbox.running() == [place.sandbox.processes[-1].pid]
    assert [pid for pid in everything() if f"sleep {UNUSUAL}" in words(pid)] == []
    assert (await shell.run("echo $A $PWD", timeout=20)).output == "1 /usr\n"


@every
@pytest.mark.parametrize(
    "command",
    [
        "trap '' INT QUIT; while :; do :; done",
        "kill -STOP $$",
        "setsid sleep 1000 & kill -STOP $$",
    ],
)
async def test_what_ignores_every_key_is_killed_with_its_shell(place: Place, command: str) -> None:
    shell = await place.shell(grace=0.2)
    outcome = await shell.run(command.replace("1000", UNUSUAL), timeout=1)
    assert (outcome.cause, outcome.exit_code, outcome.state_preserved) == ("timeout", None, False)
    assert [pid for pid in everything() if f"sleep {UNUSUAL}" in words(pid)] == []
    assert place.sandbox.running() == []
    assert not await works(place, shell)


async def test_jobs_of_earlier_commands_outlive_a_timeout(shell: Shell) -> None:
    await shell.run("sleep 1000 &", timeout=20)
    assert (await shell.run("sleep 2000", timeout=1)).state_preserved
    assert "sleep 1000" in (await shell.run("jobs", timeout=20)).output


@every
async def test_closing_ends_a_running_command_and_every_job(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "go")
    running = asyncio.create_task(shell.run("sleep 1000 & echo begun >go; sleep 2000", timeout=None))
    assert await asyncio.to_thread((place.home / "go").read_bytes) == b"begun\n"
    await shell.aclose()
    outcome = await running
    assert (outcome.cause, outcome.state_preserved) == ("shell_exited", False)
    assert place.sandbox.running() == []
    await shell.aclose()


async def test_closing_before_the_last_output_was_read(
    shell: Shell, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client was told that the command had not run, and to send it again."""
    screen, process, closed = shell._terminals._screen, shell._process, asyncio.Event()
    screen.over.cancel()
    close = process.aclose

    async def close_first() -> None:
        await close()
        closed.set()

    async def read_late() -> None:
        await closed.wait()
        for _ in range(20):  # turns of the loop, in which the shell could drop its terminal
            await asyncio.sleep(0)
        await screen._read()

    monkeypatch.setattr(process, "aclose", close_first)

    screen.over = asyncio.create_task(read_late())
    os.mkfifo(place.home / "go")
    running = asyncio.create_task(shell.run("echo last; echo begun >go; sleep 2000", timeout=None))
    assert await asyncio.to_thread((place.home / "go").read_bytes) == b"begun\n"
    await shell.aclose()
    outcome = await running
    assert (outcome.output, outcome.cause, outcome.state_preserved) == ("last\n", "shell_exited", False)


async def test_a_cancelled_command_makes_the_shell_unusable(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "go")
    running = asyncio.create_task(shell.run("echo begun >go; sleep 1000", timeout=None))
    await asyncio.to_thread((place.home / "go").read_bytes)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not shell.alive
    assert not await works(place, shell)


async def test_the_users_own_file_is_read(place: Place) -> None:
    (place.home / ".bashrc").write_text("echo loud; alias mine='echo my alias'; PATH=/mine:$PATH; PS1=mine; false\n")
    shell = await place.shell()
    assert (await shell.run("mine; echo ${PATH%%:*} $?", timeout=20)).output == "my alias\n/mine 0\n"


@pytest.mark.parametrize(
    "rc", ["syntax (error", "set -u; echo $nope", "read x; cat", "return 3", "kill -INT $$", "set -o vi"]
)
async def test_a_users_file_that_fails_keeps_nobody_out(place: Place, rc: str) -> None:
    (place.home / ".bashrc").write_text(f"A=1\n{rc}\n")
    assert (await (await place.shell()).run("set +u; echo sane", timeout=20)).output == "sane\n"


@pytest.mark.parametrize(
    ("rc", "said"),
    [
        ("echo no shell today; exit 3", "ended at once with exit code 3, saying 'no shell today"),
        ("exec false", "ended at once with exit code 1"),
        ("kill -9 $$", "ended at once with signal 9"),
        ("while :; do :; done", "was not ready within 1 seconds"),
        ("sleep 1000", "was not ready within 1 seconds"),
    ],
)
async def test_a_users_file_that_keeps_the_shell_from_starting_is_skipped(
    place: Place, monkeypatch: pytest.MonkeyPatch, rc: str, said: str
) -> None:
    monkeypatch.setattr("kernelbridge.workspace.shell.start._READY_TIMEOUT", 1.0)
    (place.home / ".bashrc").write_text(rc)
    shell = await place.shell()
    output = (await shell.run("echo first", timeout=20)).output
    assert output.startswith(f"~/.bashrc was skipped: with it, the shell {said}")
    assert output.endswith("\nfirst\n")
    assert (await shell.run("echo second", timeout=20)).output == "second\n"


async def test_a_program_that_is_no_shell_is_named(place: Place) -> None:
    place.sandbox.facts = type(place.sandbox.facts)(
        uid=0, gid=0, env=place.sandbox.facts.env, python=place.sandbox.facts.python, kernelspecs={}, shell="/bin/false"
    )
    with pytest.raises(TerminalError, match="did not start: /bin/false ended at once with exit code 1"):
        await place.shell()


class DeafTerminal:
    """A terminal on which nothing is written."""

    path = "/dev/pts/0"

    def __init__(self, process: "DeafProcess") -> None:
        self._process = process

    async def read(self) -> bytes:
        return await self._process.read()

    async def write(self, data: bytes) -> None:
        await self._process.write(data)

    def only_for_writing(self) -> None:
        pass

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass

    def leave(self) -> None:
        pass


class DeafProcess:
    """A shell that takes what is typed and never says anything."""

    pid = 1
    id = ""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    async def read(self) -> bytes:
        await self._ended.wait()
        return b""

    async def write(self, data: bytes) -> None:
        pass

    def resize(self, rows: int, cols: int) -> None:
        pass

    async def signal(self, signum: int) -> None:
        pass

    async def moment(self) -> Moment:
        return Moment(0, 0)

    async def prune(self, since: Moment | None = None) -> None:
        pass

    async def kill(self) -> None:
        self._ended.set()

    async def wait(self) -> ExitStatus:
        await self._ended.wait()
        return ExitStatus(signal=9)

    async def aclose(self) -> None:
        self._ended.set()


class OutOfMemoryProcess(DeafProcess):
    """A shell that the kernel's out-of-memory killer ends when it begins a command."""

    async def write(self, data: bytes) -> None:
        nonce = re.search(rb"__kb_begin (\w+)", data)
        assert nonce is not None
        self._said = b"\x1b]133;C;" + nonce[1] + b"\x07half\x1b]133;"
        self._ended.set()

    async def read(self) -> bytes:
        await self._ended.wait()
        said, self._said = self._said, b""
        return said

    async def wait(self) -> ExitStatus:
        await self._ended.wait()
        return ExitStatus(signal=9, oom=True)


async def test_a_sandbox_that_is_gone_is_reported_as_such(place: Place) -> None:
    place.sandbox.client.end()
    with pytest.raises(SandboxError, match="The sandbox is gone"):
        await start_shell(place.sandbox, ShellSettings(max_output=1), {})


async def shell_of(process: DeafProcess, place: Place) -> Shell:
    terminal = DeafTerminal(process)
    settings = ShellSettings(max_output=100, grace=1)
    return Shell(place.sandbox, process, OpenTerminals(terminal, terminal), settings)


async def test_a_shell_that_does_not_answer_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelbridge.workspace.shell.shell.TAKE_TIMEOUT", 0.1)
    shell = await shell_of(DeafProcess(), place)
    with pytest.raises(TerminalError, match="took no command"):
        await shell.run("echo x", timeout=20)
    assert not shell.alive
    await shell.aclose()


async def test_running_out_of_memory_is_the_cause(place: Place) -> None:
    shell = await shell_of(OutOfMemoryProcess(), place)
    outcome = await shell.run("echo x", timeout=20)
    assert (outcome.output, outcome.cause, outcome.exit_code) == ("half", "out_of_memory", 137)
    await shell.aclose()
