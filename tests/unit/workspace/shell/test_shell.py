"""Commands in a real shell on a real terminal: output, exit codes, directories, and what lasts."""

import asyncio
import os
from pathlib import Path

import pytest

from kernelbridge.errors import BadRequest, TerminalError
from kernelbridge.workspace.shell.script import COMMAND
from kernelbridge.workspace.shell.shell import Shell
from tests.unit.workspace.conftest import Place

every = pytest.mark.parametrize("place", ["bash", "dash", "busybox"], indirect=True)


async def say(shell: Shell, command: str) -> str:
    outcome = await shell.run(command, timeout=20)
    assert outcome.cause is None, outcome
    return outcome.output


@every
async def test_output_exit_code_and_directory(shell: Shell, place: Place) -> None:
    outcome = await shell.run("echo out; echo err >&2; (exit 7)", timeout=20)
    assert (outcome.output, outcome.exit_code, outcome.cwd) == ("out\nerr\n", 7, str(place.home))
    assert (outcome.cause, outcome.truncated, outcome.state_preserved) == (None, None, True)
    assert outcome.duration_ms > 0


@every
async def test_state_lasts(shell: Shell, place: Place) -> None:
    await say(shell, "mkdir -p sub && cd sub; export A=1; B=2; f() { echo f$1; }; alias hello='echo hi'; umask 027")
    assert (
        await say(shell, "pwd; sh -c 'echo $A'; echo $B; f 3; hello; umask")
        == f"{place.home}/sub\n1\n2\nf3\nhi\n0027\n"
    )
    await say(shell, "mkdir -p bin; echo 'PATH=/venv/bin:$PATH; PS1=\"(venv) $PS1\"; venv=yes' > activate")
    outcome = await shell.run(". ./activate", timeout=20)
    assert (outcome.output, outcome.cwd) == ("", f"{place.home}/sub")
    assert await say(shell, "echo $venv $PATH") == f"yes /venv/bin:{place.sandbox.facts.env['PATH']}\n"


@every
async def test_the_last_status_is_the_last_commands(shell: Shell) -> None:
    await say(shell, "true")
    assert await say(shell, "echo $?") == "0\n"
    await say(shell, "(exit 42)")
    assert await say(shell, "echo $?; echo $?") == "42\n0\n"


async def test_declare_at_the_top_level_is_global(shell: Shell) -> None:
    await say(shell, "declare -a list=(1 2 3); declare -i number=5")
    assert await say(shell, 'echo "${list[@]}" $number') == "1 2 3 5\n"


@every
@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("", ""),
        ("   ", ""),
        ("# a comment", ""),
        ("echo one\necho two\n\n\necho three\n", "one\ntwo\nthree\n"),
        ("cat <<'EOF'\n$not `this` \"quoted\" \\n\nEOF\necho end", '$not `this` "quoted" \\n\nend\n'),
        ("for i in 1 2; do\n  echo $i\ndone", "1\n2\n"),
        ("printf '%s\\n' 'single \"double\" \\back' \"$((1 + 1))\"", 'single "double" \\back\n2\n'),
        ("echo a \\\n b", "a b\n"),
        ("printf '%s\\n' \"$(printf 'x%.0s' 1 2 3)\"", "xxx\n"),
        ("echo ü 漢字 🎉", "ü 漢字 🎉\n"),
        ("printf 'no end'", "no end"),
        ("echo '!!' '!x' '^a^b'", "!! !x ^a^b\n"),
        ("echo \x03\x04\x1a\x15\x7f\x12 | od -An -c", " 003 004 032 025 177 022  \\n\n"),
        ("printf '\\377\\n'", "\ufffd\n"),
        ("printf 'a\\r\\nb\\tc\\rB\\n'", "a\nB\tc\n"),
        ("printf '\\033[31mred\\033[0m\\n'", "red\n"),
        ("printf '10%%\\r100%%\\n'", "100%\n"),
        ('cat; read x; echo "[$x]"', "[]\n"),
        ("echo $TERM $PAGER $NO_COLOR", "dumb cat 1\n"),
        ("test -t 1 && test -t 2 && echo terminal", "terminal\n"),
        ("echo $-  | tr -cd i", "i"),
    ],
)  # fmt: skip
async def test_any_text_is_a_command(shell: Shell, command: str, output: str) -> None:
    assert await say(shell, command) == output
    assert await say(shell, "echo sane") == "sane\n"


@every
async def test_a_command_longer_than_a_terminal_line(shell: Shell) -> None:
    text = "x" * 300_000
    assert await say(shell, f"echo '{text}' | wc -c") == "300001\n"
    assert await say(shell, "\n".join(f"a{n}={n}" for n in range(3000)) + "\necho $a2999") == "2999\n"


@every
@pytest.mark.parametrize(
    "command", ["echo 'unclosed", 'echo "unclosed', "if true; then echo x", "echo $(", "for", "echo x; )", "f() {"]
)
async def test_a_syntax_error_is_an_answer(shell: Shell, command: str) -> None:
    outcome = await shell.run(command, timeout=20)
    assert outcome.exit_code not in {0, None}
    assert "unexpected" in outcome.output or "syntax error" in outcome.output.lower()
    assert outcome.state_preserved
    assert await say(shell, "echo sane") == "sane\n"


@every
async def test_a_program_that_is_not_there(shell: Shell) -> None:
    outcome = await shell.run("no-such-program", timeout=20)
    assert outcome.exit_code == 127
    assert "not found" in outcome.output


