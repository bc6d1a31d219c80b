from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from kernelbridge import __version__
from kernelbridge.cli import main
from tests.benchmarks.client import WebSocketClient

ROOT = Path(__file__).parents[2]
LIMIT = 120.0
NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere.sock"}


def environment(**more: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("KERNELBRIDGE_")}
    return mine | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | more


def run(
    *arguments: str, cwd: Path | None = None, environ: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kernelbridge", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=cwd,
        env=environment(**environ),
    )


@contextmanager
def serving(*arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Start a server without sandboxes; it is killed if it hangs, and has ended when this returns."""
    command = [sys.executable, "-m", "kernelbridge", "serve", "--runtime", "local", "--no-isolation", "--port", "0"]
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
    ) as server:
        watchdog = threading.Timer(LIMIT, server.kill)
        watchdog.start()
        try:
            yield server
        finally:
            watchdog.cancel()
            if server.poll() is None:
                server.kill()
            server.wait()


def until(server: subprocess.Popen[str], text: str) -> str:
    """Read the screen up to the line that has `text`."""
    assert server.stdout is not None
    seen = ""
    for line in server.stdout:
        seen += line
        if text in line:
            return seen
    assert server.stderr is not None
    pytest.fail(f"the server ended without {text!r}:\n{seen}{server.stderr.read()}")


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"kernelbridge {__version__}\n")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "-h"], ["doctor", "--help"], ["images", "build", "--help"]]
)
def test_help(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: kernelbridge")
    assert done.stderr == ""


def test_without_a_command_there_is_help() -> None:
    done = run()
    assert done.returncode == 2
    assert "serve" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (["serve", "--memroy", "1g"], {}, "error: There is no option --memroy\n       did you mean --memory? `"),
        (["serve", "--memry", "1g"], {}, "--memory"),
        (["sreve"], {}, "No such command 'sreve'"),
        (["serve", "extra"], {}, "unexpected extra argument"),
        (["serve", "--memory", "12x"], {}, "error: --memory: '12x' is not valid\n       expected a size such as 512m"),
        (["serve"], {"KERNELBRIDGE_LINGER": "soon"}, "error: KERNELBRIDGE_LINGER: 'soon' is not valid\n"),
        (["serve"], {"KERNELBRIDGE_MEMROY": "1g"}, "did you mean KERNELBRIDGE_MEMORY?"),
        (
            ["serve", "--host", "0.0.0.0"],
            {},
            "error: --host: '0.0.0.0' is not a loopback address\n       without auth",
        ),
        (["serve", "--no-isolation"], {}, "error: --no-isolation is only valid with --runtime local\n"),
        *(
            (
                [*words, "--no-isolation", "--url", "ws://h"],
                {},
                "error: --no-isolation is for a server of the command's",
            )
            for words in (["run", "-c", "1"], ["bench"])
        ),
        (["serve", "--config", "/nowhere.toml"], {}, "/nowhere.toml cannot be read"),
        (["doctor", "--port", "x"], {}, "--port: 'x' is not valid"),
        (["images", "build", "--base", "-"], {}, "--base: '-' is not valid"),
        (["serve", "--allow-origin", "foo"], {}, "--allow-origin: 'foo' is not valid"),
        (["serve"], {"DOCKER_HOST": "garbage"}, "error: DOCKER_HOST: 'garbage' is not the address of an engine\n"),
        (["doctor"], {"DOCKER_HOST": "ssh://u@h"}, "the engine must be on this machine"),
        (["images", "list"], {"DOCKER_HOST": "garbage"}, "expected unix:///"),
        (["images", "list"], {"DOCKER_HOST": "garbage", "KERNELBRIDGE_RUNTIME": "local"}, "expected unix:///"),
        (["images", "build", "nope"], {}, "There is no image called 'nope': the images are base, slim, workspace, "),
    ],
)
def test_wrong_settings_and_usage_exit_with_2(arguments: list[str], environ: dict[str, str], expected: str) -> None:
    done = run(*arguments, environ=environ)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_settings_file_with_a_misspelt_key(tmp_path: Path) -> None:
    (tmp_path / "kb.toml").write_text("memmory = '1g'\n")
    done = run("serve", "--config", "kb.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: {tmp_path}/kb.toml: 'memmory' is not a setting\n       did you mean memory?" in done.stderr


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_user_without_a_home_is_asked_for_a_directory(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert "error: There is no home directory for the data\n" in said
    assert "set --data-dir" in said


def test_no_engine_exits_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    arguments = ("serve", "--runtime", "docker", "--data-dir", str(tmp_path), "--port", "0")
    done = run(*arguments, environ=NO_ENGINE)
    assert done.returncode == 1
    assert "error: The Docker engine does not answer\n" in done.stderr
    assert "DOCKER_HOST" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run(*arguments, "--log-level", "debug", environ=NO_ENGINE).stderr


def test_images_without_an_engine() -> None:
    done = run("images", "list", environ=NO_ENGINE)
    assert done.returncode == 1
    assert "error: The Docker engine does not answer" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serve_shows_one_screen_and_stops_cleanly(tmp_path: Path, signum: signal.Signals) -> None:
    with serving("--data-dir", str(tmp_path)) as server:
        shown = until(server, "Ctrl-C")
        server.send_signal(signum)
        rest, errors = server.communicate(timeout=LIMIT)
        assert server.returncode == 0, errors
    assert re.search(r"Listening +ws://127\.0\.0\.1:[1-9][0-9]*/ws\n", shown)
    assert re.search(r"Runtime +local: ", shown)
    assert re.search(r"Isolation +\S", shown)
    assert re.search(rf"Data +{tmp_path}\n", shown)
    assert re.search(r"Warning +\S", shown)
    assert rest == ""
    assert "Traceback" not in errors


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_says_how_long_it_waits_and_a_second_one_does_not_wait(tmp_path: Path, signum: signal.Signals) -> None:
    with ExitStack() as stack, serving("--data-dir", str(tmp_path), "--stop-timeout", "10m") as server:
        found = re.search(r"ws://\S+/ws", until(server, "Ctrl-C"))
        assert found is not None
        client = stack.enter_context(closing(WebSocketClient(found[0])))
        client.ask(type="execute_code", sessionId="s", code="1")
        client.send(type="execute_code", sessionId="s", code="import time; time.sleep(600)", stream=True)
        assert client.receive()["type"] == "execution_started"
        server.send_signal(signum)
        assert server.stderr is not None
        told = next(line for line in server.stderr if "Stopping" in line)
        assert "what still runs has 10m to end" in told
        assert "a second Ctrl-C or SIGTERM ends it at once" in told
        server.send_signal(signum)
        frame = client.receive()
        while frame["type"] != "execution_result":
            frame = client.receive()
        assert frame["cause"] == "session_closed"
        assert server.wait(LIMIT) == 0


def test_a_second_server_of_one_data_directory_exits_with_2(tmp_path: Path) -> None:
    with serving("--data-dir", str(tmp_path)) as server:
        until(server, "Ctrl-C")
        done = run("serve", "--runtime", "local", "--no-isolation", "--port", "0", "--data-dir", str(tmp_path))
        assert done.returncode == 2
        assert f"The data directory {tmp_path} is in use by another kernelbridge server" in done.stderr


def test_a_port_in_use_exits_with_2(tmp_path: Path) -> None:
    with serving("--data-dir", str(tmp_path / "a")) as server:
        found = re.search(r":(\d+)/ws", until(server, "Ctrl-C"))
        assert found is not None
        port = found[1]
        done = run("serve", "--runtime", "local", "--no-isolation", "--port", port, "--data-dir", str(tmp_path / "b"))
        assert done.returncode == 2
        assert f"error: Cannot listen on 127.0.0.1:{port}\n" in done.stderr
        assert "--port" in done.stderr


def test_the_settings_file_and_the_environment_reach_the_server(tmp_path: Path) -> None:
    (tmp_path / "kb.toml").write_text("data_dir = 'data'\nhost = '::1'\n")
    with serving(KERNELBRIDGE_CONFIG=str(tmp_path / "kb.toml"), KERNELBRIDGE_HOST="localhost") as server:
        shown = until(server, "Ctrl-C")
    assert "ws://localhost:" in shown
    assert f"{tmp_path}/data\n" in shown


def test_for_machines_the_start_is_a_line_of_json(tmp_path: Path) -> None:
    with serving("--data-dir", str(tmp_path), "--log-format", "json") as server:
        assert server.stderr is not None
        for line in server.stderr:
            event = json.loads(line)
            if event["event"] == "started":
                break
        else:
            pytest.fail("the log has no line about the start")
        assert event["level"] == "info"
        assert event["runtime"] == "local"
        assert event["url"].startswith("ws://127.0.0.1:")
        server.terminate()
        rest, _ = server.communicate(timeout=LIMIT)
        assert rest == ""
        assert server.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_the_start_is_in_order(tmp_path: Path, signum: signal.Signals) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as frozen_engine:
        frozen_engine.settimeout(LIMIT)
        engine = f"tcp://127.0.0.1:{frozen_engine.getsockname()[1]}"
        with serving("--runtime", "docker", "--isolation", "--data-dir", str(tmp_path), DOCKER_HOST=engine) as server:
            asked, _ = frozen_engine.accept()
            with closing(asked):
                server.send_signal(signum)
                _, errors = server.communicate(timeout=LIMIT)
            assert server.returncode == 1
            assert errors == "\nerror: Stopped before it was finished\n"
