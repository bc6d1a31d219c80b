"""`kernelbridge run` in this process, with a real server in a thread; and how it shows ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli.run import _finished, exit_code
from kernelbridge.cli.running import OutputScreen
from kernelbridge.client.results import Result
from tests.unit.cli.conftest import Command, sessions


@pytest.fixture
def run(command: Command) -> Command:
    """Run code in the module's session, whose kernel is started once."""
    return lambda *words, **more: command("run", "--user", "shared", "--session", "s", "--keep", *words, **more)


def test_output_goes_where_the_code_wrote_it(run: Command) -> None:
    done = run("-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (done.code, done.out) == (3, "out\n")
    assert done.err.splitlines() == ["err", "The session s stays open for 1h."]


def test_the_code_has_its_arguments_and_its_name(run: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import sys; print(sys.argv[1:]); 1 / 0")
    done = run(str(file), "-x", "b c")
    assert (done.code, done.out) == (1, "['-x', 'b c']\n")
    assert "mine.py" in done.err
    assert "ZeroDivisionError: division by zero" in done.err
    assert run("-c", "import sys; print(sys.argv)", "a").out == "['-c', 'a']\n"
    assert run("-", typed="import sys; print(sys.argv)").out == "['-']\n"


def test_questions_are_answered_with_lines_of_standard_input(run: Command) -> None:
    code = "print([input(), input()])\ntry:\n  input()\nexcept EOFError:\n  print('end')"
    assert run("-c", code, typed="a\nb").out == "['a', 'b']\nend\n"


def test_a_time_limit_is_passed_on(run: Command) -> None:
    done = run("--timeout", "200ms", "-c", "while True: pass")
    assert (done.code, "the code was ended (timeout)" in done.err) == (124, True)


def test_the_whole_result_is_printed_as_json(run: Command) -> None:
    done = run("--json", "-c", "print('text'); 6 * 7")
    found = json.loads(done.out)
    assert (found["stdout"], found["results"][0]["data"]["text/plain"]) == ("text\n", "42")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "There is nothing to run"),
        (("/nowhere.py",), "/nowhere.py cannot be read: No such file"),
        (("BINARY",), "it is not UTF-8"),
        (("--timeout", "soon", "-c", "1"), "'soon' is not a duration"),
        (("--no-isolation", "-c", "1"), "--no-isolation is for a server of the command's own"),
    ],
)
def test_what_cannot_be_run_is_refused(command: Command, tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    done = command("run", *(str(tmp_path / "binary") if word == "BINARY" else word for word in words))
    assert (done.code, why in done.err, done.out) == (2, True, "")


def test_without_a_name_nothing_is_left_and_with_one_the_files_are(command: Command) -> None:
    assert command("run", "--user", "ada", "-c", "open('f', 'w').close()").code == 0
    assert not any(user == "ada" for user, _ in sessions(command))
    named = ("run", "--user", "ada", "--session", "named")
    assert command(*named, "-c", "open('f', 'w').close(); a = 1").code == 0
    assert not any(user == "ada" for user, _ in sessions(command))
    done = command(*named, "--keep", "-c", "import os; print(os.listdir()); a")
    assert "'f'" in done.out
    assert "NameError" in done.err
    assert ("ada", "named") in sessions(command)
    assert command(*named, "-c", "1").code == 0  # it was open already, so it stays
    assert ("ada", "named") in sessions(command)


def test_a_session_that_is_not_kept_is_closed_when_the_code_fails(command: Command) -> None:
    assert command("run", "--user", "bob", "-c", "1 / 0").code == 1
    assert not any(user == "bob" for user, _ in sessions(command))


def test_a_server_that_is_away_has_a_code_of_its_own(command: Command) -> None:
    done = command("run", "--url", "ws://127.0.0.1:1", "-c", "1")
    assert (done.code, "Cannot connect to ws://127.0.0.1:1" in done.err) == (125, True)
    done = command("run", "--url", "nonsense", "-c", "1")
    assert (done.code, "There is no server at this address" in done.err) == (2, True)


# -- ends ------------------------------------------------------------------------------


def result(**fields: Any) -> Result:
    return Result({"success": False, "output": "", **fields})


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (result(success=True), 0),
        (result(error="ValueError: x"), 1),
        (result(error="SystemExit: "), 0),
        (result(error="SystemExit"), 0),
        (result(error="SystemExit: None"), 0),
        (result(error="SystemExit: 3"), 3),
        (result(error="SystemExit: -1"), 255),
        (result(error="SystemExit: 256"), 0),
        (result(error="SystemExit: in words"), 1),
        (result(cause="timeout"), 124),
        (result(cause="interrupted"), 130),
        (result(error="KeyboardInterrupt: "), 130),
        (result(cause="out_of_memory"), 137),
        (result(cause="kernel_died", signal="SIGSEGV"), 139),
        (result(cause="kernel_died", signal="SIGRTMIN+99"), 137),
        (result(cause="kernel_died", exitCode=7), 7),
    ],
)
def test_the_exit_code_is_that_of_a_program(ended: Result, code: int) -> None:
    assert exit_code(ended) == code


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (result(success=True), ""),
        (result(error="ValueError: x"), "ValueError: x\n"),
        (result(error="ValueError: x", traceback="Traceback\n"), "Traceback\n"),
        (result(error="SystemExit: 3"), ""),
        (result(error="SystemExit: None"), ""),
        (result(error="SystemExit: in words"), "in words\n"),
        (result(success=True, lateOutput="late\n"), "late\n"),
        (result(error="killed", cause="kernel_died"), "killed\nkernelbridge: the code was ended (kernel_died)\n"),
        (result(success=True, truncated={"bytes": 1}), 'kernelbridge: output is missing: {"bytes": 1}\n'),
        (result(success=True, hint="less"), "kernelbridge: less\n"),
    ],
)
def test_the_end_of_the_code_is_shown(ended: Result, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    _finished(ended, OutputScreen(), as_json=False)
    assert capsys.readouterr() == ("", said)
