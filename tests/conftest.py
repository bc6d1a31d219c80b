"""What all tests share: the workspace image, built once if the engine does not have it."""

import os
import signal
import sys

import pytest

from kernelbridge.images import ensure_image

DEFAULT_IMAGE = "kernelbridge-workspace:latest"


def pytest_configure() -> None:
    """Give programs that tests start the usual Ctrl-C: a run in the background of a shell has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workspace_image() -> str:
    """Name of a workspace image that the engine has."""
    image = os.environ.get("KERNELBRIDGE_TEST_IMAGE", DEFAULT_IMAGE)
    ensure_image(image, progress=lambda line: print(line, file=sys.stderr))
    return image
