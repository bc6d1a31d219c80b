"""`GET /readyz`: what is missing for a new session is named, in bounded time, and asking often costs little."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from kernelbridge.errors import ImageError, RuntimeUnavailable
from kernelbridge.runtimes.contract import Runtime
from kernelbridge.runtimes.local.runtime import LocalRuntime
from kernelbridge.server import readiness as module
from kernelbridge.server.readiness import Readiness
from tests.unit.server.conftest import StartServer


class FrozenRuntime:
    """A runtime that answers only when the test lets it."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()

    async def prepare(self) -> None:
        self.asked += 1
        await self.answers.wait()


class FailingRuntime:
    """One that answers with an error, if there is one."""

    def __init__(self, error: Exception | None) -> None:
        self.asked = 0
        self.error = error

    async def prepare(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
async def frozen(tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[tuple[FrozenRuntime, Readiness]]:
    runtime = FrozenRuntime()
    readiness = Readiness(cast("Runtime", runtime), tmp_path, executor)
    yield runtime, readiness
    await readiness.aclose()


def over(error: Exception | None, data: Path, executor: ThreadPoolExecutor) -> tuple[FailingRuntime, Readiness]:
    runtime = FailingRuntime(error)
    return runtime, Readiness(cast("Runtime", runtime), data, executor)


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (None, {}),
        (
            ImageError("Workspace image 'i' is not there", "pull it"),
            {"image": "Workspace image 'i' is not there: pull it"},
        ),
        (RuntimeUnavailable("The engine does not answer", "why"), {"runtime": "The engine does not answer: why"}),
    ],
)
async def test_what_is_missing_is_named(
    tmp_path: Path, executor: ThreadPoolExecutor, error: Exception | None, missing: dict[str, str]
) -> None:
    _, readiness = over(error, tmp_path, executor)
    assert await readiness.missing() == missing


async def test_a_runtime_that_does_not_answer_is_missing_until_it_does(
    frozen: tuple[FrozenRuntime, Readiness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    runtime, readiness = frozen
    for _ in range(3):
        assert await readiness.missing() == {"runtime": "no answer within 0.1 s"}
    assert runtime.asked == 1  # it is not asked again while it has not answered
    runtime.answers.set()
    assert await readiness.missing() == {}
    assert await readiness.missing() == {}
    assert runtime.asked == 2


async def test_who_asks_at_the_same_time_gets_the_same_answer(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    runtime, readiness = over(None, tmp_path, executor)
    assert await asyncio.gather(*(readiness.missing() for _ in range(50))) == [{}] * 50
    assert runtime.asked == 1
    runtime.error = RuntimeUnavailable("gone")
    assert await readiness.missing() == {"runtime": "gone"}


async def test_who_gives_up_asking_does_not_take_the_answer_from_others(
    frozen: tuple[FrozenRuntime, Readiness],
) -> None:
    runtime, readiness = frozen
    first, second = (asyncio.create_task(readiness.missing()) for _ in range(2))
    while not runtime.asked:  # noqa: ASYNC110 - it is the next of some turns
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    runtime.answers.set()
    assert await second == {}


async def test_a_check_that_hangs_does_not_hold_up_the_end_of_the_server(
    frozen: tuple[FrozenRuntime, Readiness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    _, readiness = frozen
    assert "runtime" in await readiness.missing()
    async with asyncio.timeout(20):
        await readiness.aclose()


def described(**changes: int) -> os.statvfs_result:
    """Describe a file system with 1 GiB and a thousand inodes free."""
    fields = {"bavail": 1 << 18, "files": 5000, "favail": 1000, "flag": 0, **changes}
    return os.statvfs_result(
        (4096, 4096, 1 << 20, 1 << 19, fields["bavail"], fields["files"], 1000, fields["favail"], fields["flag"], 255)
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"bavail": (64 << 20) // 4096}, None),
        ({"bavail": (64 << 20) // 4096 - 1}, "free some space"),
        ({"favail": 0}, "inodes"),
        ({"files": 0, "favail": 0}, None),  # a file system that does not count them
        ({"flag": os.ST_RDONLY}, "read-only"),
    ],
)
async def test_a_disk_without_room(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], said: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: described(**changes))
    _, readiness = over(None, tmp_path, executor)
    missing = await readiness.missing()
    assert set(missing) == ({"disk"} if said else set())
    assert (said or "") in missing.get("disk", "")


async def test_a_data_directory_that_is_gone(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    _, readiness = over(None, tmp_path / "none", executor)
    assert "No such file" in (await readiness.missing())["disk"]


async def test_a_server_that_is_not_ready_answers_503(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()

    async def unavailable(_runtime: LocalRuntime, _image: str | None = None) -> None:
        await asyncio.sleep(0)
        raise RuntimeUnavailable("It does not answer", "start it")

    with monkeypatch.context() as patched:
        patched.setattr(LocalRuntime, "prepare", unavailable)
        async with server.http.get(f"{server.origin}/readyz") as answer:
            assert (answer.status, await answer.json()) == (
                *(503,),
                {"status": "not ready", "missing": {"runtime": "It does not answer: start it"}},
            )
    async with server.http.get(f"{server.origin}/readyz", headers={"Origin": "http://evil.example"}) as answer:
        assert answer.status == 403
