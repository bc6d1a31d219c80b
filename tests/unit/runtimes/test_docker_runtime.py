"""The Docker runtime with an engine whose containers are processes of this machine."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import ConfigError, ImageError, KernelBridgeError, RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import ExitStatus, Limits, PreviousSandbox, SandboxSpec
from kernelbridge.runtimes.docker import events, removals
from kernelbridge.runtimes.docker import sandbox as docker_sandbox
from kernelbridge.runtimes.docker.runtime import DockerRuntime, probe_engine
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL, LAUNCH_LABEL, WORKSPACE_LABEL
from tests.contract.driving import PATIENCE
from tests.unit.runtimes.host_engine import Container, HostEngine, host_engine

KILLED = ExitStatus(signal=signal.SIGKILL)

Open = Callable[..., Awaitable[DockerRuntime]]


@pytest.fixture
async def engine() -> AsyncIterator[HostEngine]:
    with tempfile.TemporaryDirectory() as directory:
        async with host_engine(Path(directory)) as opened:
            yield opened


@pytest.fixture
async def open_runtime(engine: HostEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    monkeypatch.setattr(removals, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(events, "FIRST_DELAY", 0.01)

    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> DockerRuntime:
            given = {"image": "i", "instance": "here", "client_factory": engine.client, **options}
            runtime = await DockerRuntime.open(directories=HostDirectories(tmp_path), **given)
            stack.push_async_callback(runtime.aclose)
            return runtime

        yield start
        engine.fail = lambda _: None


@pytest.fixture
async def runtime(open_runtime: Open) -> DockerRuntime:
    return await open_runtime()


@pytest.fixture
def spec(tmp_path: Path) -> SandboxSpec:
    HostDirectories(tmp_path).files("w").mkdir(parents=True)
    return SandboxSpec("w", Limits(cpus=64.0))


@pytest.fixture
async def sandbox(runtime: DockerRuntime, spec: SandboxSpec) -> DockerSandbox:
    return await runtime.create(spec)


async def ended(sandbox: DockerSandbox) -> ExitStatus:
    async with asyncio.timeout(PATIENCE):
        return await sandbox.wait()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - the engine's threads change it
            await asyncio.sleep(0.01)


def stale(instance: str = "here", workspace: str = "w", launch: str = "t") -> Container:
    """Return a container that an earlier server made and did not start."""
    labels = {INSTANCE_LABEL: instance, WORKSPACE_LABEL: workspace, LAUNCH_LABEL: launch}
    return Container(f"kernelbridge-here-{workspace}", {"Labels": labels, "HostConfig": {"Mounts": []}})


async def test_a_program_runs_in_a_container_that_is_removed_in_the_end(
    engine: HostEngine, sandbox: DockerSandbox, tmp_path: Path
) -> None:
    process = await sandbox.exec(["sh", "-c", "echo out; exit 3"], cwd=str(tmp_path))
    assert await process.read() == b"out\n"
    assert await process.wait() == ExitStatus(code=3)
    shared = sandbox.shared.host
    await sandbox.destroy()
    await sandbox.destroy()
    assert await ended(sandbox) == KILLED
    assert (engine.containers, shared.exists(), sandbox.alive) == ({}, False, False)
    assert sum(asked.startswith("DELETE /containers") and sandbox.id in asked for asked in engine.asked) == 1


async def test_a_container_has_no_more_processors_than_the_machine(engine: HostEngine, sandbox: DockerSandbox) -> None:
    assert sandbox.alive
    assert engine.only.config["HostConfig"]["NanoCpus"] == 2_000_000_000
    assert engine.only.config["Hostname"] == sandbox.facts.env["HOSTNAME"]


async def test_the_profile_is_only_for_an_engine_that_filters_system_calls(
    engine: HostEngine, open_runtime: Open, spec: SandboxSpec, tmp_path: Path
) -> None:
    (tmp_path / "profile").write_text('{"own": 1}')
    runtime = await open_runtime(profile_file=tmp_path / "profile")
    await runtime.create(spec)
    assert 'seccomp={"own": 1}' in engine.only.config["HostConfig"]["SecurityOpt"]
    await runtime.aclose()
    engine.info["SecurityOptions"] = []
    await (await open_runtime()).create(spec)
    assert engine.only.config["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]


async def test_what_the_engine_ends_is_reported(engine: HostEngine, sandbox: DockerSandbox) -> None:
    await engine.kill(engine.only)
    assert await ended(sandbox) == KILLED


async def test_a_container_that_ran_out_of_memory_says_so(engine: HostEngine, sandbox: DockerSandbox) -> None:
    kills: list[int] = []
    sandbox.watch_memory(lambda: kills.append(sandbox.oom_kills()))
    await engine.event("oom", engine.only)
    await engine.kill(engine.only)
    assert await ended(sandbox) == replace(KILLED, oom=True)
    assert kills == [1]


async def test_a_container_that_somebody_removes_has_ended(engine: HostEngine, sandbox: DockerSandbox) -> None:
    launch = {LAUNCH_LABEL: engine.only.labels[LAUNCH_LABEL]}
    engine.volumes = [{"Name": "own", "Labels": launch}, {"Name": "other", "Labels": {LAUNCH_LABEL: "x"}}]
    await engine.remove(engine.only)
    assert (await ended(sandbox)).signal == signal.SIGKILL
    await engine.until(lambda: len(engine.volumes) == 1)
    assert engine.volumes[0]["Name"] == "other"


async def test_a_lost_agent_ends_the_container(
    engine: HostEngine, sandbox: DockerSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_sandbox, "END_SECONDS", 0.05)
    streams, engine._streams = engine._streams, []  # the engine reports nothing
    process = engine.only.process
    assert process is not None
    process.kill()
    assert await ended(sandbox) == ExitStatus()
    await engine.until(lambda: not engine.containers)
    engine._streams = streams


async def test_a_pause_by_somebody_else_is_undone(engine: HostEngine, sandbox: DockerSandbox) -> None:
    assert sandbox.alive
    engine.only.paused = True
    await engine.event("pause", engine.only)
    await engine.until(lambda: not engine.only.paused)


async def test_memory_is_what_the_engine_counts(engine: HostEngine, sandbox: DockerSandbox) -> None:
    assert await sandbox.memory() == 12345
    engine.stats = {}
    assert await sandbox.memory() is None
    engine.fail = lambda asked: (400, "unknown") if asked.endswith("/stats") else None
    with pytest.raises(SandboxError, match="memory is not known"):
        await sandbox.memory()


# -- removals --------------------------------------------------------------------------


async def test_a_refused_removal_is_retried_until_it_succeeds(engine: HostEngine, sandbox: DockerSandbox) -> None:
    refusals = iter([(500, "busy")] * 3)
    engine.fail = lambda asked: next(refusals, None) if asked.startswith("DELETE /containers") else None
    process = await sandbox.exec(["sleep", "60"], cwd="/")
    with pytest.raises(SandboxError, match="cannot be removed"):
        await sandbox.destroy()
    assert await asyncio.wait_for(process.wait(), PATIENCE) == replace(KILLED, lost=True)
    await engine.until(lambda: not engine.containers)
    assert await ended(sandbox) == KILLED


async def test_what_is_gone_already_counts_as_removed(engine: HostEngine, sandbox: DockerSandbox) -> None:
    engine.fail = lambda asked: (409, "removal is in progress") if asked.startswith("DELETE /containers") else None
    await sandbox.destroy()
    assert not sandbox.alive


async def test_a_closed_runtime_has_removed_everything(
    engine: HostEngine, runtime: DockerRuntime, sandbox: DockerSandbox, spec: SandboxSpec
) -> None:
    engine.volumes = [{"Name": "left", "Labels": {INSTANCE_LABEL: "here"}}]
    await runtime.aclose()
    assert (engine.containers, engine.volumes, sandbox.alive) == ({}, [], False)
    with pytest.raises(SandboxError, match="the server is stopping"):
        await runtime.create(spec)
    await runtime.aclose()


# -- starts ----------------------------------------------------------------------------


async def test_a_container_of_an_earlier_server_is_replaced(
    engine: HostEngine, runtime: DockerRuntime, spec: SandboxSpec
) -> None:
    old = stale()
    engine.containers[old.id] = old
    made = await runtime.create(spec)
    assert list(engine.containers) == [made.id]


@pytest.mark.parametrize("other", [{"instance": "there"}, {"workspace": "v"}])
async def test_a_container_of_somebody_else_is_left_alone(
    engine: HostEngine, runtime: DockerRuntime, spec: SandboxSpec, other: dict[str, str]
) -> None:
    theirs = stale(**other)
    theirs.name = "kernelbridge-here-w"
    engine.containers[theirs.id] = theirs
    with pytest.raises(SandboxError, match="another server's container is called"):
        await runtime.create(spec)
    assert list(engine.containers) == [theirs.id]


async def test_a_workspace_has_one_container(runtime: DockerRuntime, sandbox: DockerSandbox, spec: SandboxSpec) -> None:
    with pytest.raises(SandboxError, match="this workspace already has one"):
        await runtime.create(spec)
    assert sandbox.alive


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ((404, "No such image: sha256:1"), ImageError, "kernelbridge images build"),
        ((404, "no such device"), SandboxError, "no such device"),
        ((500, "bind source path does not exist: /x"), SandboxError, "must have the same absolute path"),
    ],
)
async def test_a_refused_start_leaves_nothing(
    engine: HostEngine, runtime: DockerRuntime, answer: tuple[int, str], error: type[KernelBridgeError], reason: str
) -> None:
    await runtime.prepare()
    engine.fail = lambda asked: answer if asked.endswith("/start") else None
    with pytest.raises(KernelBridgeError) as failed:
        await runtime.create(SandboxSpec("w"))
    assert type(failed.value) is error
    assert reason in str(failed.value.reason)
    left = list((runtime._directories.root / "run").iterdir())
    assert (engine.containers, left) == ({}, [])


async def test_what_a_first_process_said_explains_a_failed_start(
    engine: HostEngine, runtime: DockerRuntime, spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    await runtime.prepare()
    monkeypatch.setattr(Container, "on_host", lambda _self, word: "no/such/file" if word.endswith(".py") else word)
    with pytest.raises(SandboxError, match="could not be started") as failed:
        await runtime.create(spec)
    assert "no/such/file" in str(failed.value.reason)
    assert engine.containers == {}


async def test_a_start_without_an_answer_is_undone_when_the_engine_answers(
    engine: HostEngine, open_runtime: Open, spec: SandboxSpec
) -> None:
    runtime = await open_runtime(call_timeout=1.0)
    await runtime.prepare()
    proceed = engine.held["POST /containers/create"] = asyncio.Event()
    with pytest.raises(RuntimeUnavailable):
        await runtime.create(spec)
    proceed.set()
    await engine.until(lambda: any(asked.startswith("DELETE /containers") for asked in engine.asked[-3:]))
    assert engine.containers == {}


# -- images ----------------------------------------------------------------------------


async def test_an_image_is_tried_once(engine: HostEngine, runtime: DockerRuntime) -> None:
    first = await runtime.prepare()
    tried = engine.asked.count("POST /containers/create")
    assert await runtime.prepare("i") == first
    assert engine.asked.count("POST /containers/create") == tried
    engine.images["i"]["Id"] = "sha256:2"  # the name stands for another one now
    await runtime.prepare()
    assert engine.asked.count("POST /containers/create") == 2 * tried
    assert engine.containers == {}


async def test_an_absent_image_says_how_to_get_it(runtime: DockerRuntime) -> None:
    with pytest.raises(ImageError, match="There is no workspace image 'other'"):
        await runtime.prepare("other")


async def test_an_image_that_cannot_be_looked_up_is_not_absent(engine: HostEngine, runtime: DockerRuntime) -> None:
    engine.fail = lambda asked: (500, "broken") if asked.startswith("GET /images") else None
    with pytest.raises(ImageError, match="cannot be looked up"):
        await runtime.prepare()


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        (None, "it has no python3"),
        ("#!/bin/sh\necho said; echo broken >&2; exit 7", "its python failed with exit code 7: said broken"),
    ],
)
async def test_an_image_whose_python_does_not_serve_says_why(
    engine: HostEngine, runtime: DockerRuntime, tmp_path: Path, python: str | None, reason: str
) -> None:
    (tmp_path / "bin").mkdir()
    if python is not None:
        (tmp_path / "bin/python3").write_text(python)
        (tmp_path / "bin/python3").chmod(0o755)
    engine.images["i"]["Config"]["Env"] = [f"PATH={tmp_path / 'bin'}"]
    with pytest.raises(ImageError) as failed:
        await runtime.prepare()
    assert reason in str(failed.value.reason)
    assert engine.containers == {}


# -- events ----------------------------------------------------------------------------


async def test_what_happened_without_a_stream_is_looked_up(engine: HostEngine, sandbox: DockerSandbox) -> None:
    container = engine.only
    container.oom_killed = True
    streams, engine._streams = engine._streams, []
    await engine.kill(container)
    for _, over in streams:
        over.set()
    assert await ended(sandbox) == replace(KILLED, oom=True)


async def test_a_pause_without_a_stream_is_undone(engine: HostEngine, sandbox: DockerSandbox) -> None:
    assert sandbox.alive
    engine.only.paused = True
    await engine.cut_events()
    await engine.until(lambda: not engine.only.paused)


async def test_streams_are_asked_for_until_there_is_one(engine: HostEngine, sandbox: DockerSandbox) -> None:
    refusals = iter([(503, "starting")] * 2)
    engine.fail = lambda asked: next(refusals, None) if asked == "GET /events" else None
    await engine.cut_events()
    await engine.until(lambda: engine._streams)
    await engine.kill(engine.only)
    assert await ended(sandbox) == KILLED


# -- the next server -------------------------------------------------------------------


async def test_a_kept_container_serves_the_next_server(
    engine: HostEngine, open_runtime: Open, spec: SandboxSpec, tmp_path: Path
) -> None:
    first = await open_runtime()
    sandbox = await first.create(spec)
    sandbox.outlive(60)
    process = await sandbox.exec(["sh", "-c", "read word; echo got $word"], cwd=str(tmp_path), tty=True)
    await first.aclose(keep=True)
    lost = stale(workspace="lost")
    engine.containers[lost.id] = lost
    (tmp_path / "run/docker-lost").mkdir()

    second = await open_runtime()
    known = {name: PreviousSandbox(each, sandbox.facts) for name, each in (("w", sandbox.id), ("lost", lost.id))}
    engine.containers[sandbox.id].paused = True
    adopted = await second.adopt(known)
    assert list(adopted) == ["w"]
    assert not engine.containers[sandbox.id].paused
    taken = await adopted["w"].take(process.id)
    await taken.write(b"it\n")
    assert await asyncio.wait_for(taken.wait(), PATIENCE) == ExitStatus(code=0)
    assert await second.reclaim() == 1
    assert list(engine.containers) == [sandbox.id]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [adopted["w"].shared.host.name]


async def test_a_container_of_another_id_is_not_adopted(
    engine: HostEngine, open_runtime: Open, sandbox: DockerSandbox
) -> None:
    other = await open_runtime()
    assert await other.adopt({"w": PreviousSandbox("another", sandbox.facts)}) == {}
    assert engine.only.status == "running"


# -- opening ---------------------------------------------------------------------------


async def test_the_engine_is_described(engine: HostEngine) -> None:
    about = await probe_engine(engine.client)
    assert (about.available, str(about)) == (True, "Docker Engine 1.2.3 (API 1.43, cgroup v2)")
    assert (about.cpus, about.memory, about.security, about.oci_runtimes) == (
        2,
        1 << 30,
        ("seccomp",),
        ("runc", "crun"),
    )


async def test_an_engine_that_is_away_is_told_with_what_to_do(engine: HostEngine, tmp_path: Path) -> None:
    engine.path = tmp_path / "none"
    about = await probe_engine(engine.client)
    assert not about.available
    assert "start the Docker engine" in about.reason
    with pytest.raises(RuntimeUnavailable, match="does not answer"):
        await DockerRuntime.open(
            image="i", instance="x", directories=HostDirectories(tmp_path), client_factory=engine.client
        )


async def test_an_engine_that_refuses_is_told(engine: HostEngine, open_runtime: Open) -> None:
    engine.fail = lambda asked: (403, "not allowed") if asked == "GET /info" else None
    assert (await probe_engine(engine.client)).reason == "not allowed"
    with pytest.raises(RuntimeUnavailable, match="not allowed"):
        await open_runtime()


async def test_an_engine_that_tells_no_events_is_of_no_use(engine: HostEngine, open_runtime: Open) -> None:
    engine.fail = lambda asked: (500, "no events") if asked == "GET /events" else None
    with pytest.raises(RuntimeUnavailable, match=r"following its events took longer than 0\.3 s"):
        await open_runtime(call_timeout=0.3)


async def test_options_that_cannot_be_used_are_refused(open_runtime: Open, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runtime 'kata'"):
        await open_runtime(oci_runtime="kata")
    with pytest.raises(ConfigError, match="cannot be read"):
        await open_runtime(profile_file=tmp_path / "none")
