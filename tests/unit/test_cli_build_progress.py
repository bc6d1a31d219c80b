"""How far a build is, on a terminal and elsewhere."""

import io
import re

from rich.console import Console

from kernelbridge.cli import screen
from kernelbridge.cli.build_progress import BuildProgress
from kernelbridge.images.progress import Counted

LINES = (
    "Building kernelbridge-slim:latest on base",
    Counted("slim 1/4: FROM base", "slim", 0, 4),
    "  Collecting \x1b]52;c;aGFja2Vk\x07",
    Counted("slim 3/4: RUN true", "slim", 2, 4),
    Counted("server 2/2: RUN true", "server", 1, 2),
)


def shown(*, terminal: bool) -> str:
    stream = io.StringIO()
    progress = BuildProgress(Console(file=stream, force_terminal=terminal, width=80, color_system=None))
    for line in LINES:
        progress(line)
        if progress._bar is not None:
            progress._bar.refresh()  # not when it is time
    progress.end()
    progress.end()
    return stream.getvalue()


def test_elsewhere_there_are_lines_only() -> None:
    assert shown(terminal=False).splitlines() == [screen.plain(line) for line in LINES]


def test_a_terminal_shows_a_bar_below_the_lines_and_removes_it() -> None:
    text = shown(terminal=True)
    bars = re.findall(r"(slim|server) [^\n]*?(\d+)% \d:", text)
    assert list(dict.fromkeys(bars)) == [("slim", "0"), ("slim", "50"), ("server", "50")]
    assert [line for line in LINES if screen.plain(line) not in text] == []
    assert "\x1b]52" not in text
    assert text.endswith("\x1b[2K")
