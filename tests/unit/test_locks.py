"""The lock files of the images against what they were made from. Nothing here asks a package index."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]
IMAGES = CHECKOUT / "images"
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def inputs(name: str) -> list[str]:
    """Return the requirements of an input file, without its options."""
    lines = (IMAGES / "workspace" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "--"))]


WANTED: dict[str, list[str]] = {
    "workspace/slim.txt": inputs("slim.in"),
    "workspace/workspace.txt": [*inputs("slim.in"), *inputs("workspace.in")],
    "server/requirements.txt": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["server"],
    ],
    "server/build-requirements.txt": PROJECT["build-system"]["requires"],
}
"""The requirements from which each lock file was made."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


def locked(lock: str) -> dict[str, list[str]]:
    """Return the requirements of a lock file, each with its hashes."""
    text = (IMAGES / lock).read_text(encoding="utf-8")
    lines = re.sub(r"#.*", "", text.replace("\\\n", "")).splitlines()
    assert "--only-binary :all:" in lines
    entries = [line.split("--hash=") for line in lines if line.strip() and not line.startswith("--only-binary")]
    return {requirement.strip(): [found.strip() for found in hashes] for requirement, *hashes in entries}


def on_linux(requirements: Iterable[str], python: str, machine: str) -> list[Requirement]:
    """Return the requirements that hold there."""
    environment = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    parsed = [Requirement(requirement) for requirement in requirements]
    return [found for found in parsed if found.marker is None or found.marker.evaluate(environment)]


@pytest.mark.parametrize("lock", WANTED)
def test_every_package_has_one_version_and_hashes(lock: str) -> None:
    entries = locked(lock)
    assert entries
    for requirement, hashes in entries.items():
        assert re.fullmatch(r"==[0-9][^*,]*", str(Requirement(requirement).specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", found) for found in hashes), requirement


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", WANTED)
def test_a_lock_has_what_is_wanted(lock: str, python: str, machine: str) -> None:
    pins = on_linux(locked(lock), python, machine)
    by_name = {canonicalize_name(pin.name): pin for pin in pins}
    assert len(by_name) == len(pins), "a package has two versions"
    for wanted in on_linux(WANTED[lock], python, machine):
        advice = f"{lock} does not fit {wanted}: run images/lock.sh"
        pin = by_name.get(canonicalize_name(wanted.name))
        assert pin is not None, advice
        assert wanted.specifier.contains(str(pin.specifier).removeprefix("=="), prereleases=True), advice
        assert wanted.extras <= pin.extras, advice


def test_the_default_image_adds_to_the_small_one() -> None:
    """With another version, the layer on top would have a package a second time."""
    small, large = locked("workspace/slim.txt"), locked("workspace/workspace.txt")
    assert small.items() <= large.items()
    assert len(large) > len(small)
