"""Background jobs in every kind of shell: whenever they end, the shell lives on with all that it has."""

import asyncio
import os
import select
import signal
from pathlib import Path

import pytest

from kernelbridge.workspace.shell.shell import Shell
from tests.unit.workspace.conftest import Place
from tests.unit.workspace.shell.test_shell import every, say


@pytest.fixture
async def shell(place: Place) -> Shell:
    """One with variables, a function and a directory to lose."""
    shell = await place.shell()
    os.mkfifo(place.home / "go")
    await say(shell, "A=kept; f() { echo f; }; mkdir sub; cd sub")
    return shell


async def alive(shell: Shell, place: Place) -> None:
    outcome = await shell.run("echo $A; f", timeout=20)
    assert (outcome.output, outcome.cwd, outcome.state_preserved) == ("kept\nf\n", f"{place.home}/sub", True)


async def start(shell: Shell, command: str) -> int:
    """Start a job; return its pid."""
    return int((await say(shell, f"{{ {command}; }} >/dev/null 2>&1 & echo $!")).split()[-1])


async def end(place: Place, pid: int) -> None:
    """Let a job that reads from `go` read, and wait until it has ended."""
    descriptor = os.pidfd_open(pid)
    gate = os.open(place.home / "go", os.O_RDWR)  # which waits for no reader
    try:
        os.write(gate, b"now\n")
        await ended(descriptor)
    finally:
        os.close(gate)


async def ended(descriptor: int) -> None:
    try:
        ready, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], 20)
        assert ready
    finally:
        os.close(descriptor)


@every
async def test_jobs_that_end_while_the_shell_is_idle(shell: Shell, place: Place) -> None:
    for _ in range(5):
        await end(place, await start(shell, "read x <../go"))
        await alive(shell, place)


@every
async def test_ten_jobs_that_end_at_once(shell: Shell, place: Place) -> None:
    pids = [await start(shell, "exec sleep 1000") for _ in range(10)]
    descriptors = [os.pidfd_open(pid) for pid in pids]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for descriptor in descriptors:
        await ended(descriptor)
    await alive(shell, place)
    assert await say(shell, f"wait {pids[0]}; echo $?") == "137\n"
    await say(shell, "jobs")  # here POSIX shells tell their ends
    assert await say(shell, "wait; jobs") == ""


@every
async def test_a_job_that_ends_while_a_command_runs(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "gone")
    gate = os.open(place.home / "gone", os.O_RDWR)  # before: the job's end would interrupt BusyBox while it opens it
    pid = await start(shell, "read x <../go")
    command = asyncio.create_task(shell.run("echo begun; read y <../gone; echo $y", timeout=20))
    await end(place, pid)
    os.write(gate, b"over\n")
    outcome = await command
    os.close(gate)
    assert outcome.output == "begun\nover\n"
    await alive(shell, place)


@every
async def test_the_status_of_a_job_that_ended_while_the_shell_was_idle(shell: Shell, place: Place) -> None:
    pid = await start(shell, "read x <../go; exit 7")
    await end(place, pid)
    assert await say(shell, f"[ $! = {pid} ]; echo $?; wait $!; echo $?") == "0\n7\n"
    await alive(shell, place)


@every
async def test_jobs_are_listed_while_they_run(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "begun")
    pid = await start(shell, ": >../begun; read x <../go")
    # A job of dash ignores SIGTERM, as the interactive shell that it is a copy of does, until it has begun.
    await say(shell, ": <../begun")
    assert "Running" in await say(shell, "jobs")
    assert str(pid) in await say(shell, "jobs -l")
    assert (await say(shell, "kill $!; wait $!; echo $?")).removeprefix("Terminated\n") == "143\n"
    assert "Running" not in await say(shell, "jobs")
    await alive(shell, place)


@every
async def test_a_trap_for_the_end_of_jobs(shell: Shell, place: Place) -> None:
    await say(shell, "trap 'C=told' CHLD")
    await end(place, await start(shell, "read x <../go"))
    assert await say(shell, "echo $C") == "told\n"
    await alive(shell, place)


@every
async def test_jobs_that_end_between_a_syntax_error_and_the_next_command(shell: Shell, place: Place) -> None:
    """Where the error has led the shell back to its prompt."""
    pid = await start(shell, "read x <../go")
    outcome = await shell.run("echo 'unclosed", timeout=20)
    assert (outcome.exit_code, outcome.state_preserved) != (0, False)
    await end(place, pid)
    await alive(shell, place)


@every
async def test_jobs_that_end_after_the_terminal_has_changed(shell: Shell, place: Place) -> None:
    """A job that writes keeps the terminal that it was started on; the shell goes to another."""
    pid = int((await say(shell, "{ read x <../go; echo late; } & echo $!")).split()[-1])
    await alive(shell, place)
    await end(place, pid)
    outcome = await shell.run("echo $A", timeout=20)
    assert outcome.output == "kept\n"
    late = outcome.late_output
    while not late:
        late = (await shell.run("true", timeout=20)).late_output
    assert late == "late\n"
    await alive(shell, place)


@every
async def test_what_a_job_writes_while_its_command_ends_comes_late(shell: Shell) -> None:
    """It writes on while the shell says that the command is over, and until somebody hears that."""
    lines = "".join(f"{number}\n" for number in range(1, 20_001))
    for _ in range(5):
        outcome = await shell.run("exec 3>&2 2>/dev/null; seq 20000 & exec 2>&3 3>&-", timeout=20)
        text = outcome.output
        assert outcome.late_output == ""
        while not text.endswith("\n20000\n"):
            text += (await shell.run("true", timeout=20)).late_output
        assert text == lines


@every
async def test_a_shell_calls_itself_by_its_name(shell: Shell, place: Place) -> None:
    outcome = await shell.run("no-such-program; echo $OLDPWD", timeout=20)
    assert Path(outcome.output.split(":")[0]).name in {"sh", "bash", "dash"}
    assert outcome.output.splitlines()[-1] == str(place.home)
