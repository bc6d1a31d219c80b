"""What expires when, on a clock of the test's own; and that nothing expires which the server did not see unused."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kernelbridge.aio.threads import in_thread
from kernelbridge.errors import LimitExceeded, NoSuchFile
from kernelbridge.identity.principal import Principal
from kernelbridge.server.previous_clients import PreviousClient
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.retention import NAME, Retention, forget_usage
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.workspace.small import SMALL
from tests.unit.workspace.test_workspace_faults import FaultyRuntime

RETAIN = 1000.0
HOUR = 3600.0
A, B = SessionKey(Principal("u"), "a"), SessionKey(Principal(), "b")


class House:
    """A data directory with sessions in it, a registry, and whoever deletes what is unused."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.now = 5.0
        self.executor = executor
        self.data = DataDirectory.open(root)
        self.begin()

    def begin(self) -> None:
        """Start a server, or another one after the first has stopped or crashed."""
        self.retention = Retention(self.data, self.executor, retain=RETAIN, monotonic=lambda: self.now)
        self.registry = Registry(
            runtime=FaultyRuntime(),
            data=self.data,
            settings=replace(SMALL, max_sessions_per_user=1, max_sessions=1),
            executor=self.executor,
            on_use=self.retention.use,
        )

    def store(self, key: SessionKey) -> None:
        """Give a session a file."""
        (self.data.prepare_files(key, os.getuid(), os.getgid()).root / "file").touch()

    @property
    def stored(self) -> set[SessionKey]:
        return set(self.data.sessions())

    async def look(self, *, after: float = 0.0) -> None:
        """Look when so many seconds have gone by; as often as it would be done."""
        end = self.now + after
        while self.now < end:
            self.now = min(end, self.now + self.retention.interval)
            await self.retention.look(self.registry)
        if not after:
            await self.retention.look(self.registry)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    with ThreadPoolExecutor(2) as executor:
        house = House(tmp_path / "data", executor)
        yield house
        await house.registry.aclose()
        await house.retention.aclose()
        house.data.close()


async def test_unused_files_expire_when_their_time_is_over_and_not_before(house: House) -> None:
    house.store(A)
    await house.look()
    await house.look(after=500)
    house.store(B)
    await house.look()
    await house.look(after=499)
    assert house.stored == {A, B}
    with capture_logs() as told:
        await house.look(after=1)
    assert house.stored == {B}
    assert not house.data.files(A).parent.exists()
    (line,) = [line for line in told if line["event"] == "files_expired"]
    assert (line["user_id"], line["session"], line["unused_for"]) == ("u", "a", RETAIN)
    await house.look(after=500)
    assert house.stored == set()
    assert json.loads((house.data.root / NAME).read_text())["used"] == {}


async def test_an_open_session_is_used_and_its_time_begins_when_it_ends(house: House) -> None:
    house.store(A)
    await house.look()
    house.registry.attach(A, "c")
    await house.look(after=5 * RETAIN)
    assert house.stored == {A}
    house.now += 50
    house.registry.detach("c")
    async with asyncio.timeout(20):
        while house.registry.in_use():  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0)
    await house.look(after=RETAIN - 1)
    assert house.stored == {A}
    await house.look(after=1)
    assert house.stored == set()


async def test_a_transfer_is_a_use_while_it_runs_and_when_it_ends(house: House) -> None:
    house.store(A)
    await house.look()
    async with house.registry.using(A):
        await house.look(after=5 * RETAIN)
    await house.look(after=RETAIN - 1)
    assert house.stored == {A}
    async with house.registry.using(A):
        pass
    await house.look(after=RETAIN - 1)
    assert house.stored == {A}
    await house.look(after=1)
    assert house.stored == set()


async def test_time_in_which_the_server_did_not_look_does_not_count(house: House) -> None:
    house.store(A)
    await house.look()
    house.now += 100 * RETAIN  # it slept
    await house.look()
    assert house.stored == {A}
    house.now -= 50 * RETAIN  # what no monotonic clock does
    await house.look()
    await house.look(after=RETAIN - 2 * house.retention.interval - 1)
    assert house.stored == {A}
    await house.look(after=1)
    assert house.stored == set()


