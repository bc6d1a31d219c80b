"""The pages cannot drift from the code."""

import runpy
from pathlib import Path

import kernelbridge
from kernelbridge.protocol import json_schema

DOCS = Path(kernelbridge.__file__).parent.parent / "docs"


def test_the_state_diagrams_are_drawn_from_the_tables() -> None:
    script = runpy.run_path(str(DOCS / "make_diagrams.py"))
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert script["rewritten"](page) == page, "run python docs/make_diagrams.py"


def test_every_field_of_the_protocol_is_in_its_reference() -> None:
    page = (DOCS / "protocol.md").read_text(encoding="utf-8")
    for name, definition in json_schema()["$defs"].items():
        for field in definition.get("properties", {}):
            assert field in page, f"{name}.{field}"


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for part in page.read_text(encoding="utf-8").split("](")[1:]:
            target = part.split(")")[0].split("#")[0]
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
