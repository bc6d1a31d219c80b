"""The default workspace image as a sandbox would start it."""

import json

import pytest
from docker import DockerClient, from_env

LOOK = r"""
import json, os, shutil, site, sys
import ipykernel
from importlib.metadata import version
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "versions": {n: version(n) for n in ("ipykernel", "numpy", "pandas", "matplotlib", "requests")},
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


def test_packages_are_there_and_compiled(look: dict[str, object]) -> None:
    versions = look["versions"]
    assert isinstance(versions, dict)
    assert tuple(int(part) for part in versions["ipykernel"].split(".")[:2]) >= (7, 4)
    assert look["compiled"] is True


def test_programs_are_there(look: dict[str, object]) -> None:
    programs = look["programs"]
    assert isinstance(programs, dict)
    assert all(programs.values()), programs


def test_nothing_of_the_build_is_left(look: dict[str, object]) -> None:
    assert look["left"] == []
