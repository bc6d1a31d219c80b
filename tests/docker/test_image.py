import asyncio
import io
import os
import secrets
import tarfile
from pathlib import Path

import docker
import pytest

from kernelbridge.errors import ImageError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker import image as docker_image
from kernelbridge.runtimes.docker.image import own_user
from tests.contract.docker_fixture import docker_runtime
from tests.contract.driving import run
from tests.docker.conftest import MakeImage, MakeSpec
from tests.docker.faulty_engine import cuttable_wire


async def test_an_absent_image_says_which_command_helps(new_spec: MakeSpec, directories: HostDirectories) -> None:
    async with docker_runtime("kernelbridge-no-such-image:latest", directories=directories) as runtime:
        with pytest.raises(ImageError, match="kernelbridge images build") as caught:
            await runtime.prepare()
        assert "kernelbridge-no-such-image:latest" in caught.value.message
        with pytest.raises(ImageError, match="kernelbridge images build"):
            await runtime.create(new_spec())


async def test_an_image_without_python(derived_image: MakeImage) -> None:
    async with docker_runtime(derived_image("ENV PATH=/nowhere")) as runtime:
        with pytest.raises(ImageError, match="no python3"):
            await runtime.prepare()


async def test_an_image_whose_python_only_a_kernelspec_names(
    client: docker.DockerClient, workspace_image: str, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    name = f"kernelbridge-test-{secrets.token_hex(4)}"
    hide = (
        "set -e; spec=$(find / -xdev -path '*/kernels/*/kernel.json' 2>/dev/null | head -1);"
        " mkdir -p /usr/share/jupyter/kernels/python3;"
        ' sed "s|"python"|"$(readlink -f $(command -v python3))"|" "$spec" >/tmp/kernel.json;'
        " mv /tmp/kernel.json /usr/share/jupyter/kernels/python3/kernel.json"
    )
    container = client.api.create_container(workspace_image, ["sh", "-c", hide], user="root", entrypoint=[])["Id"]
    client.api.start(container)
    assert client.api.wait(container)["StatusCode"] == 0, client.api.logs(container)
    client.api.commit(container, name, "latest", changes="ENV PATH=/nowhere")
    client.api.remove_container(container)
    try:
        async with docker_runtime(f"{name}:latest", directories=directories) as runtime:
            sandbox = await runtime.create(new_spec())
            assert (await run(sandbox, "/bin/echo", "lives")).output == "lives\n"
    finally:
        client.api.remove_image(f"{name}:latest", force=True)


async def test_an_image_without_a_shell(client: docker.DockerClient) -> None:
    name = f"kernelbridge-test-{secrets.token_hex(4)}"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    client.api.import_image_from_data(content.getvalue(), repository=name, tag="latest")
    try:
        async with docker_runtime(f"{name}:latest") as runtime:
            with pytest.raises(ImageError, match="/bin/sh"):
                await runtime.prepare()
    finally:
        client.api.remove_image(f"{name}:latest")


async def test_an_image_whose_python_is_broken(derived_image: MakeImage) -> None:
    async with docker_runtime(derived_image("ENV PYTHONHOME=/nowhere")) as runtime:
        with pytest.raises(ImageError, match="its python failed"):
            await runtime.prepare()


async def test_an_image_with_an_unknown_user(derived_image: MakeImage) -> None:
    async with docker_runtime(derived_image("USER nobody-knows")) as runtime:
        with pytest.raises(ImageError, match="nobody-knows"):
            await runtime.prepare()


@pytest.mark.parametrize(
    ("user", "uid", "gid"), [("root", 1000, 100), ("0:0", 1000, 100), ("nobody", 65534, 65534), ("1234:55", 1234, 55)]
)
async def test_the_user_is_the_images_own_unless_root(
    *, derived_image: MakeImage, new_spec: MakeSpec, directories: HostDirectories, user: str, uid: int, gid: int
) -> None:
    async with docker_runtime(derived_image(f"USER {user}", "ENV KIND=derived"), directories=directories) as runtime:
        facts = await runtime.prepare()
        assert (facts.uid, facts.gid, facts.env["KIND"]) == (uid, gid, "derived")
        sandbox = await runtime.create(new_spec(uid, gid))
        assert (await run(sandbox, "sh", "-c", "id -u; id -g; echo $KIND")).output == f"{uid}\n{gid}\nderived\n"


async def test_an_images_programs_do_not_start_by_themselves(
    derived_image: MakeImage, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    image = derived_image('ENTRYPOINT ["/bin/false"]', 'CMD ["nothing"]', "HEALTHCHECK CMD touch /workspace/checked")
    async with docker_runtime(image, directories=directories) as runtime:
        sandbox = await runtime.create(new_spec())
        assert (await run(sandbox, "ls", "/workspace")).output == ""


async def test_a_name_that_moves_to_another_image_is_followed(
    derived_image: MakeImage, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    name = f"kernelbridge-test-{secrets.token_hex(4)}"
    image = derived_image("ENV EDITION=one", name=name)
    async with docker_runtime(image, directories=directories) as runtime:
        first = await runtime.create(new_spec())
        derived_image("ENV EDITION=two", name=name)
        second = await runtime.create(new_spec())
        assert (first.facts.env["EDITION"], second.facts.env["EDITION"]) == ("one", "two")
        assert (await run(second, "sh", "-c", "echo $EDITION")).output == "two\n"


async def test_containers_of_a_server_that_is_not_root_run_as_the_server(
    workspace_image: str, monkeypatch: pytest.MonkeyPatch, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    """Or neither could open what the other makes."""
    monkeypatch.setattr(docker_image, "own_user", lambda _uid, _gid: own_user(1234, 5678))
    async with docker_runtime(workspace_image, directories=directories) as runtime:
        facts = await runtime.prepare()
        assert (facts.uid, facts.gid) == (1234, 5678)
        sandbox = await runtime.create(new_spec(uid=1234, gid=5678))
        ran = await run(sandbox, "sh", "-c", "id -u; id -g; touch ~/f && echo made")
        assert (ran.output, ran.status.code) == ("1234\n5678\nmade\n", 0)
    assert own_user(0, 0) is None


@pytest.mark.parametrize("request_line", [rb"POST .*/containers/create", rb"POST .*/containers/\w+/start"])
async def test_who_stops_while_an_image_is_tried_leaves_no_container(
    tmp_path: Path, workspace_image: str, request_line: bytes
) -> None:
    async with (
        cuttable_wire(tmp_path / "wire") as wire,
        docker_runtime(workspace_image, client_factory=wire.factory) as r,
    ):
        wire.hold(request_line)
        preparing = asyncio.create_task(r.prepare())
        await wire.held.get()
        preparing.cancel()
        wire.release()
        with pytest.raises(asyncio.CancelledError):
            await preparing


async def test_an_image_that_only_its_own_user_can_run_keeps_it(
    client: docker.DockerClient, workspace_image: str, derived_image: MakeImage
) -> None:
    closed = "mkdir -m 700 /own && cp $(readlink -f $(command -v python3)) /own/python3 && chown -R 1234:55 /own"
    base = f"kernelbridge-test-{secrets.token_hex(4)}"
    container = client.api.create_container(workspace_image, ["sh", "-c", closed], user="root", entrypoint=[])["Id"]
    client.api.start(container)
    assert client.api.wait(container)["StatusCode"] == 0
    changes = 'ENV PATH="/own:/usr/local/bin:/usr/bin:/bin"\nUSER 1234:55'
    client.api.commit(container, base, "latest", changes=changes)
    client.api.remove_container(container)
    try:
        async with docker_runtime(f"{base}:latest", own_uid=2_000_000) as runtime:
            facts = await runtime.prepare()
            assert (facts.uid, facts.gid, facts.any_uid) == (1234, 55, False)
        async with docker_runtime(derived_image("USER 1234:55"), own_uid=2_000_000) as runtime:
            facts = await runtime.prepare()
            assert (facts.uid, facts.gid, facts.any_uid) == (1234, 55, os.geteuid() == 0)
    finally:
        client.api.remove_image(f"{base}:latest", force=True)