@every
@pytest.mark.parametrize(
    "name", ["a b", "'", '"', "$x`y`", "new\nline", "漢字", "\x1b]133;D;0;\x07", ";;", "\\", "x" * 200]
)
async def test_any_directory_is_reported(shell: Shell, place: Place, name: str) -> None:
    (place.home / name).mkdir()
    (place.home / "go").symlink_to(name)
    assert (
        await shell.run('cd "$(readlink go; echo x)" 2>/dev/null || cd -P go', timeout=20)
    ).cwd == f"{place.home}/{name}"


async def test_a_directory_that_is_not_utf8(shell: Shell, place: Place) -> None:
    os.mkdir(os.fsencode(place.home) + b"/\xff")  # noqa: PTH102 - a Path cannot be bytes
    assert (await shell.run("cd *", timeout=20)).cwd == f"{place.home}/\ufffd"


@every
async def test_background_jobs_do_not_disturb(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "go")
    os.mkfifo(place.home / "gone")
    await say(shell, "{ read x <go; echo noise; head -c 300000 /dev/zero | tr '\\0' n; echo bye >gone; } &")
    assert await say(shell, "echo quiet") == "quiet\n"
    # It writes between two commands more than a terminal holds, and nobody but the shell's reader takes it.
    await asyncio.to_thread((place.home / "go").write_bytes, b"now\n")
    assert await asyncio.to_thread((place.home / "gone").read_bytes) == b"bye\n"
    assert await say(shell, "wait; echo quiet") == "quiet\n"


async def test_job_control_works(shell: Shell) -> None:
    assert "fg" not in await say(shell, "sleep 1000 & jobs %1 >/dev/null && echo started")
    assert await say(shell, "kill %1; wait %1; echo $?") != ""
    assert await say(shell, "jobs") == ""


async def test_nothing_is_kept_in_a_history(shell: Shell, place: Place) -> None:
    await say(shell, "echo one")
    assert await say(shell, "history; echo ${HISTFILE-unset}") == "unset\n"
    assert (await shell.run("exit", timeout=20)).cause == "shell_exited"
    assert list(place.home.iterdir()) == []


async def test_the_path_of_the_sandbox_survives_the_start(shell: Shell) -> None:
    assert (await say(shell, "echo $PATH")).startswith("/opt/sandbox/bin:")


async def test_the_callers_environment_is_laid_over(place: Place) -> None:
    shell = await place.shell(env={"PAGER": "more", "EXTRA": "a b'c"})
    assert await say(shell, 'echo "$PAGER" "$EXTRA" "${ENV-none}"') == "more a b'c none\n"


@every
async def test_long_output_keeps_head_and_tail(place: Place) -> None:
    shell = await place.shell(max_output=10_000)
    outcome = await shell.run("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", timeout=20)
    total = sum(len(f"line {n}\n") for n in range(20_000))
    assert outcome.truncated is not None
    left_out, at = outcome.truncated["bytes"], outcome.truncated["at"]
    assert left_out == total - 10_000 // 4
    assert outcome.truncated["kept"] == "head and tail"
    assert outcome.output[:at].startswith("line 0\nline 1\n")
    assert outcome.output[at:].endswith("line 19998\nline 19999\n")
    assert len(outcome.output) < 10_000
    assert await say(shell, "echo sane") == "sane\n"


async def test_large_output_is_complete(place: Place) -> None:
    shell = await place.shell(max_output=32 << 20)
    output = await say(shell, "head -c 8000000 /dev/zero | tr '\\0' x | fold -w 79; echo")
    assert output == ("x" * 79 + "\n") * (8_000_000 // 79) + "x" * (8_000_000 % 79) + "\n"


@pytest.mark.parametrize(("command", "field"), [("echo \0", "command"), ("echo \ud800", "command")])
async def test_text_that_no_shell_takes(shell: Shell, command: str, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await shell.run(command, timeout=20)
    assert caught.value.field == field
    assert await say(shell, "echo sane") == "sane\n"


async def test_one_command_at_a_time(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "go")
    first = asyncio.create_task(shell.run("cat go", timeout=20))
    writer = await asyncio.to_thread(os.open, place.home / "go", os.O_WRONLY)
    with pytest.raises(AssertionError, match="one command at a time"):
        await shell.run("echo second", timeout=20)
    os.write(writer, b"first")
    os.close(writer)
    assert (await first).output == "first"


async def test_a_command_is_a_file_of_the_bridge(shell: Shell, place: Place) -> None:
    command = f"stat -c '%a %s' '{place.sandbox.shared.host.parent}'/with*/{COMMAND}"
    outcome = await shell.run(command, timeout=20)
    assert outcome.output.split() == ["644", str(len(command) + 1)]


async def test_a_command_that_cannot_be_handed_over_is_answered(place: Place, tmp_path: Path) -> None:
    shell = await place.shell()
    place.sandbox.shared.host.rename(tmp_path / "elsewhere")
    with pytest.raises(TerminalError, match="could not be handed over: the sandbox is gone"):
        await shell.run("echo x", timeout=20)
    (tmp_path / "elsewhere").rename(place.sandbox.shared.host)


async def test_bars_are_drawn_in_place(shell: Shell) -> None:
    command = r"printf 'one wait\ntwo wait\n\033[2A\rone done\033[1B\rtwo done\033[1B\rall\n'"
    assert await say(shell, command) == "one done\ntwo done\nall\n"


async def test_a_shells_last_word_alone_is_left_out_whatever_else_says_it(place: Place) -> None:
    """Looking for it was quadratic in the number of lines that say the same."""
    shell = await place.shell()
    outcome = await shell.run("yes exit | head -n 200000; exit", timeout=60)
    assert (outcome.output, outcome.cause) == ("exit\n" * 200_000, "shell_exited")
