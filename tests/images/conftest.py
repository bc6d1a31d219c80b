"""The real engine, and names that are gone afterwards."""

import secrets
from collections.abc import Callable, Iterator

import pytest
from docker import APIClient
from docker.errors import ImageNotFound
from docker.utils import kwargs_from_env


@pytest.fixture
def engine() -> Iterator[APIClient]:
    client = APIClient(version="auto", timeout=120, **kwargs_from_env())
    yield client
    client.close()


@pytest.fixture
def new_tag(engine: APIClient) -> Iterator[Callable[[], str]]:
    """Makes references that no image has; images that get one are removed."""
    made: list[str] = []

    def make() -> str:
        made.append(f"kernelbridge-test-{secrets.token_hex(4)}:latest")
        return made[-1]

    yield make
    for reference in made:
        try:
            engine.remove_image(reference, force=True)
        except ImageNotFound:
            continue
