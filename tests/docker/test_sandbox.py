import os
import re

import docker
import pytest

from kernelbridge import __version__
from kernelbridge.errors import ConfigError, ImageError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL
from tests.contract.docker_fixture import docker_runtime, volumes
from tests.contract.driving import run
from tests.docker.conftest import MakeImage, MakeSpec

MIB = 1 << 20


async def test_labels_name_and_log_limits(
    runtime: DockerRuntime, client: docker.DockerClient, new_spec: MakeSpec
) -> None:
    spec = new_spec()
    sandbox = await runtime.create(spec)
    inspected = client.api.inspect_container(sandbox.id)
    labels = inspected["Config"]["Labels"]
    assert labels["kernelbridge"] == __version__
    assert re.fullmatch(r"test-[0-9a-f]{8}", labels["kernelbridge.instance"])
    assert labels["kernelbridge.workspace"] == spec.workspace_id
    instance = labels["kernelbridge.instance"]
    assert inspected["Name"] == f"/kernelbridge-{instance}-{spec.workspace_id}"
    assert inspected["HostConfig"]["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "1m", "max-file": "1"},
    }
    await sandbox.destroy()


async def test_the_engine_was_told_every_restriction(client: docker.DockerClient, sandbox: DockerSandbox) -> None:
    inspected = client.api.inspect_container(sandbox.id)
    host = inspected["HostConfig"]
    assert not host["Privileged"]
    assert not host["Devices"]
    assert not host["PublishAllPorts"]
    assert not host["CapAdd"]
    assert host["CapDrop"] == ["ALL"]
    assert (host["NetworkMode"], host["IpcMode"], host["PidMode"]) == ("none", "private", "")
    assert host["ReadonlyRootfs"]
    assert host["Memory"] == host["MemorySwap"] == 1 << 30
    assert sorted(mount["Destination"] for mount in inspected["Mounts"]) == [
        "/dev/pts",
        "/run/kernelbridge",
        "/run/kernelbridge-guest",
        "/workspace",
    ]
    assert inspected["Config"]["Healthcheck"] == {"Test": ["NONE"]}


async def test_another_oci_runtime_runs_it(
    client: docker.DockerClient, workspace_image: str, directories: HostDirectories, new_spec: MakeSpec
) -> None:
    # Another name of the usual one, which every engine knows.
    name = "io.containerd.runc.v2"
    async with docker_runtime(workspace_image, directories=directories, oci_runtime=name) as runtime:
        assert runtime.info.detail.endswith(f", containers run by {name}")
        sandbox = await runtime.create(new_spec())
        assert client.api.inspect_container(sandbox.id)["HostConfig"]["Runtime"] == name
        assert (await run(sandbox, "echo", "up")).output == "up\n"
    with pytest.raises(ConfigError, match="the Docker engine has no runtime 'absent'"):
        await DockerRuntime.open(image=workspace_image, instance="x", directories=directories, oci_runtime="absent")


async def test_gpus_are_asked_of_the_engine(workspace_image: str, directories: HostDirectories) -> None:
    """For one that no machine has: the refusal is the engine's, whether it knows GPUs or not."""
    async with docker_runtime(workspace_image, directories=directories, gpus="device=absent") as runtime:
        with pytest.raises(ImageError, match=r"cannot be used.*(device driver|absent)"):
            await runtime.prepare()


async def test_limits_hold_inside(runtime: DockerRuntime, new_spec: MakeSpec) -> None:
    sandbox = await runtime.create(new_spec(memory=96 * MIB, cpus=0.5, pids=37, tmp=5 * MIB))
    script = """
    cd /sys/fs/cgroup
    cat memory/memory.limit_in_bytes memory.max 2>/dev/null
    cat pids/pids.max pids.max 2>/dev/null
    cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 cpu.max
    df -k /tmp | tail -1 | awk '{print $2}'
    """
    assert (await run(sandbox, "sh", "-c", script)).output.split() == [str(96 * MIB), "37", "50000", str(5 * 1024)]
    await sandbox.destroy()


async def test_more_processors_than_there_are_is_all_of_them(runtime: DockerRuntime, new_spec: MakeSpec) -> None:
    sandbox = await runtime.create(new_spec(cpus=4096.0))
    assert (await run(sandbox, "true")).status.code == 0
    await sandbox.destroy()


async def test_who_and_where(sandbox: DockerSandbox) -> None:
    ran = await run(sandbox, "sh", "-c", "id -u; id -g; id -G; hostname; pwd; echo $HOME")
    assert ran.output.split("\n")[:6] == ["1000", "100", "100", "workspace", "/workspace", "/workspace"]


