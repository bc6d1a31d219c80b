"""What sandboxes see of this machine: also when the disk is full, and whatever lies in the place of a file."""

import os
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kernelbridge.errors import DiskFull, SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories, HostShared, HostSockets
from kernelbridge.runtimes.contract import SHARED_PATH, TEXT_ROOM, SandboxSpec
from tests.faults.full_disk import SmallDisk, small_disk

SPEC = SandboxSpec("c0ffee", texts={"text": b"\n" * TEXT_ROOM}, links={"link": "/proc/self/fd/0"})
NAMES = ("s-1", "s-2", "s-3")


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[HostShared]:
    previous = os.umask(0o077)
    try:
        made = await HostDirectories(tmp_path).share("local", SPEC)
    finally:
        os.umask(previous)
    yield made
    made.remove()


def bind(path: Path, *names: str) -> list[socket.socket]:
    sockets = []
    directory = os.open(path, os.O_PATH)  # the path itself may be too long for an address
    for name in names:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"/proc/self/fd/{directory}/{name}")
        server.listen()
        sockets.append(server)
    os.close(directory)
    return sockets


# -- the directory --------------------------------------------------------------


async def test_it_has_what_the_spec_says_whatever_the_umask(shared: HostShared) -> None:
    assert shared.path == SHARED_PATH
    assert stat.S_IMODE(shared.host.stat().st_mode) == 0o755
    assert sorted(path.name for path in shared.host.iterdir()) == ["agent", "link", "text"]
    assert stat.S_IMODE((shared.host / "text").stat().st_mode) == 0o644
    assert str((shared.host / "link").readlink()) == "/proc/self/fd/0"
    shared.remove()
    shared.remove()
    assert not shared.host.exists()


async def test_what_is_not_adopted_is_removed_and_what_is_new_stays(tmp_path: Path) -> None:
    earlier, later = HostDirectories(tmp_path), HostDirectories(tmp_path)
    left = [await earlier.share("local", SPEC) for _ in range(2)]
    another = await earlier.share("docker", SPEC)
    for each in (*left, another):
        each.agent.close()
    adopted, new = later.adopt(left[0].host, SHARED_PATH), await later.share("local", SPEC)
    later.remove_others()
    assert sorted((tmp_path / "run").iterdir()) == sorted([adopted.host, new.host])
    for each in (adopted, new):
        each.remove()
    assert list((tmp_path / "run").iterdir()) == []


# -- texts ----------------------------------------------------------------------


async def test_a_text_replaces_the_one_before_it_and_keeps_its_file(shared: HostShared) -> None:
    path = shared.host / "text"
    inode = path.stat().st_ino
    for content in (b"long" + b"x" * 2 * TEXT_ROOM, b"ls\n"):
        shared.put("text", content)
        assert path.read_bytes() == content
    assert (path.stat().st_ino, stat.S_IMODE(path.stat().st_mode)) == (inode, 0o644)


async def test_a_text_that_a_server_of_another_version_has_not_made_is_made(shared: HostShared) -> None:
    previous = os.umask(0o077)
    try:
        shared.put("new", b"x")
    finally:
        os.umask(previous)
    assert ((shared.host / "new").read_bytes(), stat.S_IMODE((shared.host / "new").stat().st_mode)) == (b"x", 0o644)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize("full_of", ["bytes", "names"])
async def test_a_short_text_needs_no_room_on_a_full_disk(disk: SmallDisk, full_of: str) -> None:
    directories = HostDirectories(disk.root)
    shared = await directories.share("local", SPEC)
    disk.fill(full_of)
    for content in (b"x\n", b"x" * TEXT_ROOM, b"ls\n", b"x" * TEXT_ROOM):
        shared.put("text", content)
        assert (shared.host / "text").read_bytes() == content
    with pytest.raises(DiskFull, match="the disk of the server's data directory is full; delete files"):
        await directories.share("local", SPEC)
    if full_of == "names":
        with pytest.raises(DiskFull, match="the disk of the server's data directory is full; delete files"):
            await shared.make_sockets("k1", {"kernel.json": "{}"})
    assert [path.name for path in (disk.root / "run").iterdir()] == [shared.host.name]
    shared.remove()


async def test_a_long_text_on_a_full_disk_is_refused_and_the_next_short_one_is_not(disk: SmallDisk) -> None:
    shared = await HostDirectories(disk.root).share("local", SPEC)
    disk.fill("bytes")
    with pytest.raises(SandboxError, match="disk of the server's data directory is full"):
        shared.put("text", b"x" * 2 * TEXT_ROOM)
    shared.put("text", b"rm ballast/*\n")
    assert (shared.host / "text").read_bytes() == b"rm ballast/*\n"
    shared.remove()


