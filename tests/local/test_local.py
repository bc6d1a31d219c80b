"""What only the local runtime promises: how it ends, what it shows, and how it is without isolation."""

import asyncio
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import Limits, PreviousSandbox, SandboxSpec
from kernelbridge.runtimes.local.cgroups import Cgroups
from kernelbridge.runtimes.local.runtime import LocalRuntime
from kernelbridge.runtimes.local.sandbox import LocalSandbox
from kernelbridge.runtimes.local.short_links import ShortLinks
from kernelbridge.runtimes.local.terminals import limit_terminals
from tests.contract.driving import PATIENCE, children, descriptors, make_files, on_host, parent, python, read_until, run

INSTANCE = secrets.token_hex(4)
"""Of this run alone: a runtime ends what others of its instance have left."""


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[LocalRuntime]:
    opened = await asyncio.to_thread(LocalRuntime, instance=INSTANCE, directories=HostDirectories(tmp_path))
    yield opened
    await opened.aclose()


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[LocalRuntime]:
    opened = await asyncio.to_thread(
        LocalRuntime, instance=INSTANCE, directories=HostDirectories(tmp_path), isolation=False
    )
    yield opened
    await opened.aclose()


async def make(runtime: LocalRuntime, home: Path, **limits: int) -> tuple[LocalSandbox, SandboxSpec]:
    facts = await runtime.prepare()
    spec = SandboxSpec("beef", Limits(**limits))
    make_files(HostDirectories(home), spec.workspace_id, facts.uid, facts.gid)
    sandbox = await runtime.create(spec)
    assert isinstance(sandbox, LocalSandbox)
    return sandbox, spec


async def on_exit(pid: int) -> None:
    """Wait for the end of any process of this machine."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = await asyncio.to_thread(poll.poll, PATIENCE * 1000)
    os.close(pidfd)
    assert ended, f"process {pid} lives on"


# -- isolation ------------------------------------------------------------------


def test_terminals_can_be_limited_from_outside() -> None:
    """As it is done where the server is not root: bubblewrap has mounted them, and its maker may change that."""
    status, told = os.pipe()
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    command += ["--json-status-fd", str(told), "--", "sh", "-c", "echo up; read _; cat /proc/mounts"]
    pipe = subprocess.PIPE
    with (
        os.fdopen(status, "rb") as said,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[told], text=True) as sandbox,
    ):
        os.close(told)
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "up\n"  # all its mounts are there
        assert limit_terminals(json.loads(said.readline())["child-pid"], 3) is None
        mounts, _ = sandbox.communicate("go\n", timeout=PATIENCE)
    on_top = [line.split()[3] for line in mounts.splitlines() if " /dev/pts devpts " in line][-1]
    assert on_top.endswith(",max=3")
    assert "No such file or directory: '/proc/4194305/ns/mnt'" in (limit_terminals(2**22 + 1, 3) or "")


async def test_it_shows_little_of_this_machine(runtime: LocalRuntime, tmp_path: Path) -> None:
    sandbox, _ = await make(runtime, tmp_path)
    listed = await run(
        sandbox, "sh", "-c", "ls -A /home /var /run /media /mnt /srv /boot /sys; cat /etc/passwd; hostname"
    )
    assert "docker.sock" not in listed.output
    assert listed.output.rstrip().endswith("workspace")
    if os.geteuid() == 0:
        assert os.uname().nodename == "workspace" or os.uname().nodename not in listed.output.split()


async def test_root_on_the_host_owns_nothing_in_it(runtime: LocalRuntime, tmp_path: Path) -> None:
    sandbox, _ = await make(runtime, tmp_path)
    marker = f"33333.{os.getpid()}"
    process = await sandbox.exec(["sleep", marker])
    [pid] = on_host(marker)
    uids = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:"))
    assert set(uids.split()[1:]) == {str(sandbox.facts.uid)}
    await process.aclose()


# -- how it ends ----------------------------------------------------------------


@pytest.mark.parametrize("victim", ["monitor", "agent"])
async def test_a_tree_that_is_killed_from_outside_is_told(runtime: LocalRuntime, tmp_path: Path, victim: str) -> None:
    sandbox, _ = await make(runtime, tmp_path)
    marker = f"22222.{os.getpid()}"
    process = await sandbox.exec(["sleep", marker])
    [sleeping] = on_host(marker)
    agent = parent(parent(sleeping))
    monitor = parent(agent)
    os.kill({"monitor": monitor, "agent": agent}[victim], signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        assert (await sandbox.wait()).signal == signal.SIGKILL
        assert (await process.wait()).signal == signal.SIGKILL
        assert await process.read() == b""
    await on_exit(sleeping)
    with pytest.raises(SandboxError, match="gone"):
        await sandbox.exec(["true"])
    await sandbox.destroy()
    await process.aclose()


async def test_the_user_cannot_end_the_agent(runtime: LocalRuntime, tmp_path: Path) -> None:
    sandbox, _ = await make(runtime, tmp_path)
    await python(sandbox, "import os\nfor n in range(1, 32): os.kill(1, n)")
    await python(sandbox, "import os; os.kill(-1, 9)")
    assert (await run(sandbox, "echo", "lives")).output == "lives\n"


SERVER = """
import asyncio, os, sys
from pathlib import Path
from kernelbridge.runtimes.local.runtime import LocalRuntime
from kernelbridge.runtimes.contract import SandboxSpec
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from tests.contract.driving import make_files
async def main(home, instance, marker, isolation, pause, outlive):
    directories = HostDirectories(home)
    runtime = LocalRuntime(instance=instance, directories=directories, isolation=isolation == '1')
    facts = await runtime.prepare()
    make_files(directories, 'dead', facts.uid, facts.gid)
    sandbox = await runtime.create(SandboxSpec('dead'))
    # Each says that it is there when it no longer changes its command line.
    both = 'import os, signal; os.fork() or os.setsid(); print("ready", flush=True); signal.pause()'
    process = await sandbox.exec([sandbox.facts.python.executable, '-c', both, marker])
    said = b''
    while said.count(b'ready') < 2:
        said += await process.read()
    sandbox.outlive(float(outlive))
    if pause:
        await sandbox.pause()
    print(said, flush=True)
    await asyncio.Event().wait()
asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.mark.parametrize("pause", ["", "paused"])
@pytest.mark.parametrize("isolation", ["1", "0"])
@pytest.mark.parametrize("outlive", ["0.5", "1000"])
async def test_a_server_that_is_killed_leaves_no_process(
    tmp_path: Path, isolation: str, pause: str, outlive: str
) -> None:
    """The sandbox ends itself, paused or not; or the next server ends it, whether that would isolate or not."""
    marker = f"11111.{os.getpid()}"
    root = str(Path(__file__).parents[2])
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", SERVER, str(tmp_path), INSTANCE, marker, isolation, pause, outlive),
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            assert b"ready" in await server.stdout.readline()
    finally:
        tree = with_ancestors([pid for pid in on_host(marker) if pid != server.pid], server.pid)
        server.kill()
        await server.wait()
    assert len(tree) == (5 if isolation == "1" else 4)
    if outlive == "0.5":
        for pid in tree:
            await on_exit(pid)
    runtime = await asyncio.to_thread(LocalRuntime, instance=INSTANCE, directories=HostDirectories(tmp_path))
    assert await runtime.reclaim() == 1
    for pid in tree:
        await on_exit(pid)
    assert list((tmp_path / "local" / "sandboxes").iterdir()) == []
    assert await runtime.reclaim() == 0
    await runtime.aclose()
    assert groups() == []


async def test_what_is_in_the_place_of_the_agents_socket_is_not_spoken_to(
    runtime: LocalRuntime, tmp_path: Path
) -> None:
    """Where the server is the sandbox's user, programs in it can do that. It costs them the sandbox."""
    sandbox, spec = await make(runtime, tmp_path)
    await sandbox.exec(["sleep", mark := f"33333.{os.getpid()}"])
    [sleeping] = on_host(mark)
    await runtime.aclose(keep=True)
    (sandbox.shared.host / "agent" / "socket").unlink()
    directory = os.open(sandbox.shared.host / "agent", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"/proc/self/fd/{directory}/socket")
        listener.listen()
        os.close(directory)
        later = await asyncio.to_thread(LocalRuntime, instance=INSTANCE, directories=HostDirectories(tmp_path))
        async with asyncio.timeout(20):  # it is not waited for: an agent has 30 s to answer
            assert await later.adopt({spec.workspace_id: PreviousSandbox(sandbox.id, sandbox.facts)}) == {}
    await on_exit(sleeping)
    assert await later.reclaim() == 0
    await later.aclose()
    assert groups() == []


