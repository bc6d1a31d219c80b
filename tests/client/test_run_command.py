"""`kernelbridge run`, as a shell uses it: streams, exit codes, signals, pipes, and a server of its own."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte
import pytest

from kernelbridge import Client
from tests.client.person import Person
from tests.client.servers import PATIENCE, ServerProcess, environment

FLAGS = {"max_linger": "1h"}

Run = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = (sys.executable, "-m", "kernelbridge", "run")


@pytest.fixture
def to_server(server: ServerProcess) -> dict[str, str]:
    return environment(KERNELBRIDGE_URL=server.url)


@pytest.fixture
def run(to_server: dict[str, str], user: str) -> Run:
    def run(*arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, "--user", user, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=to_server,
            cwd=cwd,
        )

    return run


@contextmanager
def running(environ: dict[str, str], *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, **more
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_output_goes_where_the_code_wrote_it_and_values_are_shown(run: Run) -> None:
    done = run("-c", "import sys; print('out'); print('err', file=sys.stderr); 6 * 7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n42\n", "err\n")


def test_a_file_with_arguments(run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys\nprint(sys.argv, __name__)\n1 / 0\n")
    done = run("program.py", "a", "--keep", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "['program.py', 'a', '--keep'] __main__\n")
    assert 'File "program.py", line 3' in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_code_comes_from_standard_input(run: Run) -> None:
    assert run("-", stdin="print(1)\nprint(2)").stdout == "1\n2\n"


def test_the_code_reads_standard_input_up_to_its_end(run: Run) -> None:
    code = "print(input('? '))\ntry: input()\nexcept EOFError: print('end')"
    done = run("-c", code, stdin="typed\n")
    assert (done.returncode, done.stdout) == (0, "? typed\nend\n")


def test_a_question_that_the_code_gives_up_takes_no_line(to_server: dict[str, str], user: str) -> None:
    program = """
import signal
def give_up(*_): raise TimeoutError
signal.signal(signal.SIGALRM, give_up)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try: input("first? ")
except TimeoutError: pass
print("got", input("second? "))
"""
    with running(to_server, "--user", user, "-c", program, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        shown = ""
        while not shown.endswith("second? "):
            shown += process.stdout.read(1)
        process.stdin.write("typed\n")
        process.stdin.flush()
        assert process.stdout.read() == "got typed\n"
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit(-1)", 255, ""),
        ("import sys; sys.exit('no data')", 1, "no data\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139, "(kernel_died)"),
        ("import os; os._exit(7)", 7, "(kernel_died)"),
    ],
)
def test_the_exit_code_is_that_of_the_code(run: Run, code: str, expected: int, said: str) -> None:
    done = run("-c", code)
    assert done.returncode == expected
    assert said in done.stderr if said else not done.stderr


def test_code_that_runs_too_long_is_ended(run: Run) -> None:
    done = run("--timeout", "100ms", "-c", "while True: pass")
    assert (done.returncode, "(timeout)" in done.stderr) == (124, True)


@pytest.mark.parametrize(
    ("then", "output", "code"), [("raise", "", 130), ("print('saved')", "saved\n", 0), ("sys.exit(3)", "", 3)]
)
def test_a_ctrl_c_is_passed_on(to_server: dict[str, str], user: str, then: str, output: str, code: int) -> None:
    program = f"""
