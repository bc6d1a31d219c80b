"""`kernelbridge shell` at a terminal of the test's own: sizes, keys, leaving, coming back, what it leaves behind."""

import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge import Client
from tests.client.person import Person
from tests.client.servers import PATIENCE, ServerProcess, environment

FLAGS = {"max_linger": "10m"}
"""Less than the hour that commands ask for."""


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def _sessions_end(server: ServerProcess, user: str) -> Iterator[None]:
    with Client(server.url, user_id=user) as client:
        yield
        for session in client.sessions():
            client.session(session["sessionId"]).close(delete_files=True)


def modes(terminal: int) -> list[Any]:
    return termios.tcgetattr(terminal)[:4]


def test_the_size_is_set_when_it_opens_and_follows(server: ServerProcess, user: str) -> None:
    with Person(server, "--user", user, rows=33, cols=111) as person:
        person.see("$ ")
        person.type("stty size\r")
        person.see("33 111")
        person.type("until [ \"$(stty size)\" = '44 99' ]; do sleep 0.05; done; echo followed\r")
        person.set_size(44, 99)
        person.see("\rfollowed")
        person.type("exit 7\r")
        assert person.leave() == 7


@pytest.mark.usefixtures("_sessions_end")
def test_who_leaves_finds_what_runs_again(server: ServerProcess, user: str) -> None:
    with Person(server, "--user", user, "work") as person:
        person.see("$ ")
        person.type("x=41; (read line; echo got $line)\r")
        person.type("~d")
        person.see("goes on for 10m.")
        person.see("kernelbridge shell work")
        assert person.leave() == 0
    with Person(server, "--user", user, "work") as person:
        person.see("read line")  # what was shown before
        person.type("typed\r")
        person.see("got typed")
        person.type("echo $((x + 1))\rexit\r")
        person.see("42")
        assert person.leave() == 0
    with Client(server.url, user_id=user) as client:  # nobody wants it any more
        assert client.session("work").info()["state"] == "absent"


@pytest.mark.usefixtures("_sessions_end")
@pytest.mark.parametrize("others", ["before", "meanwhile"])
def test_a_session_that_somebody_else_wants_stays(server: ServerProcess, user: str, others: str) -> None:
    keep = [sys.executable, "-m", "kernelbridge", "run", "--user", user, "--session", "work", "--keep", "-c", "x = 1"]
    environ = environment(KERNELBRIDGE_URL=server.url)
    for step in ("before", "shell", "meanwhile", "exit"):
        if step == others:
            done = subprocess.run(keep, env=environ, capture_output=True, text=True, check=True, timeout=PATIENCE)
            assert "work stays open for 10m" in done.stderr
        elif step in {"shell", "exit"}:
            with Person(server, "--user", user, "work") as person:
                person.see("$ ")
                person.type("~d" if step == "shell" else "exit\r")
                assert person.leave() == 0
    with Client(server.url, user_id=user) as client:
        assert client.session("work").run("x").data["text/plain"] == "1"


def test_no_key_is_held_back(server: ServerProcess, user: str) -> None:
    with Person(server, "--user", user) as person:
        person.see("$ ")
        person.type("stty raw -echo; echo ready; dd bs=1 count=5 2>/dev/null | od -An -tx1; stty sane\r")
        person.see("ready")
        person.see("ready")
        person.type("\x10\x03\x1b\x10~")  # none of them begins a detach sequence that would wait for more
        person.see("10 03 1b 10 7e")
        person.type("exit\r")
        assert person.leave() == 0


@pytest.mark.usefixtures("_sessions_end")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(server: ServerProcess, user: str, signum: signal.Signals) -> None:
    with Person(server, "--user", user, "work") as person:
        before = modes(person.terminal)
        person.see("$ ")
        assert modes(person.terminal) != before
        os.kill(person.pid, signum)
        assert person.leave() == 128 + signum


def test_a_terminal_that_was_never_raw_is_not_touched(user: str, server: ServerProcess) -> None:
    with Person(server, "--user", user, "--url", "ws://localhost:1") as person:
        before = modes(person.terminal)
        person.see("Cannot connect to ws://localhost:1")
        assert modes(person.terminal) == before
        assert person.leave() == 125


def test_without_a_terminal_it_says_what_to_use() -> None:
    command = [sys.executable, "-m", "kernelbridge", "shell"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 125
    assert "kernelbridge run" in done.stderr


@pytest.mark.usefixtures("_sessions_end")
def test_replayed_questions_are_not_answered_again(server: ServerProcess, user: str) -> None:
    with Person(server, "--user", user, "work") as person:
        person.see("$ ")
        person.type(r"printf 'a\033[cb\n'" + "\r")
        person.see("a\x1b[cb")  # asked once: an emulator answers
        person.type("\r~d")
        person.leave()
    with Person(server, "--user", user, "work") as person:
        person.see("a\x18b")
        person.type("exit\r")
        assert person.leave() == 0
