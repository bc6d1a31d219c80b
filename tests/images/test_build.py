"""Real builds of small Dockerfiles on an image of workspaces."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from docker import APIClient

from kernelbridge.errors import ImageError, RuntimeUnavailable
from kernelbridge.images import build as module
from kernelbridge.images.build import KNOWN, KnownImage, build, build_context, ensure_image, image_exists
from kernelbridge.images.context import workspace_context
from tests.unit.test_cli_process import run

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"


def known(reference: str) -> KnownImage:
    return KnownImage("small", reference, "for this test", workspace_context)


def test_a_build_tells_its_steps(
    engine: APIClient, workspace_image: str, new_tag: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\nRUN test -w .\n")
    told: list[str] = []
    reference = new_tag()
    build_context(
        engine, known(reference), workspace_context(directory=tmp_path), base=workspace_image, progress=told.append
    )
    assert told == [
        f"Building {reference} on {workspace_image}",
        "small 1/3: ARG BASE",
        "small 2/3: FROM ${BASE}",
        "small 3/3: RUN test -w .",
    ]
    assert image_exists(reference)
    assert ensure_image(reference).startswith("sha256:")


def test_a_failing_step_is_named_with_its_last_lines(
    engine: APIClient, workspace_image: str, new_tag: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\nRUN echo one; echo two >&2; exit 7\n")
    reference = new_tag()
    with pytest.raises(ImageError) as caught:
        build_context(engine, known(reference), workspace_context(directory=tmp_path), base=workspace_image)
    assert "step 3 of 3, RUN echo one" in caught.value.message
    assert "returned a non-zero code: 7" in caught.value.reason
    assert {"one", "two"} <= set(caught.value.reason.splitlines())
    assert not image_exists(reference)


def test_of_a_dockerfile_only_the_wanted_stage_is_built(
    engine: APIClient, workspace_image: str, new_tag: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        "ARG BASE\nFROM ${BASE} AS small\nENV STAGE=small\nFROM small AS large\nENV STAGE=large\nRUN exit 7\n"
    )
    image = replace(known(new_tag()), target="small")
    build_context(engine, image, workspace_context(directory=tmp_path), base=workspace_image)
    built = engine.inspect_image(image.reference)  # type: ignore[no-untyped-call]
    assert "STAGE=small" in built["Config"]["Env"]


def test_a_broken_dockerfile_is_refused_in_the_engine_s_words(
    engine: APIClient, workspace_image: str, new_tag: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FORM nothing\n")
    with pytest.raises(ImageError, match=r"(?i)unknown instruction: FORM"):
        build_context(engine, known(new_tag()), workspace_context(directory=tmp_path), base=workspace_image)


@pytest.mark.parametrize("given", [True, False])
def test_the_bundle_is_optional_in_a_dockerfile(
    engine: APIClient, workspace_image: str, new_tag: Callable[[], str], tmp_path: Path, *, given: bool
) -> None:
    bundle = tmp_path / "company.pem"
    bundle.write_text(CERTIFICATE)
    directory = tmp_path / "context"
    directory.mkdir()
    (directory / "requirements.txt").write_text("")
    (directory / "Dockerfile").write_text(
        "ARG BASE\nFROM ${BASE}\nCOPY requirements.txt ca-bundle.cr[t] /tmp/build/\n"
        f"RUN test {'-s' if given else '! -e'} /tmp/build/ca-bundle.crt\n"
    )
    reference = new_tag()
    context = workspace_context(bundle if given else None, directory=directory)
    build_context(engine, known(reference), context, base=workspace_image)
    assert image_exists(reference)


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(
        ImageError,
        match="There is no image called 'worksapce': the images are: base, slim, workspace, datascience-r, server",
    ):
        build(["workspace", "worksapce"])


def test_a_missing_bundle_is_told_before_anything_is_built(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(ImageError, match="cannot be read"):
        build(["base", "workspace"], ca_bundle=tmp_path / "nowhere.pem", progress=told.append)
    assert told == []


def test_an_image_that_is_nowhere_is_told() -> None:
    with pytest.raises(ImageError, match=r"registry\.invalid/none:1 is not on the engine and cannot be pulled"):
        ensure_image("registry.invalid/none:1")


@pytest.mark.parametrize("removed", [False, True])
def test_an_absent_image_of_somebody_else_is_pulled(monkeypatch: pytest.MonkeyPatch, *, removed: bool) -> None:
    engine: list[str] = []

    def pull(_engine: object, reference: str, _progress: object) -> None:
        engine.append(reference)

    monkeypatch.setattr(module, "pull", pull)
    monkeypatch.setattr(
        module, "inspect", lambda _engine, name: {"Id": "7"} if name in engine and not removed else None
    )
    if removed:
        with pytest.raises(ImageError, match="removed meanwhile"):
            ensure_image("alpine:1")
    else:
        assert ensure_image("alpine:1") == "7"
    assert engine == ["alpine:1"]


def test_an_absent_known_image_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "inspect", lambda _engine, _reference: None)
    with pytest.raises(ImageError, match=r"The base image registry\.invalid/none:1 cannot be pulled"):
        ensure_image("kernelbridge-workspace", base="registry.invalid/none:1")


def test_an_engine_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(
        RuntimeUnavailable,
        match=r"does not answer: unix://.*none\.sock \(from DOCKER_HOST\): .*No such file.*; start it",
    ):
        image_exists("kernelbridge-workspace")


def test_the_list_of_images() -> None:
    done = run("images", "list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(KNOWN)


def test_the_list_for_programs(workspace_image: str) -> None:
    done = run("images", "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = {image["name"]: image for image in json.loads(done.stdout)["images"]}
    assert list(listed) == list(KNOWN)
    assert listed["slim"]["reference"] == workspace_image
    assert listed["slim"]["id"].startswith("sha256:")
    assert listed["slim"]["size"] > 100 << 20
    assert all(image["summary"] for image in listed.values())
