"""The package without extras is the client, and its command says what is missing."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import kernelbridge

CONNECT = """
from kernelbridge import Client, ConnectionLost
try:
    Client("ws://127.0.0.1:9").connect()
except ConnectionLost as exc:
    print(type(exc).__name__)
"""


def needed(name: str, found: set[str]) -> Iterator[metadata.Distribution]:
    """Yield what a distribution needs without extras, and what that needs."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        holds = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if holds and requirement.name not in found:
            found.add(requirement.name)
            yield metadata.distribution(requirement.name)
            yield from needed(requirement.name, found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what `pip install kernelbridge` would bring, and no more."""
    made = tmp_path_factory.mktemp("site")
    (made / "kernelbridge").symlink_to(Path(kernelbridge.__file__).parent)
    for distribution in needed("kernelbridge", set()):
        for top in {path.parts[0] for path in distribution.files or [] if path.parts[0] != ".."}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (made / top).exists():
                (made / top).symlink_to(source)
    assert not (made / "click").exists()
    return made


def run(site: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that finds the standard library and `site` only."""
    program = f"import sys; sys.path.append({str(site)!r})\n{program}"
    command = (sys.executable, "-I", "-S", "-c", program, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_client_needs_no_extra(site: Path) -> None:
    ran = run(site, CONNECT)
    assert (ran.stdout, ran.returncode) == ("ConnectionLost\n", 0), ran.stderr


@pytest.mark.parametrize("arguments", [["serve"], ["--help"], []])
def test_the_command_says_what_to_install(site: Path, arguments: list[str]) -> None:
    ran = run(site, "from kernelbridge.__main__ import main; sys.exit(main(sys.argv[1:]))", *arguments)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.endswith("which is not installed here: pip install 'kernelbridge[server]'\n")


def test_a_part_of_the_server_is_missed_in_a_sentence_too(site: Path) -> None:
    ran = run(site, "sys.modules['click'] = None; from kernelbridge.cli import main; sys.exit(main(['serve']))")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)


def test_all_other_extras_include_the_server() -> None:
    requirements = [Requirement(text) for text in metadata.requires("kernelbridge") or []]

    def brought(extra: str) -> set[str]:
        return {each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})}

    assert brought("") == brought("client") == {"aiohttp"}
    assert brought("server") > {"aiohttp", "click", "docker", "ipykernel"}
    for extra in ("workspace", "test", "dev"):
        assert brought(extra) > brought("server")
