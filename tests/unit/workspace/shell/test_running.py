"""What can be seen and done of a command while it runs."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.jupyter.bounded import Spilled
from kernelbridge.runtimes.contract import Moment, Terminal
from kernelbridge.workspace.interrupt_progress import Step
from kernelbridge.workspace.shell.shell import Shell
from tests.unit.workspace.conftest import Place
from tests.unit.workspace.shell.test_hostile import UNUSUAL, everything, words

every = pytest.mark.parametrize("place", ["bash", "dash", "busybox"], indirect=True)


class Heard:
    """Listens to one command."""

    def __init__(self) -> None:
        self.text = ""
        self.steps: list[tuple[Step, bool]] = []
        self._more = asyncio.Event()

    def __call__(self, text: str) -> None:
        self.text += text
        self._more.set()

    def step(self, step: Step, /, *, done: bool) -> None:
        self.steps.append((step, done))

    async def until(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.text:
                self._more.clear()
                await self._more.wait()


@every
async def test_output_is_heard_while_the_command_runs(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "go")
    heard = Heard()
    running = asyncio.create_task(shell.run("printf 'a\\033[1mb\\nü'; read x <go; echo", timeout=20, listen=heard))
    await heard.until("ü")
    assert heard.text == "a\x1b[1mb\nü"
    await asyncio.to_thread((place.home / "go").write_bytes, b"x\n")
    assert (await running).output == "ab\nü\n"
    assert heard.text == "a\x1b[1mb\nü\n"


@pytest.mark.parametrize("place", ["bash", "dash", "busybox", "sh"], indirect=True)
async def test_an_interrupt_ends_the_command_and_what_it_started(place: Place) -> None:
    shell = await place.shell(grace=5.0)
    await shell.run("A=1", timeout=20)
    heard = Heard()
    running = asyncio.create_task(
        shell.run(
            f"setsid sleep {UNUSUAL} & sh -c 'echo go; exec sleep 1000'; echo not reached", timeout=None, listen=heard
        )
    )
    await heard.until("go")
    assert await shell.interrupt(heard.step)
    outcome = await running
    assert heard.steps == [("sigint", True)]
    assert (outcome.cause, outcome.exit_code, outcome.state_preserved) == ("interrupted", 130, True)
    assert "not reached" not in outcome.output
    assert place.sandbox.running() == [place.sandbox.processes[-1].pid]
    assert [pid for pid in everything() if f"sleep {UNUSUAL}" in words(pid)] == []
    assert (await shell.run("echo $A", timeout=20)).output == "1\n"


@every
async def test_each_step_of_an_interrupt_is_told(place: Place) -> None:
    shell = await place.shell(grace=0.3)
    heard = Heard()
    running = asyncio.create_task(
        shell.run("sh -c 'trap \"\" INT; echo go; while :; do :; done'; echo not reached", timeout=None, listen=heard)
    )
    await heard.until("go")
    assert await shell.interrupt(heard.step)
    assert heard.steps == [("sigint", False), ("process_group", True)]
    assert "not reached" not in (await running).output
    heard = Heard()
    running = asyncio.create_task(shell.run("trap '' INT; echo go; while :; do :; done", timeout=None, listen=heard))
    await heard.until("go")
    assert await shell.interrupt(heard.step)
    assert heard.steps == [("sigint", False), ("process_group", False), ("kill", False)]
    outcome = await running
    assert (outcome.cause, outcome.exit_code, outcome.state_preserved) == ("interrupted", None, False)
    assert not shell.alive


async def test_an_interrupt_of_nothing_does_nothing(shell: Shell) -> None:
    heard = Heard()
    assert not await shell.interrupt(heard.step)
    assert heard.steps == []
    assert (await shell.run("echo x", timeout=20)).output == "x\n"


async def test_an_interrupt_of_a_command_that_is_not_typed_yet_costs_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox may take its time to say what time it is there."""
    shell, told = await place.shell(grace=0.3), asyncio.Event()
    process = place.sandbox.processes[-1]
    moment = process.moment

    async def slowly() -> Moment:
        await told.wait()
        return await moment()

    await shell.run("A=1", timeout=20)
    with monkeypatch.context() as patched:
        patched.setattr(process, "moment", slowly)
        heard = Heard()
        running = asyncio.create_task(shell.run("echo not reached", timeout=None))
        await asyncio.sleep(0)  # its turn: it goes on to ask
        assert await shell.interrupt(heard.step)
        told.set()
        outcome = await running
    assert heard.steps == [("sigint", True)]
    assert (outcome.cause, outcome.exit_code, outcome.state_preserved) == ("interrupted", 130, True)
    assert outcome.output == outcome.late_output == ""
    outcome = await shell.run("echo $A", timeout=20)
    assert (outcome.output, outcome.late_output) == ("1\n", "")


