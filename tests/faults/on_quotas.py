"""Tests that need a kernel with project quotas: `test_quotas.py` runs them in one."""

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from kernelbridge.aio.threads import finish
from kernelbridge.disk.limits import DiskLimits
from kernelbridge.disk.projects import Projects
from kernelbridge.disk.session_disks import SessionDisks
from kernelbridge.errors import DiskFull, DiskLimitReached, FileError
from kernelbridge.identity.principal import Principal
from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.store import FileLimits, WorkspaceFiles
from kernelbridge.workspace.session_key import SessionKey
from tests.faults.conftest import status_with
from tests.faults.quota_kernel import FILE_SYSTEMS
from tests.integration.driving import RunningServer
from tests.integration.test_transfers import fetch

MIB = 1 << 20
LIMITS = DiskLimits(8 * MIB, 100)
UID = 4321
KEY, OTHER = SessionKey(Principal("u"), "s"), SessionKey(Principal("u"), "other")


@pytest.fixture(params=FILE_SYSTEMS)
def place(request: pytest.FixtureRequest) -> Path:
    place = Path("/mnt", request.param, request.node.name.replace("/", "-"))
    place.mkdir()
    return place


@pytest.fixture
def data(place: Path) -> Iterator[DataDirectory]:
    with closing(DataDirectory.open(place)) as data:
        data.limit_disk(LIMITS)
        assert data.disk.enforced
        yield data


def prepared(data: DataDirectory, key: SessionKey = KEY) -> Path:
    """Make a session's files as the start of its sandbox does."""
    stored = data.prepare_files(key, UID, UID)
    finish(data.change_owner(stored))
    for above in (data.root, *stored.root.parents[:2]):
        above.chmod(0o711)  # a sandbox has it mounted, `as_user` goes through
    return stored.root


def as_user(call: Callable[[], object]) -> int:
    """Call something as the sandbox's user; return its `errno`, 0 if it succeeds."""
    child = os.fork()
    if not child:
        code = 255
        try:
            os.setgid(UID)
            os.setuid(UID)
            call()
            code = 0
        except OSError as exc:
            code = exc.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write(path: Path, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(b"x" * MIB)
        os.fsync(file.fileno())


FULL = {errno.EDQUOT, errno.ENOSPC}


def test_the_file_system_refuses_what_is_too_much_and_neighbours_notice_nothing(data: DataDirectory) -> None:
    root, other = prepared(data), prepared(data, OTHER)
    assert as_user(lambda: write(root / "big", 20 * MIB)) in FULL
    use = finish(data.disk.session(KEY.workspace_id, root).measuring())
    assert 7 * MIB < use.size <= 8 * MIB
    assert as_user(lambda: write(other / "small", MIB)) == 0
    assert as_user((root / "big").unlink) == 0
    assert as_user(lambda: write(root / "big", 4 * MIB)) == 0


def test_empty_files_count_and_can_be_deleted(data: DataDirectory) -> None:
    root = prepared(data)

    def touch_many() -> None:
        for number in range(200):
            (root / str(number)).touch()

    def delete_all() -> None:
        for path in root.iterdir():
            path.unlink()

    assert as_user(touch_many) in FULL
    assert 90 < len(list(root.iterdir())) <= 100
    assert as_user(delete_all) == 0
    assert as_user((root / "again").touch) == 0


def test_a_hole_counts_nothing_and_what_is_reserved_counts(data: DataDirectory) -> None:
    root = prepared(data)

    def reserve() -> None:
        with (root / "reserved").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 64 * MIB)

    (root / "sparse").touch()
    os.truncate(root / "sparse", 1 << 40)
    assert as_user(reserve) in FULL
    assert finish(data.disk.session(KEY.workspace_id, root).measuring()).size <= 8 * MIB


def test_what_has_no_name_any_more_counts_while_it_is_open(data: DataDirectory) -> None:
    root = prepared(data)

    def write_without_a_name() -> None:
        with (root / "gone").open("wb", buffering=0) as file:
            (root / "gone").unlink()
            for _ in range(20):
                file.write(b"x" * MIB)

    assert as_user(write_without_a_name) in FULL


