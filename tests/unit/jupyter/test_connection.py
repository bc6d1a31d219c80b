from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kernelbridge.errors import KernelError
from kernelbridge.jupyter.connection import PORTS, SocketDirectory


@pytest.fixture
def directory(tmp_path: Path) -> SocketDirectory:
    directory = SocketDirectory(tmp_path, "/run/kernelbridge", 3)
    directory.prepare("python3")
    return directory


def bind(path: Path, *names: str) -> list[socket.socket]:
    sockets = []
    for name in names:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path / name))
        server.listen()
        sockets.append(server)
    return sockets


def names() -> list[str]:
    return [f"s-{port}" for port in PORTS.values()]


def test_the_connection_file_has_the_paths_of_the_sandbox(directory: SocketDirectory, tmp_path: Path) -> None:
    assert directory.connection_file == "/run/kernelbridge/k3/kernel.json"
    file = tmp_path / "k3" / "kernel.json"
    info = json.loads(file.read_text())
    assert info["transport"] == "ipc"
    assert info["ip"] == "/run/kernelbridge/k3/s"
    assert {info[f"{channel}_port"] for channel in PORTS} == {1, 2, 3, 4, 5}
    assert info["key"].encode() == directory.key
    assert len(directory.key) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    directory.close()


def test_it_is_open_while_the_kernel_binds_and_closed_after(directory: SocketDirectory, tmp_path: Path) -> None:
    path = tmp_path / "k3"
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    servers = bind(path, *names()[:-1])
    assert not directory.bound()
    servers += bind(path, names()[-1])
    assert directory.bound()
    directory.secure()
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.stat().st_uid == os.getuid()
    # The path through the descriptor works, however long the directory's own is.
    client = socket.socket(socket.AF_UNIX)
    client.connect(directory.endpoint("shell").removeprefix("ipc://"))
    for opened in (client, *servers):
        opened.close()
    directory.close()
    assert not path.exists()


@pytest.mark.parametrize("swapped", ["symlink", "file", "fifo", "directory"])
def test_anything_but_a_socket_is_refused(directory: SocketDirectory, tmp_path: Path, swapped: str) -> None:
    path = tmp_path / "k3"
    servers = bind(path, *names())
    servers += bind(tmp_path, "elsewhere")
    place = path / names()[1]
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
    assert directory.bound()
    with pytest.raises(KernelError, match=r"is not a socket|is gone"):
        directory.secure()
    for opened in servers:
        opened.close()
    directory.close()


def test_a_socket_swapped_later_changes_nothing(directory: SocketDirectory, tmp_path: Path) -> None:
    path = tmp_path / "k3"
    servers = bind(path, *names())
    directory.secure()
    (path / "s-1").unlink()
    impostor = bind(path, "s-1")
    client = socket.socket(socket.AF_UNIX)
    client.connect(directory.endpoint("shell").removeprefix("ipc://"))
    servers[0].settimeout(10)
    servers[0].accept()[0].close()
    for opened in (client, *servers, *impostor):
        opened.close()
    directory.close()


def test_the_directory_of_an_earlier_incarnation_is_replaced_and_nothing_leaks(tmp_path: Path) -> None:
    (tmp_path / "k1").mkdir()
    (tmp_path / "k1" / "s-1").write_text("old")
    before = len(list(Path("/proc/self/fd").iterdir()))
    directory = SocketDirectory(tmp_path, "/run/kernelbridge", 1)
    directory.prepare("python3")
    assert not (tmp_path / "k1" / "s-1").exists()
    directory.close()
    directory.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_warning_if_the_directory_above_was_removed(directory: SocketDirectory, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    with capture_logs() as logs:
        directory.close()
    assert logs == []


def test_a_later_directory_at_the_same_path_is_kept(directory: SocketDirectory, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    successor = SocketDirectory(tmp_path, "/run/kernelbridge", 3)
    successor.prepare("python3")
    with capture_logs() as logs:
        directory.close()
        assert (tmp_path / "k3" / "kernel.json").exists()
        successor.close()
    assert logs == []
    assert not (tmp_path / "k3").exists()
