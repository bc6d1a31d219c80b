"""Short words for what the contract tests do to sandboxes."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import ExitStatus, Process, Sandbox
from tests.conftest import SMALL_IMAGE

PATIENCE = 120
"""Seconds after which something that should have happened is taken as never happening."""


ISOLATED = pytest.mark.needs("isolation")
"""For tests of what separates a sandbox from the machine and from others; many would harm the machine without it."""
LIMITED = pytest.mark.needs("limits")
"""For tests of limits that hold for a whole sandbox; those of each process are the agent's."""


def make_files(directories: HostDirectories, workspace_id: str, uid: int, gid: int) -> Path:
    """Make the directory of a workspace's files, as the server does; it belongs to the sandbox's user."""
    files = directories.files(workspace_id)
    files.mkdir(parents=True)
    files.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(files, uid, gid)
    return files


@dataclass(frozen=True)
class Ran:
    output: str
    status: ExitStatus


async def run(sandbox: Sandbox, *argv: str, tty: bool = False, env: Mapping[str, str] | None = None) -> Ran:
    """Run a program to its end."""
    process = await sandbox.exec(argv, tty=tty, env=env)
    try:
        output = await read_all(process)
        async with asyncio.timeout(PATIENCE):
            return Ran(output.decode(), await process.wait())
    finally:
        await process.aclose()


async def python(sandbox: Sandbox, program: str) -> Ran:
    """Run a python program to its end."""
    return await run(sandbox, sandbox.facts.python.executable, "-c", program)


async def start_python(sandbox: Sandbox, program: str, *, tty: bool = False) -> Process:
    return await sandbox.exec([sandbox.facts.python.executable, "-c", program], tty=tty)


async def read_all(process: Process) -> bytes:
    output = bytearray()
    async with asyncio.timeout(PATIENCE):
        while data := await process.read():
            output += data
    return bytes(output)


async def read_until(process: Process, mark: bytes) -> bytes:
    """Read until `mark` has come; fails if the output ends before that."""
    output = bytearray()
    async with asyncio.timeout(PATIENCE):
        while mark not in output:
            data = await process.read()
            assert data, f"{mark!r} never came: {bytes(output)!r}"
            output += data
    return bytes(output)


def on_host(marker: str) -> list[int]:
    """Processes of the whole machine whose command line has `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in line:
                found.append(int(entry.name))
    return found


def signal_on_host(pid: int, number: int) -> None:
    """Signal any process of the machine; that of another user through the engine, which may do it."""
    try:
        os.kill(pid, number)
    except PermissionError:
        import docker  # noqa: PLC0415 - the local half runs without an engine

        engine = docker.from_env()
        try:
            engine.containers.run(
                SMALL_IMAGE,
                ["kill", f"-{int(number)}", str(pid)],
                user="0",
                pid_mode="host",
                remove=True,
            )
        finally:
            engine.close()


def state(pid: int) -> str:
    """Return the state of a process of the machine: R, S, T and so on; see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def parent(pid: int) -> int:
    """The parent of a process of the machine."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def descriptors() -> dict[str, str]:
    """What this process has open, by number."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:
            continue  # the listing's own
    return found


def children() -> dict[int, str]:
    """The processes that this process is the parent of, with the names that `ps` would show."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
            except OSError:
                continue
            name, _, fields = stat.partition("(")[2].rpartition(")")
            if int(fields.split()[1]) == os.getpid():
                found[int(entry.name)] = name
    return found


IN_SANDBOX_PROCESSES = """
import os
table = {}
for number in os.listdir('/proc'):
    if number.isdigit():
        try:
            stat = open(f'/proc/{number}/stat', errors='replace').read()
        except OSError:
            continue
        name, _, rest = stat.partition('(')[2].rpartition(')')
        table[int(number)] = (name, int(rest.split()[1]))
def ancestors(pid):
    while pid in table:
        yield pid
        pid = table[pid][1]
agent = next(pid for pid in ancestors(os.getpid()) if table[pid][0] == 'kb-agent')
for pid in table:
    if pid != os.getpid() and agent in ancestors(pid):
        try:
            print(pid, open(f'/proc/{pid}/cmdline').read().replace(chr(0), ' '))
        except OSError:
            pass
"""
"""Prints the command lines of everything in a sandbox; a zombie has none."""
