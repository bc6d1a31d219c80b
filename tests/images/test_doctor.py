"""The doctor with a real engine: it says of an image what `serve` would say."""

import secrets
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from docker import APIClient

from kernelbridge.config import Settings
from kernelbridge.doctor import Status, check_image, examine, serves
from kernelbridge.errors import ImageError
from kernelbridge.images import ensure_image
from kernelbridge.runtimes.docker import DockerRuntime
from kernelbridge.runtimes.docker_spec import INSTANCE_LABEL

NOWHERE = "registry.invalid/none:1"


async def test_with_an_engine_docker_is_used(tmp_path: Path, workspace_image: str) -> None:
    rows = await examine(Settings(data_dir=tmp_path, port=0, image=workspace_image, cpus=64.0))
    assert [row.check for row in rows] == [
        "engine",
        "image",
        "limits",
        "user",
        "bubblewrap",
        "python",
        "data",
        "disk",
        "port",
    ]
    found = {row.check: row for row in rows}
    assert found["engine"].status is Status.OK
    assert "Docker Engine" in found["engine"].found
    assert found["image"].status is Status.OK
    assert found["limits"].status is Status.WARNING
    assert found["bubblewrap"].found == found["python"].found == "not needed: docker is used"
    assert serves(rows)


async def test_the_look_at_an_image_leaves_nothing_behind(engine: APIClient, workspace_image: str) -> None:
    await check_image(workspace_image)
    instances = [row["Labels"].get(INSTANCE_LABEL, "") for row in engine.containers(all=True)]
    assert not [instance for instance in instances if instance.startswith("doctor-")]


async def test_an_image_that_nobody_can_have_is_a_problem(tmp_path: Path) -> None:
    rows = await examine(Settings(data_dir=tmp_path, port=0, image=NOWHERE))
    with pytest.raises(ImageError) as served:
        ensure_image(NOWHERE)
    row = next(row for row in rows if row.check == "image")
    assert (row.status, row.found) == (Status.PROBLEM, served.value.message)
    assert "check its name" in row.fix
    assert not serves(rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ENV PATH=/nowhere", "no python3"),
        ("USER root\nRUN python3 -m pip uninstall --yes ipykernel\nUSER 1000:100", "no Jupyter kernel"),
    ],
)
async def test_an_unusable_image_is_a_problem_in_the_words_of_serve(
    change: str, said: str, *, tmp_path: Path, engine: APIClient, new_tag: Callable[[], str], workspace_image: str
) -> None:
    reference = new_tag()
    dockerfile = BytesIO(f"FROM {workspace_image}\n{change}\n".encode())
    assert list(engine.build(fileobj=dockerfile, tag=reference, rm=True, forcerm=True))
    runtime = await DockerRuntime.open(image=reference, instance=f"test-{secrets.token_hex(4)}")
    try:
        with pytest.raises(ImageError, match=said) as served:
            await runtime.prepare()
    finally:
        await runtime.aclose()
    rows = await examine(Settings(data_dir=tmp_path, port=0, image=reference))
    row = next(row for row in rows if row.check == "image")
    assert (row.status, row.found, row.fix) == (Status.PROBLEM, served.value.message, served.value.reason)
    assert not serves(rows)
