import asyncio
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError, DockerException

from kernelbridge.errors import ConfigError, ImageError
from kernelbridge.runtimes import docker
from kernelbridge.runtimes.contract import ExitStatus, Limits, SandboxSpec
from kernelbridge.runtimes.docker.engine import EngineInfo, explain
from kernelbridge.runtimes.docker.events import parse_event
from kernelbridge.runtimes.docker.exit_status import OOM_ECHO, OomCount, OomWatch, exit_status
from kernelbridge.runtimes.docker.info import check_oci_runtime, mounts_terminals, start_problem
from kernelbridge.runtimes.docker.spec import (
    DEFAULT_PATH,
    DEFAULT_USER,
    Launch,
    container_name,
    image_facts,
    workspace_mounts,
)

KILLED = ExitStatus(signal=signal.SIGKILL)


def launch(image: dict[str, Any] | None = None, **details: Any) -> Launch:
    inspected = {"Id": "sha256:1", "Config": image}
    defaults = {"instance": "i", "workspace_id": "w", "token": "t", "command": ("/bin/sh",), "user": "1:2"}
    return Launch(**{**defaults, "image": image_facts(inspected), "limits": Limits(), **details})


@pytest.mark.parametrize(
    ("user", "run_as"),
    [
        ("", DEFAULT_USER),
        ("root", DEFAULT_USER),
        ("root:users", DEFAULT_USER),
        ("0", DEFAULT_USER),
        ("0:100", DEFAULT_USER),
        ("000", DEFAULT_USER),
        ("jovyan", "jovyan"),
        ("1001:0", "1001:0"),
        ("10", "10"),
    ],
)
def test_root_is_never_the_user(user: str, run_as: str) -> None:
    assert image_facts({"Id": "x", "Config": {"User": user}}).run_as == run_as


@pytest.mark.parametrize("config", [None, {}, {"Env": None, "Volumes": None, "User": None}])
def test_an_image_may_say_nothing(config: dict[str, Any] | None) -> None:
    facts = image_facts({"Id": "x", "Config": config})
    assert dict(facts.sandbox_env) == {"PATH": DEFAULT_PATH, "HOME": "/workspace"}
    assert facts.volumes == ()


def test_the_images_environment_is_kept_but_for_home() -> None:
    facts = image_facts({"Id": "x", "Config": {"Env": ["PATH=/opt/bin", "HOME=/root", "A=b=c", "EMPTY="]}})
    assert dict(facts.sandbox_env) == {"PATH": "/opt/bin", "HOME": "/workspace", "A": "b=c", "EMPTY": ""}


def test_an_image_of_another_system_is_refused() -> None:
    with pytest.raises(ImageError, match="windows"):
        image_facts({"Id": "x", "Os": "windows"})


def test_declared_volumes_are_limited_and_cannot_hold_programs() -> None:
    volumes: dict[str, Any] = {"/data": {}, "/workspace/": {}, "/tmp": {}}
    tmpfs = launch({"Volumes": volumes}, limits=Limits(tmp=7)).container()["HostConfig"]["Tmpfs"]
    assert sorted(tmpfs) == ["/data", "/tmp"]
    assert "noexec" in tmpfs["/data"]
    assert "size=7" in tmpfs["/data"]
    assert ",exec," in tmpfs["/tmp"]
    assert all("nosuid,nodev" in options for options in tmpfs.values())


