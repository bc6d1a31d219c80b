"""`kernelbridge console` at a terminal of the test's own: cells, completion, history, questions, Ctrl-C and Ctrl-D."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge import Client
from tests.client.person import Person
from tests.client.servers import PATIENCE, ServerProcess

FLAGS = {"max_linger": "1h"}

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def console(server: ServerProcess, user: str, *words: str, **environ: str) -> Person:
    # This terminal does not say where its cursor is.
    variables = {"PROMPT_TOOLKIT_NO_CPR": "1", **environ}
    return Person(server, "--user", user, *words, command="console", environ=variables)


def test_cells_of_several_lines_their_values_and_errors(server: ServerProcess, user: str) -> None:
    with console(server, user) as person:
        person.see("In [1]:")
        person.type("6 * 7\r")
        person.see("Out[1]: 42")
        person.see("In [2]:")
        person.type("def f(x):\r")
        person.see("...:")
        person.type("return 1 / x\r")  # the indent is there already
        person.see("...:")
        person.type("\r")
        person.see("In [3]:")
        person.type("f(0)\r")
        person.see("\x1b[")  # in colours
        person.see("ZeroDivisionError")
        person.see("In [4]:")
        person.type("print('on'); await __import__('asyncio').sleep(0, 'awaited')\r")
        person.see("Out[4]: 'awaited'")
        person.see("In [5]:")
        person.type("\x04")
        assert person.leave() == 0
    with Client(server.url, user_id=user) as client:
        assert client.sessions() == []


def test_names_are_completed_and_explained_by_the_interpreter(server: ServerProcess, user: str) -> None:
    with console(server, user) as person:
        person.see("In [1]:")
        person.type("a_long_name = 41\r")
        person.see("In [2]:")
        person.type("a_lon\t")
        person.see("g_name")
        person.type(" + 1\r")
        person.see("Out[2]: 42")
        person.see("In [3]:")
        person.type("len\x1b[Z")
        person.see("Return the number of items in a container.")
        person.type("\x03")  # drops the line
        person.see("In [3]:")
        person.type("exit\r")
        assert person.leave() == 0


def test_ctrl_c_interrupts_a_cell_and_the_variables_stay(server: ServerProcess, user: str) -> None:
    with console(server, user) as person:
        person.see("In [1]:")
        person.type("x = 7; print('be' + 'gun', flush=True); __import__('time').sleep(1000)\r")
        person.see("begun")
        person.type("\x03")
        person.see("KeyboardInterrupt")
        person.see("In [2]:")
        person.type("x\r")
        person.see("Out[2]: 7")
        person.see("In [3]:")
        person.type("\x04")
        assert person.leave() == 0


def test_a_cell_asks_and_its_question_can_be_interrupted(server: ServerProcess, user: str) -> None:
    with console(server, user) as person:
        person.see("In [1]:")
        person.type("'got ' + input('na' + 'me? ')\r")
        person.see("name?")
        person.type("Ann\r")
        person.see("Out[1]: 'got Ann'")
        person.see("In [2]:")
        person.type("import getpass; len(getpass.getpass('wo' + 'rd? '))\r")
        person.see("word?")
        person.type("s3cret\r")
        person.see("Out[2]: 6")
        assert "s3cret" not in person.all
        person.see("In [3]:")
        person.type("input('ag' + 'ain? ')\r")
        person.see("again?")
        person.type("\x03")
        person.see("KeyboardInterrupt")
        person.see("In [4]:")
        person.type("input('mo' + 're? ')\r")
        person.see("more?")
        person.type("\x04")
        person.see("EOFError")
        person.see("In [5]:")
        person.type("\x04")
        assert person.leave() == 0


def test_the_history_is_kept_for_the_user_alone(server: ServerProcess, user: str, tmp_path: Path) -> None:
    with console(server, user) as person:
        person.see("In [1]:")
        person.type("print('first ' 'time')\r")
        person.see("first time")
        person.see("In [2]:")
        person.type("\x04")
        assert person.leave() == 0
    history = tmp_path / "state" / "kernelbridge" / "console_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with console(server, user) as person:
        person.see("In [1]:")
        person.type("\x1b[A\r")
        person.see("first time")
        person.see("In [2]:")
        person.type("\x04")
        assert person.leave() == 0


def test_a_session_is_kept_if_wanted_and_taken_up(server: ServerProcess, user: str) -> None:
    with console(server, user, "work", "--keep") as person:
        person.see("In [1]:")
        person.type("x = 41\r")
        person.see("In [2]:")
        person.type("\x04")
        person.see("work stays open for 1h")
        assert person.leave() == 0
    with console(server, user, "work") as person:
        person.see("In [2]:")
        person.type("x + 1\r")
        person.see("Out[2]: 42")
        person.see("In [3]:")
        person.type("\x04")
        assert person.leave() == 0
    with Client(server.url, user_id=user) as client:
        client.session("work").close(delete_files=True)


def test_without_colours_and_with_pictures(server: ServerProcess, user: str) -> None:
    with console(server, user, NO_COLOR="1", KITTY_WINDOW_ID="1") as person:
        person.see("In [1]:")
        person.type("1 / 0\r")
        person.see("Traceback (most recent call last)")
        person.see("\nZeroDivisionError: division by zero")
        person.see("In [2]:")
        person.type(f"import base64, IPython.display as d; d.Image(base64.b64decode('{PNG}'))\r")
        person.see("\x1b_Ga=T,f=100,")
        person.see("In [3]:")
        person.type("\x04")
        assert person.leave() == 0


def test_without_a_terminal_it_says_what_to_use() -> None:
    command = [sys.executable, "-m", "kernelbridge", "console"]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=PATIENCE, env=os.environ
    )
    assert done.returncode == 125
    assert "kernelbridge run" in done.stderr
