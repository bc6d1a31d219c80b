"""The pages that a reader works through do what they show, with the program that is installed."""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import kernelbridge
from tests.integration.driving import PATIENCE
from tests.integration.lessons import Command, SavedFile, prints, steps

DOCS = Path(kernelbridge.__file__).parent.parent / "docs"
PAGES = (
    *sorted((DOCS / "tutorial").glob("*.md")),
    DOCS / "how-to" / "llm-tool.md",
    DOCS / "how-to" / "python-client.md",
    DOCS / "how-to" / "javascript-client.md",
)
CLIENT = DOCS.parent / "clients" / "javascript"
SERVE = "kernelbridge serve"
ADDRESS = "localhost:8001"


@asynccontextmanager
async def serving(line: str, directory: Path) -> AsyncIterator[tuple[str, str]]:
    """Run the command that starts the server; give its address and what it has printed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KERNELBRIDGE_")},
        "KERNELBRIDGE_RUNTIME": "local",
        "KERNELBRIDGE_PORT": "0",
        "KERNELBRIDGE_DATA_DIR": str(directory / "data"),
    }
    words = (sys.executable, "-m", *shlex.split(line))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, cwd=directory, env=environment, stdout=pipe)
    assert process.stdout is not None
    try:
        screen = ""
        async with asyncio.timeout(PATIENCE):
            while "Stop it" not in screen:
                screen += (read := await process.stdout.readline()).decode()
                assert read, f"the server ended:\n{screen}"
        found = re.search(r"ws://127\.0\.0\.1:(\d+)/ws", screen)
        assert found is not None
        yield f"localhost:{found[1]}", screen
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_a_page_is_worked_through(page: Path, tmp_path: Path) -> None:
    todo = list(steps(page))
    starts = [step.line for step in todo if isinstance(step, Command) and step.line.startswith(SERVE)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail\n")
    if page.name == "javascript-client.md":  # what `npm install` brings
        (tmp_path / "node_modules").mkdir()
        (tmp_path / "node_modules" / "kernelbridge").symlink_to(CLIENT)
        (tmp_path / "node_modules" / "ws").symlink_to(CLIENT / "node_modules" / "ws")
    async with serving(starts[0] if starts else SERVE, tmp_path) as (address, screen):
        for step in todo:
            if isinstance(step, SavedFile):
                (tmp_path / step.name).write_text(step.text.replace(ADDRESS, address))
                continue
            if step.line.startswith(SERVE):
                assert prints(step.shown, screen.replace(address.partition(":")[2], "8001")), screen
                continue
            line = step.line.replace(ADDRESS, address)
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *("bash", "-c", line),
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "CURL_HOME": str(tmp_path)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
            )
            async with asyncio.timeout(PATIENCE):
                out, err = await process.communicate()
            assert process.returncode == 0, f"{line}\n{err.decode()}"
            assert prints(step.shown, out.decode()), f"{line}\n{out.decode()}"
    if page.name == "notebook-day.md":
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_steps_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Save it as `a.py`:\n\n```python\nx = 1\n```\n\n```console\n$ one\nA\nB\n$ two\n```\n")
    assert list(steps(page)) == [SavedFile("a.py", "x = 1\n"), Command("one", "A\nB"), Command("two", "")]
    page.write_text("Then:\n\n```python\nnobody runs this\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:3"):
        list(steps(page))
    assert prints("a …\nz", "a b\nc\nz\n")
    assert not prints("a", "a\nb\n")