def test_a_save_of_the_server_is_refused_with_the_figures(data: DataDirectory) -> None:
    """Also on ext4, which refuses nothing to root."""
    root = prepared(data)
    disk = data.disk.session(KEY.workspace_id, root)
    finish(disk.admitting(2 * MIB, 1, "not saved"))
    write(root / "big", 7 * MIB)
    with pytest.raises(DiskLimitReached, match=r"the session uses 7\.0 MiB of 8\.0 MiB of disk, and 2 of 100 files"):
        finish(disk.admitting(2 * MIB, 1, "not saved"))
    finish(disk.admitting(MIB // 2, 1, "not saved"))


def test_the_file_systems_own_refusal_gets_the_figures(data: DataDirectory) -> None:
    root = prepared(data)
    as_user(lambda: write(root / "big", 20 * MIB))
    disk = data.disk.session(KEY.workspace_id, root)
    explained = finish(disk.explaining(DiskFull("not saved", "No space left on device")))
    assert isinstance(explained, DiskLimitReached)
    assert "of 8.0 MiB" in str(explained)
    other = DiskFull("not saved", "No space left on device")
    assert finish(data.disk.session(OTHER.workspace_id, prepared(data, OTHER)).explaining(other)) is other


def test_files_that_are_older_than_the_quota_count_from_the_next_start(place: Path) -> None:
    with closing(DataDirectory.open(place)) as without:
        root = without.prepare_files(KEY, UID, UID).root
        (root / "d/e").mkdir(parents=True)
        write(root / "d/e/old", 4 * MIB)
        (root / "d/link").symlink_to("e")
    with closing(DataDirectory.open(place)) as data:
        data.limit_disk(LIMITS)
        os.chown(root, UID, UID)
        assert prepared(data) == root
        use = finish(data.disk.session(KEY.workspace_id, root).measuring())
        assert use.size >= 4 * MIB
        assert as_user(lambda: write(root / "more", 6 * MIB)) in FULL
        files = WorkspaceFiles(
            root, uid=UID, gid=UID, limits=FileLimits(MIB, MIB), commits=data.prepare_files(KEY, 0, 0).commits
        )
        files.rename("d/e/old", "old", overwrite=False)
        with pytest.raises(FileError, match=r"it is older than the session's disk quota.*copy it instead"):
            files.rename("d/link", "link", overwrite=False)
        finish(files.deleting("d", recursive=True))
        assert data.delete_files(KEY)


def test_each_session_has_a_project_of_its_own_below_one_of_the_operator(place: Path) -> None:
    """And the directory of the whole server can be deleted all the same: nothing moves from one project to another."""
    outer = Projects.find(place, instance="the operator's")
    assert outer is not None
    finish(outer.apply_limits("operator", place, DiskLimits(300 * MIB, 100_000)))
    with closing(DataDirectory.open(place)) as data:
        data.limit_disk(LIMITS)
        root, other = prepared(data), prepared(data, OTHER)
        (root / "a/b/c").mkdir(parents=True)
        (root / "f").touch()
        for change in (os.link, os.rename):
            with pytest.raises(OSError, match="cross-device") as caught:
                change(root / "f", other / "f")
            assert caught.value.errno == errno.EXDEV
        assert as_user(lambda: write(root / "big", 20 * MIB)) in FULL
        assert data.delete_files(KEY)
        assert not root.parent.exists()
        assert [path.name for path in (place / "workspaces").iterdir()] == [OTHER.workspace_id]
    outer.close()


def test_projects_are_given_back_and_found_again_by_the_next_server(place: Path) -> None:
    numbers: set[int] = set()
    end = time.monotonic() + 60  # XFS frees inodes later than it forgets their names
    given_back = False
    while not given_back and time.monotonic() < end:
        with closing(DataDirectory.open(place)) as data:
            data.limit_disk(LIMITS)
            root = prepared(data)
            write(root / "f", MIB)
        with closing(DataDirectory.open(place)) as again:
            again.limit_disk(LIMITS)
            projects = again.disk.projects
            assert projects is not None
            assert projects.use(KEY.workspace_id) == finish(again.disk.session(KEY.workspace_id, root).measuring())
            number = projects.numbers[KEY.workspace_id]
            given_back = number in numbers
            numbers.add(number)
            again.delete_files(KEY)
            assert KEY.workspace_id not in projects.numbers
            os.sync()
    assert given_back


def test_a_server_with_another_limit_changes_that_of_sessions_that_exist(place: Path) -> None:
    with closing(DataDirectory.open(place)) as data:
        data.limit_disk(LIMITS)
        prepared(data)
    with closing(DataDirectory.open(place)) as data:
        data.limit_disk(DiskLimits(16 * MIB, 100))
        root = prepared(data)
        assert as_user(lambda: write(root / "big", 12 * MIB)) == 0


def test_a_session_that_asked_for_less_has_less_until_it_is_opened_without(place: Path) -> None:
    with closing(DataDirectory.open(place)) as data:
        data.limit_disk(DiskLimits(16 * MIB, 100))
        open_one = data.disk.session(KEY.workspace_id, data.files(KEY))
        open_one.lower(4 * MIB, by=KEY)
        root = prepared(data)
        assert as_user(lambda: write(root / "big", 8 * MIB)) in FULL
        open_one.restore(by=OTHER)
        prepared(data)
        assert as_user(lambda: write(root / "big", 8 * MIB)) in FULL
        open_one.restore(by=KEY)
        prepared(data)
        assert as_user(lambda: write(root / "big", 12 * MIB)) == 0


def test_a_file_keeps_its_mode_and_its_other_flags(data: DataDirectory) -> None:
    root = prepared(data)
    (root / "f").touch(mode=0o640)
    finish(data.disk.apply_limits(KEY.workspace_id, root))
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o640


CELL = """if 1:
    import ctypes, os
    file = open('big', 'wb', buffering=0)
    call = ctypes.CDLL(None, use_errno=True).ioctl
    attributes = ctypes.create_string_buffer(28)
    assert call(file.fileno(), ctypes.c_ulong(0x801C581F), attributes) == 0
    print('project', int.from_bytes(attributes.raw[12:16], 'little') >= 65536)
    attributes[12:16] = bytes(4)
    for request in (0x401C5820, 0x40086602, 0xFFFFFFFF401C5820):
        print(call(file.fileno(), ctypes.c_ulong(request), attributes), ctypes.get_errno())
    for _ in range(20):
        file.write(b'x' * 1048576)
"""


@pytest.mark.parametrize("place", ["ext4"], indirect=True)
async def test_a_session_on_such_a_file_system(place: Path) -> None:
    """Of a real sandbox, whose programs cannot leave the quota; ext4, which refuses nothing to the server itself."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    flags = {"runtime": "local", "port": "0", "data_dir": str(place / "data"), "disk": "8m", "linger": "0"}
    settings = resolve({**flags, "stop_timeout": "0"}, {})
    async with running(settings, on_progress=print) as report, aiohttp.ClientSession() as http:
        server = RunningServer(report.url, settings.data_dir, "local", http)
        async with server.connect("u") as client, server.connect("u") as watcher:
            await watcher.ask(type="open_session", sessionId="s")
            full = await client.run(CELL)
            assert full["output"].splitlines()[:4] == ["project True", *["-1 1"] * 3]
            assert full["error"] == "OSError: [Errno 122] Disk quota exceeded"
            assert "session_info" in full["hint"]
            status = await status_with(watcher, "disk_limit")
            assert "of 8.0 MiB of disk" in status["detail"]
            assert (await client.ask(type="session_info", sessionId="s"))["disk"]["used"] <= 8 * MIB
            refused = await client.ask(type="save_file", sessionId="s", filename="f", content="x" * MIB)
            assert (refused["code"], "of 8.0 MiB of disk" in refused["message"]) == ("disk_limit", True)
            response = await fetch(server, "f", "PUT", data=b"x" * MIB)
            assert (response.status, (await response.json())["code"]) == (507, "disk_limit")
            command = await client.shell("cat /dev/zero >more")
            assert (command["exitCode"], "session_info" in command["hint"]) == (1, True)
            freed = await client.run("file.close(); os.unlink('big'); os.unlink('more')")
            assert freed["success"], freed
            assert (await client.ask(type="save_file", sessionId="s", filename="f", content="x" * MIB))["success"]


def test_without_limits_there_are_no_quotas(place: Path) -> None:
    assert not SessionDisks.open(place, DiskLimits(), instance="i").enforced
