"""What the site has besides the pages: the README, the changelog and the examples, Markdown copies, and llms.txt.

The pages are written for people who read them as files. So they link to files outside `docs/`, which have other places
on the site, and indent lists as CommonMark does and Python-Markdown does not. Both is changed here. Pages about the
same in two languages get tabs.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).parents[2]
PROGRAMS = sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("examples/*.py"))
OUTSIDE = {"README.md": "start.md", **{name: name for name in ("CHANGELOG.md", "examples/README.md", *PROGRAMS)}}
"""Files of the checkout that are part of the site, and where. Its own README.md is the map of the documentation."""
CLIENTS = {"how-to/python-client.md": "Python", "how-to/javascript-client.md": "JavaScript"}
"""Pages about the same things in several languages. Sections of one title are tabs of one section on each of them."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
ITEM = re.compile(r"- |\d+\. ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside."""
    for name, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(CHECKOUT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Make Markdown for HTML of the Markdown for readers."""
    if page.file.src_uri == "examples/README.md":
        programs = ((Path(name).name, (CHECKOUT / name).read_text(encoding="utf-8")) for name in PROGRAMS)
        markdown += "".join(f"\n## {name}\n\n```python\n{text}```\n" for name, text in programs)
    markdown = relinked(markdown, page.file.src_uri)
    write(config, page.file.src_uri, markdown)  # for programs that read Markdown, beside the HTML
    markdown = indented(markdown)
    own = CLIENTS.get(page.file.src_uri)
    if own is not None:
        for place, language in CLIENTS.items():
            if language != own:
                other = relinked((CHECKOUT / "docs" / place).read_text(encoding="utf-8"), place)
                markdown = paired(own, markdown, language, indented(other))
    return markdown


def relinked(markdown: str, place: str) -> str:
    """Change links between `docs/` and what is outside. `place` is where the page is on the site."""
    here = next((name for name, there in OUTSIDE.items() if there == place), join("docs", place))

    def moved(found: re.Match[str]) -> str:
        target = normpath(join(dirname(here), found[1]))
        if here.startswith("docs/") and target.startswith("docs/"):
            return found[1]
        return relpath(OUTSIDE.get(target, target.removeprefix("docs/")), dirname(place) or ".")

    return LINK.sub(moved, markdown)


def indented(markdown: str) -> str:
    """Indent what belongs to a list's item by four columns, as Python-Markdown wants it."""
    lines, width, in_code = [], 0, False
    for line in markdown.split("\n"):
        if line.startswith("```"):
            in_code, width = not in_code, 0
        elif not in_code and (item := ITEM.match(line)):
            width = len(item[0])
        elif width and line.startswith(" " * width):
            line = "    " + line[width:]  # noqa: PLW2901
        elif line:
            width = 0
        lines.append(line)
    return "\n".join(lines)


def paired(language: str, markdown: str, other_language: str, other: str) -> str:
    """Make tabs of the sections that both pages have; one in both languages is easier to find than two pages."""
    theirs = dict(sections(other))
    parts = []
    for title, body in sections(markdown):
        if title in theirs and title:
            tabs = ((language, body), (other_language, theirs[title]))
            body = "".join(f'\n=== "{name}"\n\n{textwrap.indent(text.strip(), "    ")}\n' for name, text in tabs) + "\n"  # noqa: PLW2901
        parts.append(f"## {title}\n{body}" if title else body)
    return "".join(parts)


def sections(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each section of the second level; the first has no title."""
    title, lines, in_code = "", list[str](), False
    for line in markdown.splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if line.startswith("## ") and not in_code:
            yield title, "".join(lines)
            title, lines = line.removeprefix("## ").strip(), []
        else:
            lines.append(line)
    yield title, "".join(lines)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Say in the HTML where the Markdown is."""
    markdown = Path(page.file.src_uri).name
    return output.replace("</head>", f'<link rel="alternate" type="text/markdown" href="{markdown}"></head>', 1)


def on_nav(nav: Navigation, config: MkDocsConfig, **_: object) -> None:
    """Keep the order of the pages for `on_post_build`."""
    config.extra["sections"] = nav.items


def on_post_build(config: MkDocsConfig) -> None:
    """List all pages, with what each is about, for programs that read Markdown (https://llmstxt.org)."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    for section in config.extra["sections"]:
        if isinstance(section, Section):
            lines += ["", f"## {section.title}", "", *listed(section)]
    write(config, "llms.txt", "\n".join(lines) + "\n")


def listed(section: Section) -> list[str]:
    """Return a line for each page of a section and of those in it."""
    lines = []
    for child in section.children:
        if isinstance(child, Page):
            lines.append(f"- [{child.title}]({child.file.src_uri}): {first_sentence(child.markdown or '')}")
        elif isinstance(child, Section):
            lines += listed(child)
    return lines


def first_sentence(markdown: str) -> str:
    """Return what a page says of itself: the first sentence below its title, without links."""
    paragraphs = [part for part in markdown.split("\n\n") if re.match(r"[\w`\[*\"]", part)]
    text = " ".join((paragraphs or [""])[0].split())
    return re.sub(r"\[([^\]]*)\][\[(][^\])]*[\])]", r"\1", re.split(r"(?<=\.)\s", text)[0].rstrip(":"))


def write(config: MkDocsConfig, name: str, text: str) -> None:
    """Write a file of the site."""
    path = Path(config.site_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
