"""The pages cannot drift from the code."""

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import kernelbridge
from kernelbridge.errors import ConfigError, KernelBridgeError
from kernelbridge.protocol import codec, json_schema
from kernelbridge.server import answers
from tests.unit.test_layers import LAYERS, PURE

DOCS = Path(kernelbridge.__file__).parent.parent / "docs"

PROTOCOL_PAGES = ("protocol.md", "cells.md", "terminals.md", "files.md", "sessions.md")


def test_the_state_diagrams_are_drawn_from_the_tables() -> None:
    script = runpy.run_path(str(DOCS / "make_diagrams.py"))
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    assert script["rewritten"](page) == page, "run python docs/make_diagrams.py"


def test_every_field_of_the_protocol_is_in_its_reference() -> None:
    page = "".join((DOCS / "reference" / name).read_text(encoding="utf-8") for name in PROTOCOL_PAGES)
    for name, definition in json_schema()["$defs"].items():
        for field in definition.get("properties", {}):
            assert field in page, f"{name}.{field}"


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for part in page.read_text(encoding="utf-8").split("](")[1:]:
            target = part.split(")")[0].split("#")[0]
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def codes_of(kind: type[KernelBridgeError]) -> Iterator[str]:
    """Give the codes that a client can meet of one kind of error and those below it."""
    if kind is not ConfigError:  # ends the command, and is never sent
        yield kind.code
    for below in kind.__subclasses__():
        yield from codes_of(below)


def code_literals(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def test_every_code_of_an_error_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "protocol.md").read_text(encoding="utf-8")
    rows = page.split("| `code` | when | `retryable` |")[1].split("\n\n")[0].splitlines()
    documented = {part for row in rows for part in row.split("|")[1:2] for part in part.split("`")[1::2]}
    literals = {code for module in (codec, answers) for code in code_literals(Path(str(module.__file__)))}
    assert {"invalid_json", "frame_too_large"} <= literals
    assert {*codes_of(KernelBridgeError), *literals} == documented


def test_every_room_is_on_the_map_and_the_pure_ones_are_called_so() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Rooms")[1].split("\n## ")[0]
    rows = [row.split("|")[1:4] for row in table.splitlines() if row.startswith("| `")]
    on_the_map = {name.removesuffix("/").removesuffix(".py") for room, _, _ in rows for name in room.split("`")[1::2]}
    assert on_the_map == {room for rooms in LAYERS for room in rooms}
    called_pure = {name for _, _, pure in rows for name in pure.split("`")[1::2]}
    assert called_pure == {path if path.endswith("/") else path.rpartition("/")[2] for path in PURE}