async def test_a_server_that_was_off_counts_on_from_where_it_stopped(house: House) -> None:
    house.store(A)
    await house.look()
    await house.look(after=350)
    house.retention.start(house.registry)
    house.now += 50
    await house.registry.aclose()
    await house.retention.aclose()
    house.now = 3.0  # another machine's clock, or this one's after it was started again
    house.begin()
    await house.look(after=RETAIN - 400 - 1)
    assert house.stored == {A}
    await house.look(after=1)
    assert house.stored == set()


@pytest.mark.parametrize("how", ["opened", "transferred"])
async def test_a_use_outlives_a_crash_before_the_next_look(house: House, how: str) -> None:
    house.store(A)
    await house.look()
    await house.look(after=RETAIN - 1)
    path = house.data.root / NAME
    path.unlink()
    house.retention.start(house.registry)
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110  the end of the first look
            await asyncio.sleep(0)
    if how == "opened":
        house.registry.attach(A, "c")
    else:
        async with house.registry.using(A):
            pass
    async with asyncio.timeout(20):
        while json.loads(path.read_text())["used"][A.workspace_id] < RETAIN - 1:  # noqa: ASYNC110  the file tells nobody
            await asyncio.sleep(0)
    crashed = house.retention
    await crashed._tasks.aclose()
    house.begin()
    await house.look(after=RETAIN - 1)
    assert house.stored == {A}
    await house.look(after=1)
    assert house.stored == set()


@pytest.mark.parametrize("damage", [b"", b'{"clock": 5, "used": {"', b'{"clock": "5", "used": {}}'])
async def test_a_damaged_file_is_said_and_deletes_nothing(house: House, damage: bytes) -> None:
    house.store(A)
    (house.data.root / NAME).write_bytes(damage)
    with capture_logs() as told:
        house.begin()
    assert [line["event"] for line in told] == ["usage_unreadable"]
    assert str(house.data.root / NAME) in told[0]["path"]
    await house.look()
    await house.look(after=RETAIN - 1)
    assert house.stored == {A}
    await house.look(after=1)
    assert house.stored == set()


async def test_a_file_that_cannot_be_written_is_logged_and_removed(house: House) -> None:
    house.store(A)
    await house.look()
    path = house.data.root / NAME
    path.unlink()
    path.mkdir()  # what no file can replace
    with capture_logs() as told:
        await house.look(after=house.retention.interval)
    assert [line["event"] for line in told] == ["usage_not_written"]
    assert [entry.name for entry in house.data.root.iterdir() if entry.name.startswith(NAME)] == [NAME]
    path.rmdir()
    await house.look(after=RETAIN)
    assert house.stored == set()


async def test_the_count_is_removed_when_retention_is_off(house: House) -> None:
    house.store(A)
    await house.look()
    forget_usage(house.data)
    assert not (house.data.root / NAME).exists()
    forget_usage(house.data)