async def test_without_isolation_and_control_groups_the_agent_ends_what_is_not_adopted(
    bare: LocalRuntime, tmp_path: Path
) -> None:
    bare._cgroups._controllers.clear()
    sandbox, _ = await make(bare, tmp_path)
    mark = f"44444.{os.getpid()}"
    process = await sandbox.exec(["sh", "-c", f"setsid sleep {mark} & echo up; exec sleep {mark}"])
    await read_until(process, b"up")
    await bare.aclose(keep=True)
    later = await asyncio.to_thread(
        LocalRuntime, instance=INSTANCE, directories=HostDirectories(tmp_path), isolation=False
    )
    assert await later.reclaim() == 1
    assert on_host(mark) == []
    await later.aclose()


async def test_sandboxes_without_isolation_are_not_adopted_by_a_server_that_isolates(
    bare: LocalRuntime, tmp_path: Path
) -> None:
    sandbox, spec = await make(bare, tmp_path)
    await bare.aclose(keep=True)
    later = await asyncio.to_thread(LocalRuntime, instance=INSTANCE, directories=HostDirectories(tmp_path))
    assert await later.adopt({spec.workspace_id: PreviousSandbox(sandbox.id, sandbox.facts)}) == {}
    assert await later.reclaim() == 1
    await later.aclose()


def with_ancestors(pids: list[int], server: int) -> set[int]:
    """Add what stands between processes and the server: keepers, the agent, bubblewrap's monitor."""
    found: set[int] = set()
    for pid in pids:
        while pid != server:
            found.add(pid)
            pid = parent(pid)  # noqa: PLW2901 - up to the server
    return found


def groups() -> list[Path]:
    """The control groups of this run's instance."""
    return [path for path in Path("/sys/fs/cgroup").rglob(INSTANCE) if path.is_dir()]


