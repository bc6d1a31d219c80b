"""What all tests share: the workspace image, built once if the engine does not have it, and how workers divide them."""

import fcntl
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from kernelbridge.images import ensure_image

DEFAULT_IMAGE = "kernelbridge-workspace:latest"

LONGEST_FIRST = ("faults", "adoption", "integration", "docker", "contract", "images", "local", "unit")
"""Directories in the order in which they are run: what takes longest must not be alone at the end."""
DIVIDED_BY = ("runtime_name", "runtime", "any_spec")
"""Parameters of fixtures whose values make parts of a module that workers may run at the same time."""


def pytest_configure() -> None:
    """Give programs that tests start the usual Ctrl-C: a run in the background of a shell has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a module on one worker (`pytest -n`), which makes the module's fixtures once."""
    items.sort(key=_turn)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _turn(item: pytest.Item) -> int:
    folder = item.nodeid.split("/")[1]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


def _group(item: pytest.Item) -> str:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return ":".join((item.nodeid.partition("::")[0], *(str(params[name]) for name in DIVIDED_BY if name in params)))


@pytest.fixture(scope="session")
def workspace_image() -> str:
    """Name of a workspace image that the engine has."""
    image = os.environ.get("KERNELBRIDGE_TEST_IMAGE", DEFAULT_IMAGE)
    with (Path(tempfile.gettempdir()) / "kernelbridge-test-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may need it at once, and one builds it
        ensure_image(image, progress=lambda line: print(line, file=sys.stderr))
    return image