async def test_files_that_cannot_be_deleted_are_said_and_tried_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.store(A)
    await house.look()

    def refuse(_path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch, capture_logs() as told:
        patch.setattr("kernelbridge.workspace.files.data_directory.remove_tree", refuse)
        await house.look(after=RETAIN)
    assert "files_not_expired" in [line["event"] for line in told]
    assert "files_expired" not in [line["event"] for line in told]
    assert house.stored == set()  # nobody finds half of them
    assert list((house.data.root / "workspaces").iterdir())
    await house.look()
    assert list((house.data.root / "workspaces").iterdir()) == []


class SlowDeletion:
    """Holds the deletion of files up until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self._go_on = threading.Event(), threading.Event()
        delete = DataDirectory.delete_files

        def slowly(data: DataDirectory, key: SessionKey) -> bool:
            self.begun.set()
            assert self._go_on.wait(20)
            return delete(data, key)

        monkeypatch.setattr(DataDirectory, "delete_files", slowly)

    def go_on(self) -> None:
        self._go_on.set()


async def test_a_session_opened_while_its_files_expire_gets_new_ones(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.store(A)
    await house.look()
    await house.look(after=RETAIN - 1)
    deletion = SlowDeletion(monkeypatch)
    looking = asyncio.create_task(house.look(after=1))
    assert await asyncio.to_thread(deletion.begun.wait, 20)
    # A session that is only being deleted is none of the user's, whose limit is one.
    workspace = house.registry.attach(A, "c")
    saving = asyncio.create_task(workspace.files.save("new", "x", encoding="utf-8", mode="overwrite", if_match=None))
    transferred = asyncio.Event()

    async def transfer() -> None:
        async with house.registry.using(A):
            transferred.set()

    transferring = asyncio.create_task(transfer())
    await asyncio.sleep(0)
    assert not saving.done()
    assert not transferred.is_set()
    deletion.go_on()
    await saving
    await transferring
    await looking
    files = house.data.files(A)
    assert [entry.name for entry in files.iterdir()] == ["new"]
    assert house.stored == {A}


async def test_a_read_while_files_expire_waits_and_finds_none(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.store(A)
    (house.data.files(A) / "directory").mkdir()
    await house.look()
    await house.look(after=RETAIN - 1)
    deletion = SlowDeletion(monkeypatch)
    looking = asyncio.create_task(house.look(after=1))
    assert await asyncio.to_thread(deletion.begun.wait, 20)
    files = house.registry.attach(A, "c").files
    reading = asyncio.create_task(files.read("file", encoding="utf-8", offset=0, length=None))
    listing = asyncio.create_task(files.list("directory", recursive=False, hidden=False))
    await asyncio.sleep(0)
    # The one thread that is free does one after the other: had they not waited, they would have found them.
    await in_thread(house.executor, bool)
    deletion.go_on()
    await looking
    for asked in (reading, listing):
        with pytest.raises(NoSuchFile):
            await asked
    assert house.stored == set()


async def test_one_that_is_opened_while_another_expires_is_spared(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (A, B):
        house.store(key)
    await house.look()
    await house.look(after=RETAIN - 1)
    deletion = SlowDeletion(monkeypatch)
    looking = asyncio.create_task(house.look(after=1))
    assert await asyncio.to_thread(deletion.begun.wait, 20)
    (expiring,) = house.registry._closing
    (other,) = {A, B} - {expiring}
    house.registry.attach(other, "c")
    with pytest.raises(LimitExceeded):
        house.registry.attach(expiring, "c")
    deletion.go_on()
    await looking
    assert house.stored == {other}


async def test_a_server_that_stops_deletes_nothing_more(house: House) -> None:
    house.store(A)
    await house.look()
    await house.registry.aclose()
    await house.look(after=RETAIN)
    assert house.stored == {A}


async def test_deleting_files_of_a_closed_session_does_not_count_as_a_session(house: House) -> None:
    """Or one user who deletes thousands that are not there would keep all others out."""
    closed: asyncio.Queue[object] = asyncio.Queue()
    nobody = PreviousClient(Principal(), house.registry)
    house.registry.close(A, nobody, delete_files=True, done=closed.put_nowait)
    house.registry.attach(B, "c")
    # One that was open has a sandbox, until it is gone, however often it is closed.
    for _ in range(2):
        house.registry.close(B, nobody, delete_files=True, done=closed.put_nowait)
        with pytest.raises(LimitExceeded):
            house.registry.attach(A, "c")
    closing = house.registry._closing[B]
    for delete in (True, False) * 1000:
        house.registry.close(B, nobody, delete_files=delete, done=closed.put_nowait)
    assert house.registry._closing[B] is closing  # what is asked for again is not done again
    for _ in range(2003):
        await closed.get()
    house.registry.attach(A, "c")
