"""Commands in this process, with a real server in a thread: one for all tests of a module."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kernelbridge import log
from kernelbridge.cli.entry import main
from tests.unit.serving import server_in_thread


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_in_thread(tmp_path_factory.mktemp("server") / "data") as address:
        yield address


@pytest.fixture
def command(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("KERNELBRIDGE_URL", url)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(log, "configure", lambda *_: None)  # the log is that of all tests of this process

    def run(*words: str, typed: str = "") -> Done:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        capsys.readouterr()
        code = main(words)
        return Done(code, *capsys.readouterr())

    return run


def sessions(command: Command) -> set[tuple[str, str]]:
    url = os.environ["KERNELBRIDGE_URL"].replace("ws://", "http://").removesuffix("/ws")
    return {(row["user"], row["session"]) for row in json.loads(command("ps", "--json", "--url", url).out)}