async def test_an_unusable_python_is_told_and_leaves_nothing(
    runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spec = await make(runtime, tmp_path)
    before = len(descriptors()), children()
    monkeypatch.setattr("kernelbridge.runtimes.local.launcher.agent_source", lambda: b"raise SystemExit('no agent')")
    with pytest.raises(SandboxError, match="no agent"):
        await runtime.create(spec)
    assert (len(descriptors()), children()) == before


async def test_names_that_are_not_utf_8(runtime: LocalRuntime, tmp_path: Path) -> None:
    sandbox, spec = await make(runtime, tmp_path)
    name = os.fsdecode(b"caf\xe9")
    assert (await run(sandbox, "touch", name)).status.code == 0
    assert [os.fsencode(path.name) for path in HostDirectories(tmp_path).files(spec.workspace_id).iterdir()] == [
        b"caf\xe9"
    ]
    with pytest.raises(SandboxError, match="Invalid argument"):
        await sandbox.exec(["echo", "a\0b"])


async def test_a_long_command_line(runtime: LocalRuntime, tmp_path: Path) -> None:
    sandbox, _ = await make(runtime, tmp_path)
    words = ["x" * 100_000] * 10
    ran = await python(sandbox, "print('short')")
    assert ran.output == "short\n"
    process = await sandbox.exec([sandbox.facts.python.executable, "-c", "import sys; print(len(sys.argv))", *words])
    await read_until(process, b"11\n")
    await process.aclose()


# -- without isolation ----------------------------------------------------------


async def test_without_isolation_it_says_so(bare: LocalRuntime) -> None:
    assert bare.info.warning is not None
    assert "without isolation" in bare.info.warning
    assert bare.info.isolation.startswith("none")
    assert (await bare.prepare()).uid == os.getuid()


async def test_without_isolation_paths_are_the_hosts(bare: LocalRuntime, tmp_path: Path) -> None:
    home = tmp_path / ("long" * 25)
    home.mkdir()
    bare._directories = HostDirectories(home)
    sandbox, spec = await make(bare, home)
    files = str(bare._directories.files(spec.workspace_id))
    assert sandbox.workspace_path == files
    assert len(sandbox.shared.path) < 60
    ran = await run(sandbox, "sh", "-c", 'pwd; echo "$HOME"; touch "$1/s"', "sh", sandbox.shared.path)
    assert ran.output.split() == [files] * 2
    assert (sandbox.shared.host / "s").exists()
    link = Path(sandbox.shared.path)
    await sandbox.destroy()
    assert not link.is_symlink()
    await bare.aclose()
    assert not link.parent.exists()


def test_the_short_names_of_a_killed_server_are_reclaimed(tmp_path: Path) -> None:
    note, long = tmp_path / "state" / "note", tmp_path / ("long" * 25)
    left = ShortLinks(note)
    (short, link), (_, adopted) = left.shorten(long), left.shorten(long)
    assert link is not None
    assert adopted is not None
    assert Path(short).readlink() == long
    later = ShortLinks(note)
    later.adopt(adopted)
    again, mine = later.shorten(long)
    later.reclaim()
    assert not link.is_symlink()
    assert Path(again).is_symlink()
    assert mine is not None
    assert mine.parent == adopted.parent
    later.leave(adopted)
    later.close()
    assert sorted(link.parent.iterdir()) == [adopted]  # which the next one finds
    last = ShortLinks(note)
    last.reclaim()
    last.close()
    last.close()
    assert list(note.parent.iterdir()) == []
    assert not link.parent.exists()


def test_short_names_are_not_looked_for_in_a_directory_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is noted may have been removed, and another made in its place: /tmp is everybody's."""
    note, long = tmp_path / "note", tmp_path / ("long" * 25)
    _, link = ShortLinks(note).shorten(long)
    assert link is not None
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 4242)
        other = ShortLinks(note)
        other.reclaim()
        assert link.is_symlink()
        _, made = other.shorten(long)
        assert made is not None
        assert made.parent != link.parent
    other.close()
    link.unlink()
    link.parent.rmdir()


async def test_without_isolation_the_environment_is_still_clean(
    monkeypatch: pytest.MonkeyPatch, bare: LocalRuntime, tmp_path: Path
) -> None:
    monkeypatch.setenv("KERNELBRIDGE_CANARY", "a-secret-of-the-server")
    sandbox, _ = await make(bare, tmp_path)
    assert "a-secret" not in (await run(sandbox, "env")).output


async def test_without_isolation_destroy_still_takes_everything(bare: LocalRuntime, tmp_path: Path) -> None:
    sandbox, _ = await make(bare, tmp_path)
    marker = f"99999.{os.getpid()}"
    script = f"setsid sh -c 'sleep {marker} & echo re''ady; exec sleep {marker}' & exec sleep {marker}"
    process = await sandbox.exec(["sh", "-c", script], tty=True)
    await read_until(process, b"ready")
    assert on_host(marker)
    async with asyncio.timeout(PATIENCE):
        await sandbox.destroy()
        assert on_host(marker) == []
        assert (await process.wait()).signal == signal.SIGKILL
    await process.aclose()


async def test_without_isolation_a_killed_agent_is_told(bare: LocalRuntime, tmp_path: Path) -> None:
    sandbox, _ = await make(bare, tmp_path)
    process = await sandbox.exec(["sleep", "1000"], tty=True)
    os.kill(parent(parent(process.pid)), signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        assert (await sandbox.wait()).signal == signal.SIGKILL
        assert (await process.wait()).signal == signal.SIGKILL
    pid = process.pid
    await sandbox.destroy()
    await process.aclose()
    if Cgroups.find(INSTANCE).controllers:
        await on_exit(pid)
    else:
        os.kill(pid, signal.SIGKILL)  # told in the warning: what escapes the agent, nobody ends
