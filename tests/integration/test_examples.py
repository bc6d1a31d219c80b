"""Every conversation in the documentation happens exactly so."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

import kernelbridge
from tests.integration.conftest import RunningServer, StartServer
from tests.integration.conversations import Conversation, Curls, conversations, curls, mismatch
from tests.integration.driving import PATIENCE

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""

PAGES = Path(kernelbridge.__file__).parent.parent / "docs"
FOUND = tuple(conversations(PAGES))
CURLS = tuple(curls(PAGES / "reference"))


@pytest.mark.parametrize("conversation", FOUND, ids=str)
async def test_conversation(server: RunningServer, conversation: Conversation) -> None:
    async with server.connect("reader") as client:
        for step, (mark, frame) in enumerate(conversation.steps, 1):
            if mark == "→":
                await client.send(**frame)
            else:
                found = await client.receive()
                assert mismatch(frame, found) is None, f"step {step}: {mismatch(frame, found)}\n{found}"


@pytest.mark.parametrize("block", CURLS, ids=str)
async def test_curl(server: RunningServer, block: Curls, tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail\n")
    (tmp_path / "data.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "new.csv").write_text("a,b\n5,6\n")
    here = server.url.replace("ws://", "http://").removesuffix("/ws")
    for command, shown in block.steps:
        words = ("bash", "-c", command.replace("http://localhost:8001", here))
        env = {**os.environ, "CURL_HOME": str(tmp_path)}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        assert process.returncode == 0, f"{command}\n{err.decode()}"
        expected = re.sub(r'("size": )[0-9]+', r"\1…", shown).split("…")
        pattern = ".*".join(map(re.escape, expected))
        assert not shown or re.fullmatch(pattern, out.decode().strip(), re.DOTALL), f"{command}\n{out.decode()}"


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_the_programs_of_the_readme(start_server: StartServer, tmp_path: Path) -> None:
    """As they stand there, but for the port; an error that comes instead of an answer is told."""
    server = await start_server()  # of its own: the program says which user it is
    readme = (PAGES.parent / "README.md").read_text(encoding="utf-8")
    client, program = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    program = program.replace("ws://localhost:8001/ws", server.url)

    async def run(text: str) -> tuple[int | None, str, str]:
        (tmp_path / "hello.py").write_text(text)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(tmp_path / "hello.py"), stdout=pipe, stderr=pipe
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    code, shown, told = await run(client.replace("ws://localhost:8001", server.url))
    assert (code, told) == (0, "")
    assert shown.startswith("42\n\ntotal ")
    code, shown, told = await run(program)
    assert (code, told) == (0, "")
    assert "\n42\n" in shown
    code, shown, told = await run(program.replace("my-workspace", "my/workspace"))
    assert code == 1
    assert told == "The field 'sessionId' is wrong: expected 1-128 characters of letters, digits, '.', '_', '-'\n"
    large = program.replace("print(x + 1)", "print('x' * 9_000_000)")
    code, shown, told = await run(large)
    assert (code, told) == (0, "")
    assert "x" * 9_000_000 in shown
    # In JavaScript, from the checkout, with the WebSocket that newer versions of Node have.
    script = re.findall(r"^```javascript\n(import .*?)^```$", readme, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "clients").symlink_to(PAGES.parent / "clients")
    (tmp_path / "hello.mjs").write_text(script.replace("ws://localhost:8001", server.url))
    socket = f"{PAGES.parent}/clients/javascript/node_modules/ws/wrapper.mjs"
    (tmp_path / "newer.mjs").write_text(f"import WebSocket from '{socket}'; globalThis.WebSocket ??= WebSocket;\n")
    command = ("node", "--import", f"{tmp_path}/newer.mjs", f"{tmp_path}/hello.mjs")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert (process.returncode, out.decode(), err.decode()) == (0, "42\n\n", "")


def test_there_are_conversations() -> None:
    assert FOUND
    assert len(CURLS) > 1


def test_a_frame_that_is_not_as_described_is_noticed() -> None:
    assert mismatch({"a": "x…z", "seq": 1}, {"a": "xyz", "seq": 7}) is None
    assert mismatch({"a": 1, "…": "…"}, {"a": 1, "b": 2}) is None
    assert mismatch({"a": 1}, {"a": 1, "b": 2}) == " also has ['b']"
    assert mismatch({"a": 1}, {}) == " lacks ['a']"
    assert mismatch({"a": [{"b": True}]}, {"a": [{"b": 1}]}) == ".a[0].b is 1 and not True"
    assert mismatch({"a": "x…"}, {"a": "yx"}) == ".a is 'yx' and not 'x…'"
    assert mismatch({"a": [1]}, {"a": []}) == ".a has 0 items and not 1"
