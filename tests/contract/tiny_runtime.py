"""The smallest runtime, as an example: plain processes of this machine, without isolation and without limits.

It is all that a runtime has to supply: making, adopting and destroying sandboxes. `AgentSandbox` does the rest.
"""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.client import START_SECONDS, agent_command, agent_source
from kernelbridge.runtimes.agent.directory import NAME
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.agent.sandbox import AgentSandbox
from kernelbridge.runtimes.contract import ExitStatus, PreviousSandbox, RuntimeInfo, SandboxSpec
from kernelbridge.runtimes.facts import PROBE, Facts, parse_probe

DECLINED = frozenset({"isolation", "limits"})
"""Promises of the contract (`conftest.needs`) that it does not keep."""


class Note(msgspec.Struct):
    """What the next server must know about a sandbox."""

    id: str
    pid: int
    files: str
    shared: str


class TinySandbox(AgentSandbox):
    """An agent, and what it runs."""

    def __init__(self, note: Note, runtime: "TinyRuntime", child: subprocess.Popen[bytes] | None = None) -> None:
        """`child` is the agent, if this server has started it; otherwise nobody here is told how it ends."""
        super().__init__(note.id)
        self.workspace_path = note.files
        self._runtime = runtime
        self._child = child
        self._pidfd = os.pidfd_open(note.pid)
        self._destroyed = False
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    async def destroy(self) -> None:
        self._destroyed = True
        self._terminate()
        await self.wait()
        await self.remove_shared()

    def leave(self) -> None:
        super().leave()
        self._close()
        if self._child is not None:
            self._child.returncode = 0  # nobody waits for it any more

    def on_agent_lost(self) -> None:
        self._terminate()

    def _terminate(self) -> None:
        if self.alive:
            if self.connected:
                self.agent.end()
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)  # then the agent ends everything and itself

    def _on_end(self) -> None:
        code = None if self._child is None else self._child.wait()
        if self._destroyed or code is None:
            status = ExitStatus(signal=signal.SIGKILL)
        else:
            status = ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)
        self._close()
        self._runtime.note_file(self.id).unlink(missing_ok=True)
        self.ended(status)

    def _close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._runtime.sandboxes.pop(self.id, None)


class TinyRuntime:
    """Makes plain processes; `directories` are those below the server's data directory."""

    def __init__(self, directories: HostDirectories) -> None:
        self.info = RuntimeInfo("tiny", f"python {sys.executable}", "none", adopts=True)
        self.sandboxes: dict[str, TinySandbox] = {}
        self._directories = directories
        self._home = directories.root / "tiny"
        self._home.mkdir(parents=True, exist_ok=True)
        self._program = self._home / "agent.py"
        self._program.write_bytes(agent_source())
        self._facts: Facts | None = None
        self._closed = False

    def note_file(self, sandbox_id: str) -> Path:
        return self._home / f"{sandbox_id}.json"

    async def prepare(self, image: str | None = None) -> Facts:
        assert image is None, "it has no images"
        if self._facts is None:
            env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
            probe = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROBE, env=env, stdout=asyncio.subprocess.PIPE
            )
            self._facts = parse_probe((await probe.communicate())[0], env)
        return self._facts

    async def create(self, spec: SandboxSpec) -> TinySandbox:
        facts = await self.prepare(spec.image)
        files = self._directories.files(spec.workspace_id)
        if self._closed or not files.is_dir():
            raise SandboxError("The sandbox could not be started", f"the runtime is closed, or without {files}")
        shared = await self._directories.share("tiny", spec)
        shared.path = str(shared.host)  # there is no other file system
        python, directory = sys.executable, f"{shared.host}/{NAME}"
        command = agent_command(python, str(self._program), directory, rlimits=spec.limits.rlimits, start=START_SECONDS)
        child = subprocess.Popen(command, env=facts.env, cwd="/", stdin=subprocess.DEVNULL, start_new_session=True)
        note = Note(f"{spec.workspace_id}-{secrets.token_hex(4)}", child.pid, str(files), str(shared.host))
        sandbox = self.sandboxes[note.id] = TinySandbox(note, self, child)
        try:
            await sandbox.connect(shared, with_home(facts, files))
            self.note_file(note.id).write_bytes(msgspec.json.encode(note))
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def adopt(self, previous: Mapping[str, PreviousSandbox]) -> Mapping[str, TinySandbox]:
        notes = {note.id: note for note in self._notes()}
        adopted = {}
        for workspace_id, known in previous.items():
            note = notes.get(known.sandbox_id)
            if note is not None and (sandbox := await self._adopted(note, known.facts)) is not None:
                adopted[workspace_id] = sandbox
        return adopted

    async def reclaim(self) -> int:
        count = 0
        for note in self._notes():
            if note.id not in self.sandboxes:
                sandbox = await self._adopted(note, await self.prepare())
                if sandbox is not None:
                    await sandbox.destroy()
                    count += 1
        self._directories.remove_others()
        return count

    async def aclose(self, *, keep: bool = False) -> None:
        self._closed = True
        for sandbox in list(self.sandboxes.values()):
            if keep:
                sandbox.leave()
            else:
                await sandbox.destroy()

    async def _adopted(self, note: Note, facts: Facts) -> TinySandbox | None:
        try:
            sandbox = self.sandboxes[note.id] = TinySandbox(note, self)
        except ProcessLookupError:
            self.note_file(note.id).unlink()
            return None
        try:
            shared = self._directories.adopt(Path(note.shared), note.shared)
            await sandbox.reconnect(shared, facts, pid=note.pid)
        except SandboxError:  # another process has this pid now
            sandbox.leave()
            return None
        return sandbox

    def _notes(self) -> list[Note]:
        return [msgspec.json.decode(path.read_bytes(), type=Note) for path in sorted(self._home.glob("*.json"))]


def with_home(facts: Facts, files: Path) -> Facts:
    return msgspec.structs.replace(facts, env={**facts.env, "HOME": str(files)})


@asynccontextmanager
async def tiny_runtime(directories: HostDirectories) -> AsyncIterator[TinyRuntime]:
    runtime = TinyRuntime(directories)
    try:
        yield runtime
    finally:
        await runtime.aclose()