async def test_what_lies_in_the_place_of_a_text_is_not_waited_for_and_not_followed(
    shared: HostShared, tmp_path: Path
) -> None:
    outside, path = tmp_path / "outside", shared.host / "text"
    outside.touch()
    for fifo in (True, False):
        path.unlink()
        if fifo:
            os.mkfifo(path)
        else:
            path.symlink_to(outside)
        with pytest.raises(SandboxError, match="could not be handed over"):
            shared.put("text", b"x")
    assert outside.read_bytes() == b""


# -- sockets --------------------------------------------------------------------


@pytest.fixture
async def sockets(shared: HostShared) -> AsyncIterator[HostSockets]:
    made = await shared.make_sockets("k3", {"kernel.json": "{}"})
    yield made
    await made.aclose()


async def test_it_is_open_while_the_program_binds_and_closed_after(sockets: HostSockets, shared: HostShared) -> None:
    path = shared.host / "k3"
    assert sockets.path == f"{SHARED_PATH}/k3"
    assert (path / "kernel.json").read_text() == "{}"
    assert stat.S_IMODE((path / "kernel.json").stat().st_mode) == 0o644
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    servers = bind(path, *NAMES[:-1])
    assert not sockets.bound(NAMES)
    servers += bind(path, NAMES[-1])
    assert sockets.bound(NAMES)
    found = sockets.endpoints(NAMES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.stat().st_uid == os.getuid()
    # The path through the descriptor works, however long the directory's own is.
    client = socket.socket(socket.AF_UNIX)
    client.connect(found["s-1"])
    for opened in (client, *servers):
        opened.close()
    await sockets.aclose()
    assert not path.exists()


@pytest.mark.parametrize("swapped", ["symlink", "file", "fifo", "directory"])
async def test_anything_but_a_socket_is_refused(
    sockets: HostSockets, shared: HostShared, tmp_path: Path, swapped: str
) -> None:
    path = shared.host / "k3"
    servers = bind(path, *NAMES)
    servers += bind(tmp_path, "elsewhere")
    place = path / NAMES[1]
    place.unlink()
    match swapped:
        case "symlink":
            place.symlink_to(tmp_path / "elsewhere")
        case "file":
            place.write_text("")
        case "fifo":
            os.mkfifo(place)
        case "directory":
            place.mkdir()
    assert sockets.bound(NAMES)
    with pytest.raises(SandboxError, match=r"is not a socket"):
        sockets.endpoints(NAMES)
    for opened in servers:
        opened.close()


async def test_a_socket_swapped_later_changes_nothing(sockets: HostSockets, shared: HostShared) -> None:
    path = shared.host / "k3"
    servers = bind(path, *NAMES)
    found = sockets.endpoints(NAMES)
    (path / "s-1").unlink()
    impostor = bind(path, "s-1")
    client = socket.socket(socket.AF_UNIX)
    client.connect(found["s-1"])
    servers[0].settimeout(10)
    servers[0].accept()[0].close()
    for opened in (client, *servers, *impostor):
        opened.close()


async def test_the_directory_of_an_earlier_program_is_replaced_and_nothing_leaks(shared: HostShared) -> None:
    (shared.host / "k1").mkdir()
    (shared.host / "k1" / "s-1").write_text("old")
    before = len(list(Path("/proc/self/fd").iterdir()))
    sockets = await shared.make_sockets("k1", {})
    assert not (shared.host / "k1" / "s-1").exists()
    await sockets.aclose()
    await sockets.aclose()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_no_warning_if_the_directory_above_was_removed(sockets: HostSockets, shared: HostShared) -> None:
    shutil.rmtree(shared.host)
    with capture_logs() as logs:
        await sockets.aclose()
    assert logs == []
    with pytest.raises(SandboxError, match="the sandbox is gone"):
        await shared.make_sockets("k4", {})


async def test_a_later_directory_at_the_same_path_is_kept(sockets: HostSockets, shared: HostShared) -> None:
    shutil.rmtree(shared.host / "k3")
    successor = await shared.make_sockets("k3", {"kernel.json": "{}"})
    with capture_logs() as logs:
        await sockets.aclose()
        assert (shared.host / "k3" / "kernel.json").exists()
        await successor.aclose()
    assert logs == []
    assert not (shared.host / "k3").exists()
