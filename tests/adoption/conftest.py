"""One house for each test."""

from collections.abc import AsyncIterator

import pytest

from tests.adoption import house as houses
from tests.faults.conftest import engine_home

__all__ = ["engine_home"]


@pytest.fixture
async def house(workspace_image: str) -> AsyncIterator[houses.House]:
    async with houses.house("docker", workspace_image) as made:
        yield made


@pytest.fixture
async def local_house(workspace_image: str) -> AsyncIterator[houses.House]:
    async with houses.house("local", workspace_image) as made:
        yield made