async def test_the_environment_is_the_images_and_no_more(sandbox: DockerSandbox) -> None:
    ran = await run(sandbox, "/usr/bin/env")
    seen = dict(line.split("=", 1) for line in ran.output.splitlines())
    shell_own = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert {name: value for name, value in seen.items() if name not in shell_own} == {
        **sandbox.facts.env,
        "HOSTNAME": "workspace",
    }


async def test_a_session_finds_no_setuid_program(sandbox: DockerSandbox) -> None:
    ran = await run(
        sandbox, "sh", "-c", "find / -path /proc -prune -o -type f -perm /6000 -print 2>/dev/null; echo done"
    )
    assert ran.output == "done\n"


async def test_what_can_be_written_is_limited_in_size(sandbox: DockerSandbox) -> None:
    lines = (await run(sandbox, "cat", "/proc/mounts")).output.splitlines()
    mounts = {fields[1]: fields[3].split(",") for fields in (line.split() for line in lines)}
    assert "ro" in mounts["/"]
    assert {"rw", "nosuid", "nodev"} <= set(mounts["/tmp"])
    assert "noexec" not in mounts["/tmp"]
    assert {"nosuid", "nodev", "noexec", f"size={1 << 20}k"} <= set(mounts["/dev/shm"])
    assert {"nosuid", "noexec", "max=24", "mode=620", "ptmxmode=666"} <= set(mounts["/dev/pts"])
    found = await run(sandbox, "sh", "-c", "find / -xdev -writable ! -type l -print 2>/dev/null; echo done")
    shared = [] if os.geteuid() == 0 else ["/run/kernelbridge"]  # then the sandbox has the server's user
    assert sorted(found.output.splitlines()) == [*shared, "/tmp", "/workspace", "done"]


async def test_a_declared_volume_is_no_way_to_the_disk(
    derived_image: MakeImage, client: docker.DockerClient, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    async with docker_runtime(derived_image("VOLUME /var/data"), directories=directories) as runtime:
        sandbox = await runtime.create(new_spec(tmp=MIB))
        assert "tmpfs /var/data" in (await run(sandbox, "cat", "/proc/mounts")).output
        mounts = client.api.inspect_container(sandbox.id)["Mounts"]
        assert [mount["Destination"] for mount in mounts if mount["Type"] == "volume"] == ["/dev/pts"]


async def test_the_first_process_is_the_agent(sandbox: DockerSandbox) -> None:
    ran = await run(
        sandbox, "sh", "-c", "cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l; touch /run/kernelbridge-guest/x"
    )
    agent, count, *refusal = ran.output.split()
    assert agent == "kb-agent"
    assert int(count) <= 6
    assert "Read-only" in refusal


async def test_no_volume_outlives_its_container(
    runtime: DockerRuntime, client: docker.DockerClient, new_spec: MakeSpec
) -> None:
    """Also if somebody else removes it, and does not ask the engine to remove its volumes."""
    sandbox, other = await runtime.create(new_spec()), await runtime.create(new_spec())
    labels = client.api.inspect_container(sandbox.id)["Config"]["Labels"]
    instance = labels[INSTANCE_LABEL]
    assert len(volumes(instance)) == 2
    await other.destroy()
    assert len(volumes(instance)) == 1
    client.api.remove_container(sandbox.id, force=True)
    await sandbox.wait()
    client.api.create_volume(labels={INSTANCE_LABEL: instance})
    foreign = client.api.create_volume(labels={INSTANCE_LABEL: f"{instance}0"})["Name"]
    try:
        await runtime.reclaim()
        assert volumes(instance) == []
        assert volumes(f"{instance}0") == [foreign]
    finally:
        client.api.remove_volume(foreign)


async def test_the_agent_counts_what_was_killed_because_memory_was_exhausted(
    runtime: DockerRuntime, new_spec: MakeSpec
) -> None:
    sandbox = await runtime.create(new_spec(memory=96 * MIB))
    process = await sandbox.exec(["sleep", "1000"])
    before = await process.moment()
    await run(sandbox, "python3", "-c", "bytearray(1 << 20)")
    assert (await process.moment()).oom_kills == before.oom_kills
    await run(sandbox, "python3", "-c", "bytearray(200 << 20)")
    assert (await process.moment()).oom_kills == before.oom_kills + 1
    await sandbox.destroy()
