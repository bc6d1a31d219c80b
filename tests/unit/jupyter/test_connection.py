"""The connection file of a kernel, and what is said of sockets that cannot be used."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelbridge.errors import DiskFull, KernelError, SandboxError
from kernelbridge.jupyter.connection import PORTS, KernelSockets
from kernelbridge.runtimes.contract import Sandbox, SocketDirectory
from tests.unit.unpaused import host_shared


def sandbox(path: Path) -> Any:
    shared = host_shared(path)
    shared.path = "/run/kernelbridge"
    return SimpleNamespace(shared=shared)


async def test_the_connection_file_has_the_paths_of_the_sandbox(tmp_path: Path) -> None:
    sockets = await KernelSockets.make(sandbox(tmp_path), 3, "python3", "start")
    assert sockets.connection_file == "/run/kernelbridge/k3/kernel.json"
    assert sockets.start_file == "/run/kernelbridge/k3/start.py"
    assert (tmp_path / "k3" / "start.py").read_text() == "start"
    info = json.loads((tmp_path / "k3" / "kernel.json").read_text())
    assert info["transport"] == "ipc"
    assert info["ip"] == "/run/kernelbridge/k3/s"
    assert {info[f"{channel}_port"] for channel in PORTS} == {1, 2, 3, 4, 5}
    assert info["key"].encode() == sockets.key
    assert len(sockets.key) == 64
    assert not sockets.bound()
    with pytest.raises(KernelError, match="its socket s-1 is gone"):
        sockets.open()
    await sockets.aclose()
    assert list(tmp_path.iterdir()) == []


async def test_the_sockets_of_an_earlier_server_that_are_gone_are_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="its directory is gone"):
        KernelSockets.reopen(sandbox(tmp_path), 3, "key")
    made = await KernelSockets.make(sandbox(tmp_path), 3, "python3", "start")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KernelError, match="its socket s-1 is gone"):
        KernelSockets.reopen(sandbox(tmp_path), 3, "key")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    await made.aclose()


class FailingShared:
    """Makes no directory."""

    path = "/run/kernelbridge"

    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    async def make_sockets(self, _name: str, _files: object) -> SocketDirectory:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(DiskFull("It cannot be made", "the disk is full"), KernelError), (SandboxError("It is gone"), SandboxError)],
)
async def test_a_full_disk_is_the_kernels_failure_and_a_sandbox_that_is_gone_is_not(
    failure: Exception, seen: type[Exception]
) -> None:
    """Only with the latter, the kernel is started once more, in another sandbox."""
    failing = cast("Sandbox", SimpleNamespace(shared=FailingShared(failure)))
    with pytest.raises(seen):
        await KernelSockets.make(failing, 1, "python3", "start")
