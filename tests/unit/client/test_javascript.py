"""The JavaScript client without a server: its own tests, its types, its version, and the page that names all of it."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import kernelbridge
from kernelbridge.client import errors
from tests.client.javascript.agents import CLIENT, node_modules
from tests.unit.test_docs import in_code, reference, rows

PAGE = reference("javascript-client.md")
INSIDE = {
    "adopt",
    "start",
    "ask",
    "notify",
    "reply",
    "abandon",
    "leave",
    "leaveSession",
    "transfers",
    "target",
    "constructor",
}
"""What clients and sessions offer to their own parts."""


def run(*command: str | Path) -> None:
    ran = subprocess.run([str(word) for word in command], cwd=CLIENT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def typescript(project: str, *more: str | Path) -> None:
    run("node", node_modules() / "typescript" / "bin" / "tsc", "--project", CLIENT / project, *more)


@pytest.mark.parametrize("module", sorted(path.name for path in (CLIENT / "tests").glob("*.test.js")))
def test_its_own_tests_pass(module: str) -> None:
    run("node", "--test", CLIENT / "tests" / module)


def test_its_code_has_no_type_errors_and_the_types_are_those_of_the_code(tmp_path: Path) -> None:
    typescript("tsconfig.types.json", "--outDir", tmp_path)
    made, kept = ({path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path, CLIENT / "types"))
    assert made == kept, "run npm run types"


def test_a_program_in_typescript_compiles_in_strict_mode() -> None:
    typescript("tests/tsconfig.json")


def test_the_package_has_the_version_of_the_server_and_no_dependencies() -> None:
    package = json.loads((CLIENT / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((CLIENT / "package-lock.json").read_text(encoding="utf-8"))
    assert (package["name"], package["version"]) == ("kernelbridge", kernelbridge.__version__)
    assert lock["packages"][""]["version"] == kernelbridge.__version__
    assert "dependencies" not in package


def members(name: str, module: str) -> set[str]:
    """Return the public members of a class, by its types."""
    text = (CLIENT / "types" / f"{module}.d.ts").read_text(encoding="utf-8")
    body = text.split(f"export class {name} ")[1].split("\n}")[0]
    return set(re.findall(r"^ {4}(?:readonly |get )?(\w+)[(:?]", body, re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "module"),
    [("Client", "client"), ("Session", "client"), ("Files", "files"), ("Terminal", "terminal")]
    + [(name, "results") for name in ("Result", "CommandResult", "Bundle")],
)
def test_every_method_and_property_is_on_the_page(name: str, module: str) -> None:
    words = {word for text in in_code(PAGE) for word in re.findall(r"\w+", text)}
    found = members(name, module) - INSIDE - {"toString"}
    assert len(found) >= 4
    assert found <= words


def test_every_option_is_in_a_table() -> None:
    text = (CLIENT / "src" / "client.js").read_text(encoding="utf-8")
    options = set(re.findall(r"@property \{.*\} \[(\w+)\]", text))
    assert len(options) > 15
    assert options <= {name for row in rows(PAGE) for name in in_code(row[0])}


def test_both_clients_have_the_same_errors() -> None:
    source = (CLIENT / "src" / "errors.js").read_text(encoding="utf-8")
    found = dict(re.findall(r"^export class (\w+) extends (\w+)", source, re.MULTILINE))
    names = [name for name in kernelbridge.__all__ if issubclass(getattr(kernelbridge, name), errors.ClientError)]
    assert found.pop("KernelBridgeError") == "Error"
    assert found == {name: getattr(kernelbridge, name).__bases__[0].__name__ for name in names}
    table = {in_code(row[0])[0]: row[1] for row in rows(PAGE.split("\n## Errors")[1])[2:]}
    for name in names:
        kind = getattr(kernelbridge, name)
        assert f'code: "{kind.code}"' in source or f'code = "{kind.code}"' in source or name == "RequestRefused"
        if name not in {"ClientError", "RunError", "RequestRefused"}:
            assert in_code(table[name]) == [kind.code]


def test_its_code_is_formatted() -> None:
    run("node", node_modules() / "prettier" / "bin" / "prettier.cjs", "--check", ".")


def test_lines_are_no_longer_than_people_read() -> None:
    paths = [path for folder in ("src", "tests") for path in (CLIENT / folder).glob("*.[jt]s")]
    assert len(paths) > 15
    assert not [f"{path.name}: {line}" for path in paths for line in path.read_text().splitlines() if len(line) > 120]