def test_a_seccomp_profile_replaces_the_default_one() -> None:
    assert launch().container()["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert launch(seccomp="{}").container()["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true", "seccomp={}"]


def test_the_engine_is_asked_for_little() -> None:
    """Copying files into or out of containers, and `exec` in them, are where engines had most of their faults."""
    room = Path(str(docker.__file__)).parent
    asked = {name for path in room.glob("*.py") for name in re.findall(r"\bapi\.(\w+)\(", path.read_text())}
    assert asked == {
        *("close", "info", "events"),
        *("containers", "create_container_from_config", "start", "inspect_container", "logs", "stats", "unpause"),
        *("remove_container", "inspect_image", "volumes", "remove_volume"),
    }


def test_the_oci_runtime_is_the_engines_own_unless_one_is_named() -> None:
    assert "Runtime" not in launch().container()["HostConfig"]
    assert launch(oci_runtime="runsc").container()["HostConfig"]["Runtime"] == "runsc"


def test_an_oci_runtime_that_the_engine_does_not_have_is_refused() -> None:
    about = EngineInfo(available=True, oci_runtimes=("runc", "runsc"))
    for name in ("runsc", "io.containerd.kata.v2"):
        check_oci_runtime(name, about)
    with pytest.raises(ConfigError, match="no runtime 'kata': it has runc, runsc; add kata to `runtimes` in /etc/doc"):
        check_oci_runtime("kata", about)


@pytest.mark.parametrize(
    ("gpus", "asked"),
    [
        ("all", {"Count": -1}),
        ("2", {"Count": 2}),
        ("device=0", {"DeviceIDs": ["0"]}),
        ("device=GPU-8d1e,1", {"DeviceIDs": ["GPU-8d1e", "1"]}),
    ],
)
def test_gpus_are_asked_for_as_the_engine_s_own_option_does(gpus: str, asked: dict[str, Any]) -> None:
    (request,) = launch(gpus=gpus).container()["HostConfig"]["DeviceRequests"]
    assert request == {"Driver": "", "Capabilities": [["gpu"]], **asked}


def test_no_gpus_are_asked_for_unless_they_are_set() -> None:
    assert "DeviceRequests" not in launch().container()["HostConfig"]


def test_an_engine_without_gpus_is_told_with_what_to_install() -> None:
    reason = start_problem('could not select device driver "" with capabilities: [[gpu]]')
    assert "NVIDIA Container Toolkit" in reason
    assert "leave --gpus out" in reason
    assert start_problem("another reason") == "another reason"


def test_every_limit_is_told_to_the_engine() -> None:
    limits = Limits(memory=100 << 20, cpus=1.5, pids=50, nofile=77, tmp=7 << 20, ptys=9)
    made = launch({"Env": ["OMP_NUM_THREADS=3"]}, limits=limits).container()
    host = made["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["ShmSize"]) == (100 << 20, 100 << 20, 100 << 20)
    assert (host["NanoCpus"], host["PidsLimit"]) == (1_500_000_000, 50)
    ulimits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert ulimits == {name: (most, most) for name, most in limits.rlimits.items()}
    env = dict(item.split("=") for item in made["Env"])
    assert env["HOME"] == "/workspace"
    assert (env["MKL_NUM_THREADS"], env["PYTHON_CPU_COUNT"], "OMP_NUM_THREADS" in env) == ("2", "2", False)
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(host["MaskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(host["ReadonlyPaths"])
    (terminals,) = host["Mounts"]
    assert (terminals["Type"], terminals["Target"]) == ("volume", "/dev/pts")
    assert "max=9" in terminals["VolumeOptions"]["DriverConfig"]["Options"]["o"].split(",")
    assert launch(own_terminals=False).container()["HostConfig"]["Mounts"] == []


def test_a_user_database_is_mounted_where_there_is_one(tmp_path: Path) -> None:
    files, shared, guest = (tmp_path / name for name in ("files", "shared", "guest"))
    spec = SandboxSpec("w")
    assert [mount["Target"] for mount in workspace_mounts(files, shared, guest, spec)] == [
        "/workspace",
        "/run/kernelbridge",
        "/run/kernelbridge-guest",
    ]
    mounts = workspace_mounts(files, shared, guest, replace(spec, texts={"passwd": b"", "group": b""}))
    assert [(mount["Target"], mount["ReadOnly"]) for mount in mounts[2:]] == [
        ("/run/kernelbridge-guest", True),
        ("/etc/passwd", True),
        ("/etc/group", True),
    ]
    assert mounts[3]["Source"] == str(shared / "passwd")


@pytest.mark.parametrize(("security", "mounted"), [((), True), (("seccomp",), True), (("selinux",), False)])
def test_an_engine_with_labels_mounts_no_terminals(security: tuple[str, ...], *, mounted: bool) -> None:
    assert mounts_terminals(EngineInfo(available=True, security=security)) is mounted
    assert not mounts_terminals(EngineInfo(available=True, security=(*security, "rootless")))


def test_users_are_not_mapped_where_the_engine_would() -> None:
    assert "UsernsMode" not in launch().container()["HostConfig"]
    assert launch(userns_remap=True).container()["HostConfig"]["UsernsMode"] == "host"


def test_names_are_short_and_say_whose() -> None:
    assert container_name("ab12", "0123456789abcdef01234567") == "kernelbridge-ab12-0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (0, ExitStatus(code=0)),
        (128, ExitStatus(code=128)),
        (137, KILLED),
        (130, ExitStatus(signal=signal.SIGINT)),
        (192, ExitStatus(signal=64)),
        (193, ExitStatus(code=193)),
        (255, ExitStatus(code=255)),
        (None, ExitStatus()),
    ],
)
def test_exit_codes_stand_for_signals(code: int | None, status: ExitStatus) -> None:
    assert exit_status(code) == status


def test_an_event_is_read() -> None:
    attributes = {"exitCode": "137", "kernelbridge.launch": "t"}
    actor = {"ID": "c", "Attributes": attributes}
    event = parse_event({"Type": "container", "Action": "die", "Actor": actor, "timeNano": 2_500_000_000})
    assert event is not None
    assert (event.action, event.container, event.code, event.at) == ("die", "c", 137, 2.5)
    assert event.labels["kernelbridge.launch"] == "t"


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"Type": "container", "Action": "die"},
        {"Type": "container", "Action": "die", "Actor": None},
        {"Type": "container", "Action": "exec_start: sh", "Actor": {"ID": "c"}},
        {"Type": "network", "Action": "create", "Actor": {"ID": "c"}},
    ],
)
def test_what_is_no_event_of_ours_is_passed_over(raw: dict[str, Any]) -> None:
    assert parse_event(raw) is None


