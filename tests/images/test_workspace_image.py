"""The small image of workspaces, on which the others are built, as a sandbox would start it."""

import json

import pytest
from docker import DockerClient, from_env
from packaging.utils import canonicalize_name

from tests.unit.test_locks import locked, on_linux

LOOK = r"""
import json, os, shutil, site, sys
import ipykernel
from importlib.metadata import distributions, version
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "python": ["%d.%d" % sys.version_info[:2], os.uname().machine],
    "versions": {n: version(n) for n in {d.metadata["Name"] for d in distributions()}},
    "venv": sys.prefix != sys.base_prefix,
    "compiled": os.path.exists(ipykernel.__cached__),
    "home": os.path.expanduser("~"),
    "programs": {
        n: bool(shutil.which(n)) for n in ("python", "pip", "git", "curl", "bash", "less", "nano", "ps", "top", "vi")
    },
    "user_site": site.getusersitepackages().startswith("/workspace/"),
    "left": [p for p in ("/tmp/build", "/root/.cache") if os.path.exists(p)],
}))
"""


@pytest.fixture(scope="module")
def look(workspace_image: str) -> dict[str, object]:
    client: DockerClient = from_env()
    try:
        output = client.containers.run(
            workspace_image, ["python3", "-c", LOOK], network_mode="none", read_only=True, remove=True
        )
    finally:
        client.close()
    found: dict[str, object] = json.loads(output)
    return found


def test_the_user_is_not_root(look: dict[str, object]) -> None:
    assert look["user"] == [1000, 100]
    assert look["home"] == "/workspace"


def test_pip_can_install_for_the_user(look: dict[str, object]) -> None:
    assert look["venv"] is False
    assert look["user_site"] is True


def test_packages_are_those_of_the_lock_and_compiled(look: dict[str, object]) -> None:
    """An image that was built before the lock file changed fails here: build it again."""
    python, versions = look["python"], look["versions"]
    assert isinstance(python, list)
    assert isinstance(versions, dict)
    installed = {canonicalize_name(name): version for name, version in versions.items()}
    pins = on_linux(locked("workspace/slim.txt"), *python)
    wanted = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert {name: installed[name] for name in installed.keys() & wanted.keys()} == wanted
    assert installed.keys() - wanted.keys() <= {"pip", "setuptools", "wheel"}
    assert look["compiled"] is True


def test_programs_are_there(look: dict[str, object]) -> None:
    programs = look["programs"]
    assert isinstance(programs, dict)
    assert all(programs.values()), programs


def test_nothing_of_the_build_is_left(look: dict[str, object]) -> None:
    assert look["left"] == []
