"""Pages that a reader works through: files to save and commands to run, from top to bottom.

A line that ends "as `name`:" saves the block below it under that name. A `console` block has commands, each behind `$ `
and with what it prints, where `…` stands for anything. Every other block is a fault of the page, but for one of `bash`
that activates the environment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"\bas\s+`(?P<name>[\w.-]+)`:\s*\Z")


@dataclass(frozen=True)
class SavedFile:
    """What the reader saves."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """What the reader runs, and what the page says that it prints."""

    line: str
    shown: str


def steps(page: Path) -> Iterator[SavedFile | Command]:
    """Give the steps of a page in their order; raises `ValueError` for a block that nobody would run."""
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        name, body = _NAME.search(text[: block.start()]), block["body"]
        if name is not None:
            yield SavedFile(name["name"], body)
        elif block["kind"] == "console":
            for part in ("\n" + body).split("\n$ ")[1:]:
                line, _, shown = part.partition("\n")
                yield Command(line, shown.strip("\n"))
        elif body != "source .venv/bin/activate\n":
            raise ValueError(f"{page.name}:{text.count(chr(10), 0, block.start()) + 1}")


def prints(shown: str, text: str) -> bool:
    """Whether a command has printed what the page shows."""
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    return re.fullmatch(pattern, text.strip("\n"), re.DOTALL) is not None
