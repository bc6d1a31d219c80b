"""Making a container whose name an earlier one may still have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker.errors import APIError

from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.docker.spec import Launch


class RefusingEngine:
    """Refuses to make containers, each time with the next status, and then makes one."""

    def __init__(self, *statuses: int, timeout: float) -> None:
        self.statuses = list(statuses)
        self.timeout = timeout

    async def call(self, _work: Callable[[Any], object], *, doing: str) -> str:
        if self.statuses:
            raise APIError(doing, response=cast("Any", SimpleNamespace(status_code=self.statuses.pop(0))))
        return "made"


async def making(engine: RefusingEngine, removed: list[str]) -> object:
    async def remove_stale(_launch: object) -> None:
        removed.append("stale")

    runtime: Any = SimpleNamespace(_engine=engine, _remove_stale=remove_stale, _track=lambda found: found)
    return await DockerRuntime._make(cast("DockerRuntime", runtime), cast("Launch", None))


async def test_what_has_the_name_is_removed_and_the_container_made() -> None:
    removed: list[str] = []
    assert await making(RefusingEngine(409, 409, timeout=60), removed) == "made"
    assert removed == ["stale", "stale"]


@pytest.mark.parametrize(("statuses", "patience"), [((500, 500), 60), ((409, 500), 60), ((409, 409), -1)])
async def test_another_refusal_or_one_for_too_long_is_an_error(statuses: tuple[int, int], patience: float) -> None:
    engine, removed = RefusingEngine(*statuses, timeout=patience), list[str]()
    with pytest.raises(APIError):
        await making(engine, removed)
    assert len(removed) == (statuses[0] == 409 and patience > 0)
