"""Completion: the scripts, and names of sessions, in a real bash and as zsh and fish ask for them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kernelbridge import Client
from kernelbridge.cli import completion
from kernelbridge.cli.entry import commands
from tests.client.servers import PATIENCE, ServerProcess, environment

PROGRAM = Path(sys.executable).with_name("kernelbridge")


@pytest.fixture(scope="module")
def script() -> str:
    return subprocess.run(
        [PROGRAM, "completion", "bash"], capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout


@pytest.fixture
def variables(server: ServerProcess, script: str) -> dict[str, str]:
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    return environment(KERNELBRIDGE_URL=server.url, PATH=path, COMPLETION=script)


@pytest.fixture
def _work(server: ServerProcess, user: str) -> Iterator[None]:
    with Client(server.url, user_id=user) as client:
        client.session("work").files.write("f", b"x")
        yield
        client.session("work").close(delete_files=True)


def in_bash(words: list[str], environ: dict[str, str]) -> list[str]:
    script = """
        eval "$COMPLETION"
        COMP_WORDS=(kernelbridge "$@"); COMP_CWORD=$#
        _kernelbridge_completion kernelbridge 2>&1
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "compopt" not in line and line]


@pytest.mark.usefixtures("_work")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sh"], ["shell"]),
        (["shell", "--term"], ["--terminal"]),
        (["shell", "--user", "{user}", "wo"], ["work"]),
        (["console", "--user", "{user}", ""], ["work"]),
        (["run", "--user", "{user}", "--session", "w"], ["work"]),
        (["cp", "--user", "{user}", "w"], ["work:"]),
        (["shell", "--user", "{user}", "x"], []),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_in_bash(variables: dict[str, str], user: str, words: list[str], found: list[str]) -> None:
    assert in_bash([word.format(user=user) for word in words], variables) == found


@pytest.mark.usefixtures("_work")
@pytest.mark.parametrize(("shell", "expected"), [("zsh", "plain\nwork\n_\n"), ("fish", "plain,work\n")])
def test_as_other_shells_ask(variables: dict[str, str], user: str, shell: str, expected: str) -> None:
    script = subprocess.run(
        [PROGRAM, "completion", shell], env=variables, capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
    assert f"_KERNELBRIDGE_COMPLETE={shell}_complete" in script
    words = f"kernelbridge shell --user {user} wo"
    asked = {"COMP_WORDS": words, "COMP_CWORD": "4" if shell == "zsh" else "wo"}
    done = subprocess.run(
        [PROGRAM],
        env={**variables, **asked, "_KERNELBRIDGE_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr) == (expected, "")


def test_open_sessions_of_all_users_are_completed_for_an_administrator(
    server: ServerProcess, variables: dict[str, str], user: str
) -> None:
    with Client(server.url, user_id=user) as client, client.session(f"theirs-{user}") as session:
        session.sh("true")
        http = {**variables, "KERNELBRIDGE_URL": server.url.replace("ws", "http", 1).removesuffix("/ws")}
        assert in_bash(["kill", f"theirs-{user[:4]}"], http) == [f"theirs-{user}"]
        session.close(delete_files=True)


@pytest.mark.parametrize("fault", ["away", "frozen", "wrong address"])
def test_without_an_answer_there_are_no_names(server: ServerProcess, variables: dict[str, str], fault: str) -> None:
    url = {"away": "ws://localhost:1", "frozen": server.url, "wrong address": "nothing"}[fault]
    if fault == "frozen":
        server.freeze()
    try:
        assert in_bash(["shell", "w"], {**variables, "KERNELBRIDGE_URL": url}) == []
    finally:
        server.thaw()


def test_what_no_session_can_be_called_never_reaches_the_shell() -> None:
    names = ["work", "$(touch x)", "a b", "*", "\x1b[c", "", "x\n"]
    assert completion._named(lambda _: names, click.Context(commands)) == ["work"]


def test_files_are_left_to_the_shell(variables: dict[str, str]) -> None:
    asked = {"COMP_WORDS": "kernelbridge run pro", "COMP_CWORD": "2", "_KERNELBRIDGE_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [PROGRAM], env={**variables, **asked}, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.stdout == "file,pro\n"
