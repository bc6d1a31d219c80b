"""One house for each test, and each runtime: `docker_only` takes one."""

from collections.abc import AsyncIterator

import pytest

from tests.adoption import house as houses
from tests.faults.conftest import engine_home

__all__ = ["engine_home"]


@pytest.fixture(params=["docker", "local"])
async def house(request: pytest.FixtureRequest, workspace_image: str) -> AsyncIterator[houses.House]:
    async with houses.house(request.param, workspace_image) as made:
        yield made
