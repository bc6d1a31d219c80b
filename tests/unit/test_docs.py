"""The pages cannot drift from the code."""

import ast
import re
import runpy
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import get_args

import click
import pytest

import kernelbridge
from kernelbridge.cli.entry import commands
from kernelbridge.cli.options import SettingFlag
from kernelbridge.client.errors import ClientError
from kernelbridge.errors import ConfigError, KernelBridgeError
from kernelbridge.protocol import codec, json_schema
from kernelbridge.protocol.messages import ClientMessage, ServerMessage
from kernelbridge.server.websocket import connection, socket
from kernelbridge.settings.settings import OPTIONS, SERVER, WORKSPACE, Settings
from kernelbridge.settings.sources import flag_name
from tests.unit.test_layers import LAYERS

PACKAGE = Path(kernelbridge.__file__).parent
DOCS = PACKAGE.parent / "docs"
PAGES = (*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md")

PROTOCOL_PAGES = ("protocol.md", "cells.md", "terminals.md", "files.md", "sessions.md")
WIDTH = 120
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return str(page.relative_to(DOCS.parent))


def reference(name: str) -> str:
    return (DOCS / "reference" / name).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the tables in a text, headings included."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def in_code(text: str) -> list[str]:
    return text.split("`")[1::2]


def test_the_state_diagrams_are_drawn_from_the_tables() -> None:
    script = runpy.run_path(str(DOCS / "make_diagrams.py"))
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    assert script["rewritten"](page) == page, "run python docs/make_diagrams.py"


def test_every_field_of_the_protocol_is_in_its_reference() -> None:
    page = "".join(reference(name) for name in PROTOCOL_PAGES)
    for name, definition in json_schema()["$defs"].items():
        for field in definition.get("properties", {}):
            assert field in page, f"{name}.{field}"


def tags(messages: object) -> set[str]:
    return {str(message.__struct_config__.tag) for message in get_args(messages)}


def test_every_message_is_in_the_one_table_of_messages() -> None:
    tables = reference("protocol.md").split("## All messages")[1].split("\n## ")[0]
    requests, events = (rows(part) for part in tables.split("Instead of its answer"))
    assert sorted(in_code(row[0])[0] for row in requests[2:]) == sorted(tags(ClientMessage))
    answered = {name for row in requests[2:] for cell in row[1:] for name in in_code(cell)} - {"watch"}
    assert answered | {in_code(row[0])[0] for row in events[2:]} | {"error"} == tags(ServerMessage)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for line in FENCE.sub("", page.read_text(encoding="utf-8")).splitlines():
        if heading := re.match(r"#+ (.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def links(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_an_anchor_is_made_as_github_makes_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b_c` → d, e\n```\n# no heading\n```\n## Same\n## Same\n[x](#gone)\n")
    assert anchors(page) == {"a-b_c--d-e", "same", "same-1"}
    assert links(page) == ["#gone"]


def test_every_page_is_on_the_map() -> None:
    there = {(DOCS / target.partition("#")[0]).resolve() for target in links(DOCS / "README.md")}
    decisions = DOCS / "explanation" / "decisions"
    there |= {(decisions / target.partition("#")[0]).resolve() for target in links(decisions / "README.md")}
    assert {page for page in PAGES if page.is_relative_to(DOCS)} - there == {DOCS / "README.md"}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_lines_are_no_longer_than_people_read(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    # One command, which is copied whole.
    long = [line for line in lines if len(line) > WIDTH and not line.startswith("$ $(command -v sudo)")]
    assert not long


def kinds_of(kind: type[KernelBridgeError]) -> Iterator[type[KernelBridgeError]]:
    """Yield a kind of error and those below it, except those that the server never sends."""
    if kind is ClientError:
        return
    if kind is not ConfigError:  # ends the command
        yield kind
    for below in kind.__subclasses__():
        yield from kinds_of(below)


def code_literals(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def test_every_code_of_an_error_is_in_the_reference() -> None:
    page = reference("errors.md")
    documented = {in_code(code)[0]: retryable for code, _, retryable in rows(page)[2:]}
    retryable = {kind.code: "yes" if kind.retryable else "no" for kind in kinds_of(KernelBridgeError)}
    literals = {code for module in (codec, connection, socket) for code in code_literals(Path(str(module.__file__)))}
    assert {"invalid_json", "frame_too_large"} <= literals
    assert documented == {**dict.fromkeys(literals, "no"), **retryable}
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == list(documented), "one section for each, in this order"


def written(value: float | None, unit: str) -> str:
    """Write a default as the page of limits does."""
    if value is None:
        return "none"
    units = {"SIZE": ((1 << 30, "GiB"), (1 << 20, "MiB")), "DURATION": ((3600, "h"), (60, "min"), (1, "s"))}
    for size, name in units.get(unit, ()):
        if value >= size:
            return f"{value / size:g} {name}"
    return f"{value:g}"


def test_every_limit_that_can_be_set_is_in_the_reference_with_its_default() -> None:
    found = {in_code(row[2])[0]: row[1] for row in rows(reference("limits.md")) if len(row) == 4 and in_code(row[2])}
    defaults = Settings(data_dir=Path("/"), config=None)
    limits = [name for name, option in OPTIONS.items() if option.group in {WORKSPACE, SERVER}]
    assert len(limits) > 10
    assert {flag_name(name) for name in limits} <= found.keys()
    for name, option in OPTIONS.items():
        if flag_name(name) in found:
            value = written(getattr(defaults, name), option.kind.metavar)
            shown = found[flag_name(name)].replace(",", "")
            assert re.match(rf"{re.escape(value)}\b", shown), f"{name}: {value}"


def test_every_command_and_its_options_are_on_the_page_of_the_command_line() -> None:
    page = reference("cli.md")

    def check(name: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for below, each in command.commands.items():
                check(f"{name} {below}".strip(), each)
            return
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for param in command.params:
            if isinstance(param, click.Option) and (name.startswith("images") or not isinstance(param, SettingFlag)):
                assert re.search(rf"`{param.opts[-1]}[ `]", section), f"{name} {param.opts[-1]}"

    check("", commands)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_settings_on_the_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    for name in ("serve", "doctor"):
        known = {option for param in commands.commands[name].params for option in param.opts + param.secondary_opts}
        for line in re.findall(rf"\bkernelbridge {name}\b([^`\n]*)", text):
            assert set(re.findall(r"(?<=\s)--[a-z-]+", line)) <= known, line
    for block in re.findall(r"^ *```toml\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        assert tomllib.loads(dedent(block)).keys() <= OPTIONS.keys()


def source_texts() -> str:
    """Return all texts in the code, without their computed parts."""
    nodes = (node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return "\0".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_every_message_that_troubleshooting_explains_is_one_of_the_code() -> None:
    page = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    messages = [text for heading in headings for text in in_code(heading) if text[0] in "…T" or "… " in text]
    events = [in_code(row[0])[0] for row in rows(page)[2:]]
    assert len(messages) > 15
    assert len(events) > 5
    texts = source_texts()
    for message in [*messages, *events]:
        for part in message.split("…"):
            assert part.strip(" ") in texts, message


def test_every_room_is_on_the_map() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    table = [name for row in rows(page.split("## Rooms")[1].split("\n## ")[0])[2:] for name in in_code(row[0])]
    dotted = [name.removesuffix("/").removesuffix(".py").replace("/", ".") for name in table]
    assert sorted(dotted) == sorted(room for layer in LAYERS for room in layer)


def test_every_module_that_keeps_users_apart_is_on_the_map() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    found = []
    for row in rows(page.split("\n## Modules")[1].split("\n## ")[0])[2:]:
        first, *others = in_code(row[0])
        found += [first, *(f"{first.partition('/')[0]}/{name}" for name in others)]
    rooms = ("identity", "egress", "disk", "audit", "server")
    modules = [f"{room}/{path.name}" for room in rooms for path in (PACKAGE / room).glob("*.py")]
    assert sorted(found) == sorted(name for name in modules if not name.endswith("__init__.py"))


EXPLANATION = sorted((DOCS / "explanation").rglob("*.md"))
IN_PACKAGE = {path.name for path in PACKAGE.iterdir() if path.is_dir()}


@pytest.mark.parametrize("page", [*EXPLANATION, DOCS / "CONTRIBUTING.md", DOCS / "security.md"], ids=named)
def test_modules_and_rooms_that_a_page_names_exist(page: Path) -> None:
    """A path is written from the package, or from the top for `docs`, `images`, `kernelbridge` and `tests`."""
    for name in in_code(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path = name.rstrip("/")
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", path) and (path.endswith(".py") or path.split("/")[0] in IN_PACKAGE):
            assert (PACKAGE / path).exists() or (PACKAGE.parent / path).exists(), name


def functions(module: Path) -> set[str]:
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


SHOWN = (DOCS / "explanation" / "reliability.md", DOCS / "security.md")
"""Pages whose sections are promises, each with the tests that show it."""


def promises(page: Path) -> dict[str, str]:
    """Return the section of each fault or attack, by its heading."""
    sections = re.findall(r"^### (.*)\n((?:(?!##).*\n)*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(sections)


@pytest.mark.parametrize("page", SHOWN, ids=named)
def test_each_promise_names_the_tests_that_show_it(page: Path) -> None:
    assert len(promises(page)) > 20
    for title, body in promises(page).items():
        shown = body.partition("\nShown by ")[2].partition("\n\n")[0]
        module, found = Path(), 0
        for name in in_code(shown):
            if name.endswith(".py"):
                module = PACKAGE.parent / name
            else:
                assert name in functions(module), f"{title}: {module.name} has no {name}"
                found += 1
        assert found, title


@pytest.mark.parametrize("page", SHOWN, ids=named)
def test_the_table_of_faults_or_attacks_leads_to_each_promise(page: Path) -> None:
    there = {target.removeprefix("#") for target in links(page) if target.startswith("#")}
    found = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in promises(page)}
    assert not found - there