async def test_two_interrupts_of_one_command_are_one(place: Place) -> None:
    shell = await place.shell(grace=5.0)
    heard = Heard()
    running = asyncio.create_task(shell.run("sh -c 'echo go; exec sleep 1000'", timeout=None, listen=heard))
    await heard.until("go")
    assert sorted(await asyncio.gather(*(shell.interrupt(heard.step) for _ in range(3)))) == [False, False, True]
    assert heard.steps == [("sigint", True)]
    assert (await running).cause == "interrupted"


@every
async def test_a_job_keeps_its_terminal_and_its_output_comes_late(shell: Shell, place: Place) -> None:
    os.mkfifo(place.home / "go")
    os.mkfifo(place.home / "gone")
    outcome = await shell.run("{ read x <go; echo late; echo x >gone; } & echo now", timeout=20)
    assert "now\n" in outcome.output
    outcome = await shell.run("echo x >go; read y <gone; echo mine", timeout=20)
    assert outcome.output == "mine\n"
    late = outcome.late_output
    while not late:
        late = (await shell.run("true", timeout=20)).late_output
    assert late == "late\n"
    assert (await shell.run("true", timeout=20)).late_output == ""
    assert len(place.sandbox.processes) == 1  # a terminal costs none


def terminals() -> int:
    """How many of this process's descriptors are the bridge's end of a terminal."""
    return sum(path.readlink().name == "ptmx" for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


async def test_the_terminal_of_a_job_is_closed_when_it_has_ended(shell: Shell) -> None:
    await shell.run("sleep 1000 &", timeout=20)
    await shell.run("kill $!; wait", timeout=20)  # the first terminal, which the shell reads from, stays open
    before = terminals()
    for _ in range(12):
        await shell.run("sleep 0.01 &", timeout=20)
        await shell.run("wait", timeout=20)
    async with asyncio.timeout(20):
        while terminals() > before:
            await shell.run("true", timeout=20)


async def test_where_no_terminal_can_be_opened_jobs_share_it(
    shell: Shell, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> Terminal:
        raise SandboxError("A terminal cannot be opened in the sandbox", "there is none left")

    with monkeypatch.context() as patched:
        patched.setattr(place.sandbox, "open_terminal", none_left)
        await shell.run("sleep 1000 &", timeout=20)
        assert (await shell.run("echo x", timeout=20)).output == "x\n"


@every
async def test_a_shell_has_another_terminal_as_soon_as_a_job_keeps_its_own(shell: Shell) -> None:
    before = shell.state
    await shell.run("sleep 1000 &", timeout=20)
    after = shell.state
    assert after.keys == before.keys == before.screen
    assert after.screen not in {before.screen, *after.jobs}
    await shell.run("true", timeout=20)
    assert shell.state == after


async def test_where_many_jobs_keep_terminals_the_last_ones_share_it_with_the_commands(shell: Shell) -> None:
    for _ in range(12):
        await shell.run("sleep 1000 &", timeout=20)
    assert len(shell.state.jobs) == 7
    assert (await shell.run("echo x", timeout=20)).output == "x\n"


class KeptSpill:
    """Takes what is too much."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def begin(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def write(self, text: str) -> None:
        self.texts.append(text)

    def discard(self) -> None:
        self.texts = ["discarded"]

    async def finish(self) -> Spilled:
        return Spilled("there", complete=True)


async def test_what_is_too_much_is_elsewhere(place: Place) -> None:
    kept = KeptSpill()
    shell = await place.shell(max_output=10_000, spill=lambda: kept)
    outcome = await shell.run("seq 10000", timeout=20)
    assert outcome.truncated is not None
    assert (outcome.truncated["file"], outcome.truncated["fileComplete"]) == ("there", True)
    assert "".join(kept.texts) == "".join(f"{n}\n" for n in range(1, 10_001))


@pytest.mark.parametrize(
    "code", ["printf '\\033[5;5Hx'; sleep 1000", "printf '\\033[?1049h'; while :; do echo; sleep 0.1; done"]
)
async def test_a_program_that_paints_and_waits_is_ended_with_a_hint(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr("kernelbridge.workspace.shell.shell._SCREEN_PATIENCE", 0.5)
    outcome = await shell.run(code, timeout=20)
    assert (outcome.cause, outcome.exit_code, outcome.state_preserved) == (None, 130, True)
    assert "open_terminal" in (outcome.hint or "")
    assert (await shell.run("echo sane", timeout=20)).hint is None


@pytest.mark.parametrize(
    "code",
    [
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do printf '\\033[5;5H'$i; sleep 0.2; done",
        "printf '\\033[2J\\033[1;1H'; sleep 2.5; echo it only cleared the screen",
    ],
)
async def test_a_program_that_paints_and_goes_on_is_let_be(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr("kernelbridge.workspace.shell.shell._SCREEN_PATIENCE", 1.0)
    outcome = await shell.run(code, timeout=20)
    assert (outcome.exit_code, outcome.hint) == (0, None)