import sys, time
try:
    print("waits", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    {then}
"""
    with running(to_server, "--user", user, "-c", program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == output
        assert process.wait(PATIENCE) == code


def test_each_of_two_ctrl_c_reaches_the_code_once(to_server: dict[str, str], user: str) -> None:
    program = """
import time
for number in range(2):
    try:
        print(number, flush=True)
        time.sleep(1000)
    except KeyboardInterrupt: pass
print("saved")
"""
    with running(to_server, "--user", user, "-c", program) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for number in range(2):
            assert process.stdout.readline() == f"{number}\n"
            process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "saved\n"
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read().splitlines() == [
            "Ctrl-C was passed on again. Once more ends the code and this command."
        ]


def test_a_third_ctrl_c_leaves_at_once(to_server: dict[str, str], user: str, server: ServerProcess) -> None:
    """Also while the code does not react, or nothing does."""
    program = """
import time
while True:
    try:
        print("waits", flush=True)
        time.sleep(1000)
    except KeyboardInterrupt: pass
"""
    with running(to_server, "--user", user, "-c", program) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "waits\n"
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    with Client(server.url, user_id=user) as client:
        assert client.sessions() == []


def test_a_ctrl_c_before_the_code_has_begun_withdraws_it(
    to_server: dict[str, str], user: str, server: ServerProcess
) -> None:
    with Client(server.url, user_id=user) as client, client.session("work") as session:
        others = session.stream("print(1, flush=True); open('gate').read(); print('on')")
        session.sh("mkfifo gate")
        assert any(str(event).startswith("1") for event in others)
        with running(to_server, "--user", user, "--session", "work", "-c", "open('ran', 'w')") as process:
            while session.info()["queuedCells"] == 0:
                os.sched_yield()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        session.sh("echo >gate")
        assert [str(event) for event in others][-1] == "1\non\n"
        assert [entry.path for entry in session.files.list()] == ["gate"]
        session.close(delete_files=True)


@pytest.mark.parametrize("json", [False, True])
def test_what_is_waited_for_is_shown_on_a_terminal_and_removed(server: ServerProcess, user: str, *, json: bool) -> None:
    with Client(server.url, user_id=user) as client, client.session("work") as session:
        session.sh("mkfifo gate")
        others = session.stream("print(1, flush=True); open('gate').read()")
        assert any(str(event).startswith("1") for event in others)
        words = ["--user", user, "--session", "work", "-c", "print('done')", *(["--json"] if json else [])]
        with Person(server, *words, command="run") as person:
            if json:
                while session.info()["queuedCells"] == 0:
                    os.sched_yield()
            else:
                person.see("Waiting for the session")
            session.sh("echo >gate")
            assert person.leave() == 0
        screen = pyte.Screen(100, 30)
        pyte.Stream(screen).feed(person.all)
        assert "Waiting" not in (person.all if json else "".join(screen.display))
        assert "done" in "".join(screen.display)
        session.close(delete_files=True)


def test_a_server_that_is_slow_to_answer_is_waited_for(server: ServerProcess, user: str) -> None:
    server.freeze()
    try:
        with Person(server, "--user", user, "-c", "print('done')", command="run") as person:
            person.see("Connecting to ws://")
            server.thaw()
            person.see("done")
            assert person.leave() == 0
    finally:
        server.thaw()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_that_is_away_keeps_nobody(tmp_path: Path, signum: signal.Signals) -> None:
    server = ServerProcess(tmp_path / "data")
    try:
        environ = environment(KERNELBRIDGE_URL=server.url)
        with running(environ, "-c", "import time; print(1, flush=True); time.sleep(1000)") as process:
            assert process.stdout is not None
            process.stdout.readline()
            server.freeze()
            while process.poll() is None:  # somebody who is not patient: two at once would be one
                process.send_signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1 if signum is signal.SIGINT else PATIENCE)
            assert process.returncode == 128 + signum
    finally:
        server.thaw()
        server.end()


def test_sigterm_ends_the_run_and_the_session(to_server: dict[str, str], user: str, server: ServerProcess) -> None:
    with running(to_server, "--user", user, "-c", "import time; print(1, flush=True); time.sleep(1000)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(PATIENCE) == 143
    with Client(server.url, user_id=user) as client:
        assert client.sessions() == []


def test_a_reader_that_leaves_ends_the_run_quietly(to_server: dict[str, str], user: str) -> None:
    with running(to_server, "--user", user, "-c", "for i in range(10**9): print(i)") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == ""


def test_a_session_keeps_its_files_and_if_wanted_its_variables(run: Run, server: ServerProcess, user: str) -> None:
    run("--session", "work", "-c", "x = 1; open('f', 'w').write('kept')")
    assert run("--session", "work", "-c", "print(open('f').read(), 'x' in dir())").stdout == "kept False\n"
    kept = run("--session", "work", "--keep", "-c", "x = 2")
    assert "work stays open" in kept.stderr
    for _ in range(2):  # the second run would find what the first had ended
        assert run("--session", "work", "-c", "print(x)").stdout == "2\n"
    with Client(server.url, user_id=user) as client:
        client.session("work").close(delete_files=True)


def test_without_a_name_nothing_is_left(run: Run, server: ServerProcess, user: str) -> None:
    run("-c", "open('f', 'w').write('x')")
    with Client(server.url, user_id=user) as client:
        assert client.sessions() == []


def test_json_has_the_whole_result(run: Run) -> None:
    done = run("--json", "-c", "print('a'); 1 / 0")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr, found["output"]) == (1, "", "a\n")
    assert found["error"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "There is nothing to run"),
        (["absent.py"], 2, "absent.py cannot be read: No such file"),
        (["--timeout", "soon", "-c", "1"], 2, "'soon' is not a duration"),
        (["--no-isolation", "-c", "1"], 2, "leave --url out"),
        (["--url", "ws://localhost:1", "-c", "1"], 125, "does a server run there?"),
        (["--url", "localhost:8001", "-c", "1"], 2, "expected ws://HOST:PORT"),
        (["--image", "none:such", "-c", "1"], 125, "image"),
    ],
)
def test_what_cannot_be_run_has_a_code_of_its_own(run: Run, arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_is_left_as_it_was(to_server: dict[str, str], user: str) -> None:
    """Interrupted while it asks for a password, which is not echoed."""
    mine, its = pty.openpty()
    before = termios.tcgetattr(its)
    code = "import getpass; print('asks', flush=True); getpass.getpass()"
    with running(to_server, "--user", user, "-c", code, stdin=its) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asks\n"
        while termios.tcgetattr(its) == before:
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert termios.tcgetattr(its) == before
    os.close(mine)
    os.close(its)


def test_without_a_server_it_starts_one_of_its_own(tmp_path: Path) -> None:
    """And leaves nothing of it."""
    odd = {"KERNELBRIDGE_LISTEN": f"unix:{tmp_path}/s", "KERNELBRIDGE_METRICS_LISTEN": "localhost:1"}
    environ = environment(TMPDIR=str(tmp_path), XDG_DATA_HOME=str(tmp_path / "data"), **odd)
    command = [*COMMAND[:-1], "run", "-c", "import os; print(6 * 7)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (0, "42\n")
    assert errors.splitlines()[0].startswith("No server at ws://localhost:8001: starting one")
    assert [entry.name for entry in tmp_path.iterdir()] == []
