"""Pausing a container whose processes get no time to stand still."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import requests
from docker.errors import APIError

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.docker.engine import Engine
from kernelbridge.runtimes.docker.pauses import Pauses
from kernelbridge.runtimes.docker.tasks import Background


class EngineThatGivesUp:
    """Says `times` times what Docker says of a runc that could not freeze a container."""

    def __init__(self, times: int, said: str) -> None:
        self.left = times
        self.said = said
        self.calls = 0

    async def call(self, _job: Callable[..., Any], *, doing: str) -> None:
        assert doing == "pausing a container"
        self.calls += 1
        if self.left:
            self.left -= 1
            response = requests.Response()
            response.status_code = 500
            raise APIError("500 Server Error", response=response, explanation=self.said)


def pauses(engine: EngineThatGivesUp) -> Pauses:
    return Pauses("container", engine=cast("Engine", engine), background=cast("Background", None))


async def test_a_pause_that_runc_gives_up_is_tried_again() -> None:
    engine = EngineThatGivesUp(3, "Cannot pause container x: OCI runtime pause failed: unable to freeze: unknown")
    container = pauses(engine)
    await container.pause()
    assert (container.paused, engine.calls) == (True, 4)


@pytest.mark.parametrize(("said", "calls"), [("unable to freeze: unknown", 5), ("no space left on device", 1)])
async def test_it_is_not_tried_for_ever_nor_when_it_cannot_help(said: str, calls: int) -> None:
    engine = EngineThatGivesUp(1000, said)
    container = pauses(engine)
    with pytest.raises(SandboxError, match="cannot be paused"):
        await container.pause()
    assert (container.paused, engine.calls) == (False, calls)
