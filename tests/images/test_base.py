"""What images are built on. `debootstrap` is replaced by programs small enough to run in every test."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient
from docker.errors import APIError, ImageNotFound
from docker.utils import kwargs_from_env

from kernelbridge.errors import ImageError
from kernelbridge.images.base import AUTO, DEBIAN_BASE, DEBOOTSTRAP, PUBLIC_BASE, make_debian_base, resolve_base

NOWHERE = "registry.invalid/none:1"


class EngineWithoutRegistry(APIClient):
    """The real engine, having only the images in `local` and no registry in reach."""

    def __init__(self, *local: str) -> None:
        super().__init__(version="auto", **kwargs_from_env())
        self.local = set(local)

    def inspect_image(self, image: str) -> dict[str, Any]:
        if image not in self.local:
            raise ImageNotFound(f"No such image: {image}")
        return {"Id": "sha256:0"}

    def pull(self, *_args: Any, **_kwargs: Any) -> Any:
        raise APIError("500", explanation="dial tcp: lookup registry:\n no such host")


def silent(_line: str) -> None:
    pass


def install_debootstrap(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    program = directory / "bin" / "debootstrap"
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def remove_debootstrap(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_an_image_that_is_there_is_taken_without_asking_a_registry() -> None:
    told: list[str] = []
    engine = EngineWithoutRegistry(PUBLIC_BASE, "mine:1")
    assert resolve_base(engine, AUTO, progress=told.append) == PUBLIC_BASE
    assert resolve_base(engine, "mine:1", progress=told.append) == "mine:1"
    assert told == []
    engine.close()


def test_auto_falls_back_to_the_debian_base_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remove_debootstrap(monkeypatch, tmp_path)
    told: list[str] = []
    engine = EngineWithoutRegistry(DEBIAN_BASE)
    assert resolve_base(engine, AUTO, progress=told.append) == DEBIAN_BASE
    assert told[-1] == (
        f"dial tcp: lookup registry: no such host; building on Debian's packages instead ({DEBIAN_BASE})"
    )
    engine.close()


def test_auto_without_any_way_says_which_commands_help(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remove_debootstrap(monkeypatch, tmp_path)
    engine = EngineWithoutRegistry()
    with pytest.raises(ImageError) as caught:
        resolve_base(engine, AUTO, progress=silent)
    assert caught.value.message == f"The base image {PUBLIC_BASE} cannot be pulled"
    assert caught.value.reason == (
        "dial tcp: lookup registry: no such host; make a base from Debian's packages with "
        "`kernelbridge images build --base debootstrap` (debootstrap is not installed: "
        "`apt-get install debootstrap`), or name another image with `kernelbridge images build --base IMAGE`"
    )
    engine.close()


def test_an_explicit_base_never_falls_back(engine: APIClient) -> None:
    with pytest.raises(ImageError) as caught:
        resolve_base(engine, NOWHERE, progress=silent)
    assert caught.value.message == f"The base image {NOWHERE} cannot be pulled"
    assert "registry.invalid" in caught.value.reason
    assert "`kernelbridge images build --base debootstrap`" in caught.value.reason


def test_debootstrap_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remove_debootstrap(monkeypatch, tmp_path)
    engine = EngineWithoutRegistry()
    with pytest.raises(ImageError, match="debootstrap is not installed: `apt-get install debootstrap`"):
        resolve_base(engine, DEBOOTSTRAP, progress=silent)
    engine.close()


def test_debootstrap_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: APIClient) -> None:
    install_debootstrap(monkeypatch, tmp_path, "exit 1\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="debootstrap needs root: run the command with sudo"):
        make_debian_base(engine, progress=silent)


def test_a_debootstrap_that_fails_is_quoted_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: APIClient, new_tag: Callable[[], str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(work))
    install_debootstrap(
        monkeypatch, tmp_path, 'echo "I: Retrieving InRelease"\necho "E: Invalid Release file"\nexit 1\n'
    )
    reference = new_tag()
    with pytest.raises(ImageError) as caught:
        make_debian_base(engine, progress=silent, reference=reference)
    assert caught.value.message == "debootstrap failed with exit code 1"
    assert caught.value.reason.endswith("I: Retrieving InRelease\nE: Invalid Release file")
    assert list(work.iterdir()) == []
    with pytest.raises(ImageNotFound):
        engine.inspect_image(reference)  # type: ignore[no-untyped-call]  # the stubs leave it out


def test_what_debootstrap_makes_becomes_an_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: APIClient, new_tag: Callable[[], str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(work))
    install_debootstrap(
        monkeypatch,
        tmp_path,
        'root=$4\nmkdir -p "$root"/{etc,usr/share/{doc,man,info,locale},var/cache/apt,dev}\n'
        'echo "$@" > "$root/etc/arguments"\n'
        'echo "I: Retrieving a"\necho "I: Retrieving b"\necho "I: Extracting a..."\n',
    )
    told: list[str] = []
    reference = new_tag()
    made = make_debian_base(engine, progress=told.append, mirror="http://mirror.invalid/debian", reference=reference)
    facts = engine.inspect_image(reference)  # type: ignore[no-untyped-call]  # the stubs leave it out
    assert facts["Id"] == made
    assert facts["Config"]["Cmd"] == ["bash"]
    assert "LANG=C.UTF-8" in facts["Config"]["Env"]
    assert told == [f"Making {reference} from Debian's packages", "  retrieved 2 packages"]
    assert list(work.iterdir()) == []
