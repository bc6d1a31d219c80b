"""`kernelbridge images doctor` says of an image what its users would find out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from docker import APIClient

from kernelbridge.cli import image_doctor
from kernelbridge.doctor import Row, Status
from kernelbridge.images import build
from kernelbridge.images.build import KnownImage, build_context
from kernelbridge.images.context import workspace_context
from tests.unit.test_cli_process import run

Make = Callable[[str], str]

BROKEN_KERNEL = '{"argv": ["python3", "-c", "raise SystemExit(7)"], "display_name": "Broken", "language": "broken"}'


@pytest.fixture
def make(engine: APIClient, workspace_image: str, new_tag: Callable[[], str], tmp_path: Path) -> Make:
    """Build an image with the steps of a Dockerfile."""

    def made(steps: str) -> str:
        (tmp_path / "Dockerfile").write_text(f"ARG BASE\n{steps}")
        image = KnownImage("broken", new_tag(), "for this test", workspace_context)
        build_context(engine, image, workspace_context(directory=tmp_path), base=workspace_image)
        return image.reference

    return made


async def examined(reference: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Row]:
    monkeypatch.setenv("KERNELBRIDGE_EGRESS", "none")
    return {row.check: row for row in await image_doctor.examine(reference, lambda _: None)}


def test_an_image_that_works(workspace_image: str) -> None:
    done = run("images", "doctor", workspace_image, "--json", environ={"KERNELBRIDGE_EGRESS": "none"})
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["image"], report["ok"]) == (workspace_image, True)
    assert {check["check"]: check["status"] for check in report["checks"]} == {
        **dict.fromkeys(("image", "python", "kernelspecs", "kernel python3", "plot python3"), "ok"),
        **dict.fromkeys(("user", "shell", "terminal", "pip"), "ok"),
        "downloads": "warning",  # the network is off
    }


async def test_what_an_image_lacks_is_said_with_what_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = "/usr/local/share/jupyter/kernels/broken"
    reference = make(
        "FROM ${BASE}\nUSER 0\n"
        "RUN printf '#!/bin/sh\\nyes' > /usr/local/bin/stty && chmod +x /usr/local/bin/stty\n"
        f"RUN mkdir -p {kernel} && echo '{BROKEN_KERNEL}' > {kernel}/kernel.json && rm \"$(command -v pip)\"\n"
        "RUN rm -r \"$(python3 -c 'import matplotlib; print(matplotlib.__path__[0])')\"\nUSER 1000:100\n"
    )
    found = await examined(reference, monkeypatch)
    assert found["kernel python3"].status is Status.OK
    for check, part in (
        ("kernel broken", "7"),
        ("plot python3", "No module named 'matplotlib'"),
        ("pip", "pip: command not found"),
    ):
        assert found[check].status is Status.WARNING, check
        assert part in found[check].found + found[check].fix
        assert found[check].fix
    assert found["terminal"].status is Status.PROBLEM
    assert 400 < len(found["terminal"].found) < 600  # of what its stty writes without end


async def test_our_own_images_have_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "image_exists", lambda _: False)
    (row,) = await image_doctor.examine("slim", lambda _: None)
    assert (row.found, row.fix) == ("kernelbridge-slim:latest is absent", "`kernelbridge images build slim`")


async def test_an_image_without_a_kernel_is_a_problem(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = "RUN pip uninstall --yes ipykernel && rm -rf /usr/local/share/jupyter /usr/share/jupyter\n"
    found = await examined(make(f"FROM ${{BASE}}\nUSER 0\n{remove}USER 1000:100\n"), monkeypatch)
    assert list(found) == ["image"]
    assert found["image"].status is Status.PROBLEM
    assert "no Jupyter kernel" in found["image"].found
    assert "pip install ipykernel" in found["image"].fix


def test_an_image_without_python_is_a_problem(make: Make) -> None:
    done = run("images", "doctor", make("FROM scratch\nCOPY Dockerfile /\n"))
    assert done.returncode == 1
    assert "problem" in done.stdout
    assert done.stdout.endswith("does not work.\n")


@pytest.mark.parametrize(
    ("name", "found"), [("registry.invalid/none:1", "cannot be pulled"), ("No Name", "invalid reference format")]
)
async def test_an_image_that_cannot_be_had_is_a_problem(name: str, found: str) -> None:
    (row,) = await image_doctor.examine(name, lambda _: None)
    assert row.status is Status.PROBLEM
    assert found in row.found + row.fix
    assert "stopped answering" not in row.found
