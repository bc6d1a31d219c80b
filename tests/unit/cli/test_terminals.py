"""`kernelbridge shell` and `kernelbridge console` in this process: a thread is the person at the terminal."""

import io
import os
import pty
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kernelbridge import Client
from kernelbridge.cli.detaching import LEFT
from kernelbridge.cli.entry import main
from tests.unit.cli.conftest import Command, sessions

PROMPT = "# " if os.geteuid() == 0 else "$ "


class Person:
    """Reads a terminal, and types when it shows something."""

    def __init__(self, script: list[tuple[str, str]]) -> None:
        self.seen = ""
        self._script = script
        self._master, self._slave = pty.openpty()
        self.stdin, self.stdout = os.fdopen(self._slave), os.fdopen(os.dup(self._slave), "w")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def attributes(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        self.stdin.close()
        self.stdout.close()
        self._thread.join()
        os.close(self._master)

    def _run(self) -> None:
        script = list(self._script)
        unread = ""
        while True:
            try:
                new = os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # nobody has the terminal open any more
                return
            self.seen += new
            unread += new
            while script and script[0][0] in unread:
                unread = unread.partition(script[0][0])[2]
                os.write(self._master, script.pop(0)[1].encode())


@contextmanager
def person(monkeypatch: pytest.MonkeyPatch, *script: tuple[str, str]) -> Iterator[Person]:
    found = Person(list(script))
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdin", found.stdin)
        patched.setattr("sys.stdout", found.stdout)
        patched.setattr(os, "get_terminal_size", lambda _fd=1: os.terminal_size((61, 21)))
        try:
            yield found
        finally:
            found.close()


def test_a_shell_is_left_taken_up_again_and_ended(
    url: str, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["shell", "work", "--url", url, "--user", "ada"]
    with person(monkeypatch, (PROMPT, "stty size; echo le''ft\r"), ("left", "\r~d")) as first:
        before = first.attributes()
        assert main(words) == 0
        assert first.attributes() == before
    assert "21 61" in first.seen
    assert first.seen.endswith(LEFT)
    said = capsys.readouterr().err
    assert f"goes on for 1h. Take it up again with: kernelbridge shell work --url {url} --user ada\n" in said
    assert ("ada", "work") in sessions(command)
    with person(monkeypatch, ("left", "\rexit 3\r")):
        assert main(words) == 3
    assert ("ada", "work") not in sessions(command)


def test_a_session_that_somebody_else_opened_stays_open(
    url: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(url, user_id="bob") as client, client.session("theirs", linger=600) as session:
        session.sh("true")
        with person(monkeypatch, (PROMPT, "exit\r")):
            assert main(["shell", "theirs", "--user", "bob", "--terminal", "other"]) == 0
        assert ("bob", "theirs") in sessions(command)
        session.close(delete_files=True)


@pytest.mark.parametrize("name", ["shell", "console"])
def test_a_terminal_is_needed(command: Command, name: str) -> None:
    done = command(name)
    assert (done.code, "There is no terminal" in done.err) == (125, True)


class Screen(io.StringIO):
    """Stands for a terminal."""

    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, keys: str, *words: str) -> tuple[int, str]:
    """Return the exit code and the output of a console into which keys are typed."""
    shown = Screen()
    with (
        create_pipe_input() as pipe,
        create_app_session(input=pipe, output=DummyOutput()),
        monkeypatch.context() as own,
    ):
        own.setattr("sys.stdin", Screen())
        own.setattr("sys.stdout", shown)
        own.setenv("NO_COLOR", "1")
        pipe.send_text(keys)
        return main(["console", *words]), shown.getvalue()


def test_cells_are_run_and_their_values_and_errors_shown(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = "a = input('? ')\rtyped\rprint(a)\r\r6 * 7\rif a:\r    print('in')\r\r1 / 0\rexit\r"
    code, shown = typed(monkeypatch, keys, "cells", "--user", "ada")
    assert code == 0
    assert "session cells" in shown.splitlines()[0]
    lines = shown.splitlines()[2:]
    assert lines[:3] == ["typed", "Out[3]: 42", "in"]
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert ("ada", "cells") not in sessions(command)
    history = tmp_path / "state/kernelbridge/console_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "+6 * 7" in history.read_text()
    assert "+typed" not in history.read_text()


def test_a_kept_console_continues_with_its_variables_and_numbers(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("kept", "--user", "ada", "--keep")
    assert typed(monkeypatch, "a = 42\r\x04", *words)[0] == 0
    assert "The session kept stays open for 1h." in capsys.readouterr().err
    code, shown = typed(monkeypatch, "a\rquit()\r", *words)
    assert (code, shown.splitlines()[2:]) == (0, ["Out[2]: 42"])
    assert ("ada", "kept") in sessions(command)
