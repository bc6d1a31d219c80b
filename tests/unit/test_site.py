"""The documentation as a site: built whole, with all that it needs, and for programs that read Markdown."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_docs import DOCS, PAGES

HOOKS: dict[str, Any] = runpy.run_path(str(DOCS / "site" / "hooks.py"))
LOADS = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"|url\(["']?(http[^)]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = ("mkdocs", "build", "--strict", "-f", str(DOCS / "site" / "mkdocs.yml"), "--site-dir", str(target))
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def place(page: Path) -> str:
    """Return where a page is on the site."""
    name = str(page.relative_to(DOCS.parent))
    return str(HOOKS["OUTSIDE"].get(name, name.removeprefix("docs/")))


def test_every_page_is_there_as_html_and_as_markdown(site: Path) -> None:
    for page in PAGES:
        markdown = site / place(page)
        html = markdown.with_name("index.html") if markdown.name == "README.md" else markdown.with_suffix(".html")
        assert markdown.is_file(), page
        text = html.read_text(encoding="utf-8")
        assert f'<link rel="alternate" type="text/markdown" href="{markdown.name}">' in text
        assert f'href="{os.path.relpath(html, site)}"' in (site / "index.html").read_text(encoding="utf-8")


def test_links_of_the_markdown_lead_to_markdown(site: Path) -> None:
    copies = list(site.rglob("*.md"))
    assert len(copies) > len(PAGES)  # with the list of examples
    for copy in copies:
        for target in re.findall(r"\]\(([^)\s#:]+\.\w+)(?:#[^)]*)?\)", copy.read_text(encoding="utf-8")):
            assert (copy.parent / target).is_file(), f"{copy.relative_to(site)}: {target}"


def test_programs_find_all_pages(site: Path) -> None:
    text = (site / "llms.txt").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[.+?\]\(([^)]+)\): \S.*$", text, re.MULTILINE)
    assert sorted(listed) == sorted(str(copy.relative_to(site)) for copy in site.rglob("*.md"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    loaded = {target for file in files for found in LOADS.findall(file.read_text(encoding="utf-8")) for target in found}
    assert any(target.endswith(".js") for target in loaded)
    assert not [target for target in loaded if "//" in target and not target.startswith("http://www.w3.org/2000/svg")]
    assert (site / "search" / "search_index.json").is_file()


def test_the_examples_are_on_their_page(site: Path) -> None:
    page = (site / "examples" / "index.html").read_text(encoding="utf-8")
    for program in (DOCS.parent / "examples").glob("*.py"):
        assert f'id="{program.name.replace(".", "")}"' in page


def test_links_outside_are_changed_and_others_are_not() -> None:
    relinked = HOOKS["relinked"]
    text = "[a](../README.md#x) [b](../../README.md#run-it) [c](https://x/y) [d](#e) [f](../../examples/grade.py)"
    there = "[a](../README.md#x) [b](../start.md#run-it) [c](https://x/y) [d](#e) [f](../examples/grade.py)"
    assert relinked(text, "how-to/page.md") == there
    assert (
        relinked("[a](docs/reference/cli.md) [b](CHANGELOG.md)", "start.md")
        == "[a](reference/cli.md) [b](CHANGELOG.md)"
    )


def test_what_belongs_to_an_item_is_indented() -> None:
    item = "1. One\n   more\n\n   ```bash\n   x\n     y\n   ```\n- a\n  - b\n"
    wide = "1. One\n    more\n\n    ```bash\n    x\n      y\n    ```\n- a\n    - b\n"
    others = "\nno\n   more\n```\n- code\n  code\n```"
    assert HOOKS["indented"](item + others) == wide + others


@pytest.mark.parametrize(("page", "own", "other"), [("python", "py", "mjs"), ("javascript", "mjs", "py")])
def test_sections_of_both_clients_are_tabs(site: Path, page: str, own: str, other: str) -> None:
    text = (site / "how-to" / f"{page}-client.html").read_text(encoding="utf-8")
    assert text.count('class="tabbed-set') == 4
    for name in ("errors", "ask", "transfer", "terminal"):
        assert 0 < text.index(f"<code>{name}.{own}</code>") < text.index(f"<code>{name}.{other}</code>")
    assert f"<code>hello.{other}</code>" not in text  # that is on its own page
    assert f"ask.{other}" not in (site / "how-to" / f"{page}-client.md").read_text(encoding="utf-8")


def test_a_section_in_two_languages_becomes_tabs_and_others_stay() -> None:
    one = "# A\n\nx\n\n## Both\n\n- a\n\n```python\n## Both\n```\n\n## Mine\n\nm\n"
    two = "# B\n\n## Both\n\nother\n\n## Theirs\n"
    both = '=== "P"\n\n    - a\n\n    ```python\n    ## Both\n    ```\n\n=== "J"\n\n    other\n'
    assert HOOKS["paired"]("P", one, "J", two) == f"# A\n\nx\n\n## Both\n\n{both}\n## Mine\n\nm\n"