def test_a_strange_exit_code_is_no_code() -> None:
    event = parse_event({"Type": "container", "Action": "die", "Actor": {"ID": "c", "Attributes": {"exitCode": "x"}}})
    assert event is not None
    assert (event.code, event.at) == (None, None)


def test_many_events_of_one_kill_are_one_kill() -> None:
    """Each process that waits for memory during a kill causes an event, also just after the cell has ended."""
    count = OomCount()
    told = [count.event(10.0 + OOM_ECHO * 0.9 * number) for number in range(25)]
    assert (told, count.kills) == ([True] + 24 * [False], 1)
    assert count.event(20.0)
    assert count.event(5.0)  # the engine's clock was set
    assert count.event(None)
    assert count.event(None)
    assert count.kills == 5


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError(13, "Permission denied"), "group `docker`"),
        (FileNotFoundError(2, "No such file or directory"), "start the Docker engine"),
        (ConnectionRefusedError(111, "Connection refused"), "start the Docker engine"),
        (TimeoutError("timed out"), "docker info"),
        (DockerException("odd"), "odd"),
        (APIError("outer", explanation="because\n of this"), "because of this"),
    ],
)
def test_a_failure_is_explained(error: Exception, advice: str) -> None:
    assert advice in explain(error)
    assert "\n" not in explain(error)


async def judged(watch: OomWatch, status: ExitStatus) -> asyncio.Future[ExitStatus]:
    verdict: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    watch.judge(status, verdict.set_result)
    return verdict


async def test_an_out_of_memory_event_may_come_first_or_last() -> None:
    watch = OomWatch()
    early = await judged(watch, KILLED)
    watch.reported()
    late = await judged(watch, KILLED)
    assert early.result() == late.result() == ExitStatus(signal=signal.SIGKILL, oom=True)


async def test_a_kill_without_such_an_event_is_a_kill() -> None:
    assert await (await judged(OomWatch(), KILLED)) == KILLED


@pytest.mark.parametrize("status", [ExitStatus(code=0), ExitStatus(signal=signal.SIGTERM), ExitStatus()])
async def test_other_ends_are_told_at_once(status: ExitStatus) -> None:
    watch = OomWatch()
    watch.reported()
    assert (await judged(watch, status)).result() == status
