"""The example programs as their readers run them, and one server for all of them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.servers import PATIENCE, ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
Begin = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("server") / "data")
    yield made
    made.end()


@pytest.fixture
def begin(server: ServerProcess, tmp_path: Path) -> Iterator[Begin]:
    """Start an example with words and with variables, in an empty directory."""
    begun: list[subprocess.Popen[str]] = []

    def start(name: str, *words: str, **variables: str) -> "subprocess.Popen[str]":
        command = (sys.executable, str(EXAMPLES / name), *words)
        environment = {**os.environ, "KERNELBRIDGE_URL": server.url, **variables}
        pipe = subprocess.PIPE
        begun.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def run(begin: Begin) -> Run:
    """Run an example to its end."""

    def complete(name: str, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        process = begin(name, *words, **variables)
        shown, _ = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, shown)

    return complete
