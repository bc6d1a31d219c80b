"""What all tests share: the workspace image, built once if the engine does not have it."""

import os
import sys

import pytest

from kernelbridge.images import ensure_image

DEFAULT_IMAGE = "kernelbridge-workspace:latest"


@pytest.fixture(scope="session")
def workspace_image() -> str:
    """Name of a workspace image that the engine has."""
    image = os.environ.get("KERNELBRIDGE_TEST_IMAGE", DEFAULT_IMAGE)
    ensure_image(image, progress=lambda line: print(line, file=sys.stderr))
    return image
