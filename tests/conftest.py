"""What all tests share: a small image, built once if the engine does not have it, and how workers divide them."""

import fcntl
import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from docker.transport.unixconn import UnixHTTPConnection
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from kernelbridge import log
from kernelbridge.images.build import KNOWN, ensure_image

# The same examples in each run, and as many as take a second; `--hypothesis-profile thorough` looks for new ones.
# How long an example takes says something of the machine only.
settings.register_profile(
    "quick", max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=10_000, derandomize=False)
settings.load_profile("quick")

SMALL_IMAGE = KNOWN["slim"].reference

LONGEST_FIRST = (
    "faults",
    "adoption",
    "integration",
    "docker",
    "contract",
    "images",
    "client",
    "page",
    "examples",
    "local",
    "unit",
)
"""Directories in the order in which they are run: what takes longest must not be alone at the end."""
PARTS = re.compile(r"\b(docker|local|ipykernel-\d)\b")
"""Parameters that make parts of a module that may run at the same time: the runtime, the generation of kernels."""
TOGETHER = {"tests/faults/test_engine.py": "private engine", "tests/adoption/test_engine.py": "private engine"}
"""Modules that are not to run at the same time, or that share what is costly to make."""


def _connect(connection: UnixHTTPConnection) -> None:
    """Connect as the SDK does, which drops a socket that it could not connect instead of closing it.

    Its warning would come at any time later, and fail any test.
    """
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(connection.timeout)
    connection.sock.connect(connection.unix_socket)


def _log_of_all_tests(*_: object) -> None:
    """Fail the test: later ones in this process would no longer see what is logged. Only commands set up a log."""
    raise AssertionError("the log of this process would be set up")


def pytest_configure() -> None:
    """Give programs that tests start the usual Ctrl-C: a run in the background of a shell has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mock.patch.object(UnixHTTPConnection, "connect", _connect).start()
    mock.patch.object(log, "configure", _log_of_all_tests).start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    folder = item.nodeid.split("/")[1]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else -1


class ByModule(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no annotations
    """Keeps the tests of a module on one worker (`pytest -n`), which makes the module's fixtures once.

    Not by pytest-xdist's own groups: they are told by names of tests changed behind pytest's back, which it no longer
    lets happen since 9.2; all tests were spread then, and nothing said so.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """Name what a test belongs to: all of that runs on one worker."""
    module, _, test = nodeid.partition("::")
    part = PARTS.search(test.partition("[")[2])
    return TOGETHER.get(module) or (module if part is None else f"{module}:{part[0]}")


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is switched off
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """Divide the tests among the workers as we do it, whatever `--dist` says."""
    return ByModule(config, log)


@pytest.fixture(scope="session")
def workspace_image() -> str:
    """Name of a workspace image that the engine has."""
    image = os.environ.get("KERNELBRIDGE_TEST_IMAGE", SMALL_IMAGE)
    with (Path(tempfile.gettempdir()) / "kernelbridge-test-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may need it at once, and one builds it
        ensure_image(image, progress=lambda line: print(line, file=sys.stderr))
    return image
