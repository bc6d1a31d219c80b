"""When a session's files are looked at, and which results a stop explains."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import generate_latest

from kernelbridge.disk.limits import DiskLimits, Use
from kernelbridge.disk.session_disks import SessionDisks
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.metrics import Metrics
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace import disk_watch
from kernelbridge.workspace.disk_watch import LONGEST, DiskStops, DiskWatch, _Look, due

LIMITS = DiskLimits(1000, 100)
LAST = _Look(Use(200, 20), Use(10_000, 1000), at=100.0, took=0.01)
"""A session that has 800 bytes and 80 files left."""


def is_due(room: Use, now: float = 102.0, *, last: _Look | None = LAST, counts_files: bool = True) -> bool:
    return due(last, room, now, LIMITS, counts_files=counts_files)


def test_the_files_are_looked_at_if_the_disk_has_lost_a_part_of_what_the_session_has_left() -> None:
    assert is_due(LAST.room, last=None)
    assert not is_due(LAST.room)
    assert not is_due(Use(10_000 - 199, 1000 - 19))
    assert is_due(Use(10_000 - 200, 1000))
    assert is_due(Use(10_000, 1000 - 20))


def test_they_are_looked_at_from_time_to_time_whatever_the_disk_says() -> None:
    assert not is_due(Use(20_000, 2000), 100 + LONGEST - 1)
    assert is_due(Use(20_000, 2000), 100 + LONGEST)
    assert is_due(LAST.room, counts_files=False)


def test_a_session_above_its_limit_is_looked_at_each_time() -> None:
    assert is_due(LAST.room, last=_Look(Use(1200, 20), LAST.room, at=100.0, took=0.01))


def test_there_is_a_rest_after_a_long_look() -> None:
    long = _Look(Use(1200, 20), LAST.room, at=100.0, took=1.0)
    assert [is_due(LAST.room, now, last=long) for now in (102.0, 103.0)] == [False, True]


def test_a_stop_explains_what_it_has_ended_and_nothing_else() -> None:
    stops = DiskStops()
    before = stops.mark()
    ended = Outcome(success=False, cause="interrupted")
    assert stops.explained(ended, before) is ended
    stops.add("the figures")
    told = stops.explained(ended, before)
    assert (told.cause, told.hint) == ("disk_limit", "the figures")
    assert stops.explained(ended, stops.mark()) is ended
    for cause in (None, "timeout", "out_of_memory", "session_closed"):
        other = Outcome(success=False, cause=cause)
        assert stops.explained(other, before) is other


class EndlessSandbox:
    """It never ends."""

    waits = 0

    async def wait(self) -> None:
        self.waits += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.waits -= 1


async def test_a_watch_that_is_given_up_waits_for_nothing(tmp_path: Path) -> None:
    sandbox, looked = EndlessSandbox(), asyncio.Event()

    def asleep() -> bool:
        looked.set()
        return True

    watch = DiskWatch(
        SessionDisks(LIMITS).session("s", tmp_path),
        tmp_path,
        DiskStops(),
        executor=ThreadPoolExecutor(1),
        asleep=asleep,
        tell=lambda _detail, *, stopped: pytest.fail(str(stopped)),
        interrupt=lambda: None,
        end=asyncio.Event().wait,  # type: ignore[arg-type] # it is not called
        metrics=Metrics(),
    )
    watching = asyncio.ensure_future(watch.watch(cast("Sandbox", sandbox)))
    await looked.wait()
    assert sandbox.waits == 1
    watching.cancel()
    await asyncio.wait([watching])
    await asyncio.sleep(0)
    assert sandbox.waits == 0


async def test_a_session_above_its_limit_is_told_counted_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each sandbox: what is on the disk when one begins, its programs have not written."""
    monkeypatch.setattr(disk_watch, "EVERY", 0.01)
    told: asyncio.Queue[str] = asyncio.Queue()
    metrics = Metrics()

    sizes_in_sleep: list[int | None] = []

    def tell(detail: str, *, stopped: bool) -> None:
        told.put_nowait(f"{detail} {stopped}")

    def sleeps() -> bool:
        sizes_in_sleep.append(watch.size)
        return len(sizes_in_sleep) < 4

    with ThreadPoolExecutor(1) as executor:
        watch = DiskWatch(
            SessionDisks(LIMITS).session("s", tmp_path),
            tmp_path,
            DiskStops(),
            executor=executor,
            asleep=sleeps,
            tell=tell,
            interrupt=lambda: pytest.fail("nothing grows"),
            end=asyncio.Event().wait,  # type: ignore[arg-type] # it waits until the test ends
            metrics=metrics,
        )
        for sandbox in ("first", "second"):
            for number in range(200):
                (tmp_path / f"{sandbox} {number}").write_text("x")
            watching = asyncio.ensure_future(watch.watch(cast("Sandbox", EndlessSandbox())))
            text = await asyncio.wait_for(told.get(), 60)
            watching.cancel()
            await asyncio.wait([watching])
            assert "of 100 files" in text
            assert text.endswith("False")
    assert sizes_in_sleep[:4] == [None] * 4  # nobody looks while it sleeps
    assert (watch.size or 0) >= 400
    assert b'kernelbridge_disk_limit_reached_total{resource="files"} 2.0' in generate_latest(metrics.registry)


async def test_programs_that_grow_above_the_limit_are_interrupted_and_soon_after_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EVERY", "SOON", "AT_ONCE"):
        monkeypatch.setattr(disk_watch, name, 0.01)
    monkeypatch.setattr(disk_watch, "LONGEST", 0.0)
    steps: list[str] = []
    interrupted, ended = asyncio.Event(), asyncio.Event()

    def grow(name: str) -> None:
        for number in range(200):
            (tmp_path / f"{name} {number}").touch()

    def interrupt() -> None:
        steps.append("interrupt")
        interrupted.set()

    async def end() -> None:
        steps.append("end")
        ended.set()

    stops = DiskStops()
    mark = stops.mark()
    with ThreadPoolExecutor(1) as executor:
        watch = DiskWatch(
            SessionDisks(DiskLimits(0, 100)).session("s", tmp_path),
            tmp_path,
            stops,
            executor=executor,
            asleep=lambda: False,
            tell=lambda _detail, *, stopped: steps.append(f"tell {stopped}"),
            interrupt=interrupt,
            end=end,
            metrics=Metrics(),
        )
        watching = asyncio.ensure_future(watch.watch(cast("Sandbox", EndlessSandbox())))
        async with asyncio.timeout(60):
            while watch.size is None:  # noqa: ASYNC110 - the first look says what was there before
                await asyncio.sleep(0.01)
            for number in range(10**9):  # it grows until it is interrupted
                grow(str(number))
                if interrupted.is_set():
                    break
                await asyncio.sleep(0.01)
            monkeypatch.setattr(disk_watch, "EVERY", 1000.0)
            grow("more")
            await ended.wait()
        watching.cancel()
        await asyncio.wait([watching])
    assert steps == ["tell True", "interrupt", "tell True", "end"]
    assert stops.explained(Outcome(success=False, cause="interrupted"), mark).cause == "disk_limit"
