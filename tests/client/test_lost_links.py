"""A connection that breaks: what was sent is asked for and never sent again, and what is lost is said."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelbridge import (
    AsyncClient,
    AsyncSession,
    ConnectionLost,
    OutcomeUnknown,
    Output,
    SessionLost,
)
from kernelbridge.client.terminal import AsyncTerminal
from tests.client.servers import PATIENCE, ServerProcess, Wire, until, until_error

FLAGS = {"journal_size": "2k"}
"""Few answers are kept, so that a test can push one out."""

GATED = """\
open('runs', 'a').write('x'); print('begun', flush=True)
import os, time
while not os.path.exists('go'): time.sleep(0.01)
print('done')
"""
"""A cell that notes each run, and ends when there is a file `go`."""


@pytest.fixture
async def broken(wire: Wire, user: str) -> AsyncIterator[AsyncSession]:
    """The session `s` of the user, over the wire."""
    async with AsyncClient(wire.url, user_id=user, reconnect=PATIENCE) as client:
        yield client.session("s", linger=60)


class Begun:
    """Set by the first output of a run."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.text = ""

    def __call__(self, output: Output) -> None:
        self.text += output.text
        self._event.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self._event.wait(), PATIENCE)


async def begin(session: AsyncSession, code: str = GATED) -> tuple["asyncio.Task[str]", Begun]:
    """Start a run, and return it when it has begun."""
    begun = Begun()

    async def run() -> str:
        return (await session.run(code, on_output=begun)).text

    task = asyncio.create_task(run())
    await begun.wait()
    return task, begun


async def queued(session: AsyncSession, cells: int) -> bool:
    return int((await session.info())["queuedCells"]) >= cells


async def typed(terminal: AsyncTerminal, text: str) -> bool:
    """Type into a terminal that may have no connection at the moment."""
    try:
        await terminal.write(text)
    except ConnectionLost:
        return False
    return True


async def test_a_run_that_goes_on_while_the_link_is_lost_is_resumed_and_ran_once(
    wire: Wire, broken: AsyncSession, direct: AsyncSession
) -> None:
    run, begun = await begin(broken)
    waiting = asyncio.create_task(broken.run("open('second', 'a').write('x'); 'second'"))
    await until(lambda: queued(direct, 1))
    await asyncio.to_thread(wire.cut)
    await direct.files.write("go", "")
    assert await asyncio.wait_for(run, PATIENCE) == "begun\ndone\n"
    assert begun.text == "begun\ndone\n", "events go on without a gap, each once"
    assert (await asyncio.wait_for(waiting, PATIENCE)).text == "'second'\n"
    assert await direct.files["runs"].read_text() == await direct.files["second"].read_text() == "x"
    assert wire.connections == 2


@pytest.mark.parametrize("answer", [b"execution_result", b"terminal_output"])
async def test_an_answer_that_breaks_with_the_link_is_kept(
    wire: Wire, broken: AsyncSession, direct: AsyncSession, answer: bytes
) -> None:
    await broken.run("pass")
    wire.cut_before = answer
    if answer == b"execution_result":
        assert (await asyncio.wait_for(broken.run("open('runs', 'a').write('x')"), PATIENCE)).text == "1\n"
    else:
        assert (await asyncio.wait_for(broken.sh("printf x >> runs; echo 1"), PATIENCE)).text == "1\n"
    assert wire.connections == 2
    assert await direct.files["runs"].read_text() == "x"


async def test_an_answer_that_nobody_has_any_more_is_unknown_and_nothing_is_sent_again(
    wire: Wire, broken: AsyncSession, direct: AsyncSession
) -> None:
    await broken.run("pass")
    wire.cut_before, wire.refuses_then = b"execution_result", True
    run = asyncio.create_task(broken.run("open('runs', 'a').write('x')"))
    await asyncio.to_thread(wire.cuts.get, timeout=PATIENCE)
    for _ in range(10):
        await direct.run("pass")  # pushes it out of the journal
    wire.refuses = False
    with pytest.raises(OutcomeUnknown, match="has no answer to it any more"):
        await asyncio.wait_for(run, PATIENCE)
    assert await direct.files["runs"].read_text() == "x"


async def test_what_a_session_had_that_was_closed_meanwhile_is_unknown(
    wire: Wire, user: str, server: ServerProcess
) -> None:
    async with (
        AsyncClient(wire.url, user_id=user, reconnect=PATIENCE) as client,
        AsyncClient(server.url, user_id=user) as other,
    ):
        session = client.session("s")
        run, _ = await begin(session)
        waiting = asyncio.create_task(session.run("2"))
        wire.refuses = True
        await asyncio.to_thread(wire.cut)
        later = asyncio.create_task(session.run("x"))
        await asyncio.sleep(0)
        await other.session("s").close()
        wire.refuses = False
        for task in (run, waiting):
            with pytest.raises(OutcomeUnknown, match="may have run") as caught:
                await asyncio.wait_for(task, PATIENCE)
            assert caught.value.request["type"] == "execute_code"
            assert "is gone" in caught.value.reason
        with pytest.raises(SessionLost, match="was not sent"):
            await asyncio.wait_for(later, PATIENCE)
        assert (await session.run("'x' in globals()")).text == "False\n"
        assert (await session.info())["linger"] == 180, "it is opened again with the options of this client"
        await session.close(delete_files=True)


@pytest.mark.parametrize("linger", [0, 60])
async def test_the_first_run_after_an_idle_session_was_lost_is_not_sent(
    wire: Wire, user: str, server: ServerProcess, linger: int
) -> None:
    async with (
        AsyncClient(wire.url, user_id=user, reconnect=PATIENCE) as client,
        AsyncClient(server.url, user_id=user) as other,
    ):
        session = client.session("s", env={"GREETING": "hello"}, linger=linger)
        await session.run("open('runs', 'a').write('x')")
        wire.refuses = True
        await asyncio.to_thread(wire.cut)
        if linger:
            await other.session("s").close()

        async def is_closed() -> bool:
            return bool((await other.session("s").info())["state"] == "absent")

        await until(is_closed)
        wire.refuses = False
        assert [entry.path for entry in await session.files.list()] == ["runs"], "files are kept, so they may be read"
        with pytest.raises(SessionLost, match="variables and shell are gone"):
            await session.run("open('runs', 'a').write('x')")
        assert await session.files["runs"].read_text() == "x"
        assert (await session.sh("echo $GREETING")).text == "hello\n"
        await session.close(delete_files=True)


async def test_a_session_that_another_client_closes_is_lost(broken: AsyncSession, direct: AsyncSession) -> None:
    await broken.run("x = 1")
    await direct.close()
    with pytest.raises(SessionLost):
        await until_error(lambda: broken.run("x = 1"))  # the news is on its way


async def test_a_silent_peer_is_a_typed_error_in_bounded_time(
    wire: Wire, user: str, direct: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelbridge.client.connection.HANDSHAKE", 1.0)
    async with AsyncClient(wire.url, user_id=user, heartbeat=1.0, reconnect=1.0) as client:
        run, _ = await begin(client.session("s"))
        wire.stall()
        with pytest.raises(OutcomeUnknown, match="may have run"):
            await asyncio.wait_for(run, PATIENCE)
        with pytest.raises(ConnectionLost):  # nothing new gets through either
            await asyncio.wait_for(client.session("s").run("1", wait=PATIENCE), PATIENCE)
        wire.flow()
    assert await direct.interrupt() in {"sigint", "none"}


async def test_a_long_silent_cell_is_no_reason_to_drop(wire: Wire, user: str, direct: AsyncSession) -> None:
    await direct.run("pass")
    async with AsyncClient(wire.url, user_id=user, heartbeat=1.5) as client:
        assert (await client.session("s").run("import time; time.sleep(2.5); 'slept'")).text == "'slept'\n"
    assert wire.connections == 1


async def test_a_terminal_goes_on_without_a_gap_and_without_repeating(wire: Wire, broken: AsyncSession) -> None:
    async with await broken.terminal(rows=30, cols=100) as terminal:
        await terminal.write("PS1=; stty -echo; for i in 1 2 3; do echo line-$i; read x; done; exit 3\r")
        text = ""
        for number in (1, 2, 3):
            while f"line-{number}\r\n" not in text:
                text += await terminal.read(wait=PATIENCE)
            await asyncio.to_thread(wire.cut)
            with pytest.raises(ConnectionLost, match="nothing was typed"):
                await until_error(lambda: terminal.write(""))
            await until(lambda: typed(terminal, "\r"))
        async for more in terminal:
            text += more
        assert terminal.exit_code == 3
    assert [text.count(f"line-{number}\r\n") for number in (1, 2, 3)] == [1, 1, 1]


async def test_a_terminal_that_the_server_detached_for_reading_slowly_goes_on(wire: Wire, broken: AsyncSession) -> None:
    async with await broken.terminal() as terminal:
        await terminal.write("PS1=; stty -echo; echo ready; read x; seq 3000000; read x; exit 3\r")
        text = ""
        while "ready\r\n" not in text:
            text += await terminal.read(wait=PATIENCE)
        await terminal.write("\r")
        await asyncio.sleep(0.5)
        wire.stall()
        await asyncio.sleep(11)  # the server's own patience has ended
        wire.flow()
        text = ""
        while "3000000\r\n" not in text:
            text += await terminal.read(wait=PATIENCE)
        await terminal.write("\r")
        async for _ in terminal:
            pass
        assert (terminal.exit_code, terminal.cause) == (3, "exited")
    assert wire.connections == 1
    numbers = [int(line) for line in text.split("\r\n")[1:] if line.isdecimal()]
    assert len(numbers) - len(set(numbers)) <= 1, "nothing is repeated, but a line that was cut where the replay begins"


async def test_an_answer_to_a_question_survives_the_link(wire: Wire, broken: AsyncSession) -> None:
    asked: list[tuple[str, bool]] = []

    async def answer(prompt: str, secret: bool) -> str:  # noqa: FBT001 - the callback's signature
        asked.append((prompt, secret))
        await asyncio.to_thread(wire.cut)
        return prompt.upper()

    code = "from getpass import getpass\nprint(input('a'), getpass('b'), input('c'))"
    assert (await asyncio.wait_for(broken.run(code, on_input=answer), PATIENCE)).text == "A B C\n"
    assert asked == [("a", False), ("b", True), ("c", False)]


async def test_a_download_goes_on_where_the_link_broke(
    wire: Wire, broken: AsyncSession, direct: AsyncSession, tmp_path: Path
) -> None:
    content = os.urandom(20 << 20)
    moved: list[tuple[int, int]] = []
    saved = await direct.files.write("large", content, progress=lambda *sizes: moved.append(sizes))
    assert (saved.size, saved.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert moved[-1] == (len(content), len(content))
    cut_at = [0]

    def cut(done: int, size: int) -> None:
        assert size == len(content)
        if len(cut_at) < 4 and done > cut_at[-1] + size // 5:  # behind what had arrived already
            cut_at.append(done)
            wire.cut()

    await broken.files.download("large", tmp_path / "copy", progress=cut)
    ranges = wire.heard.count(b"Range: bytes=")
    assert ranges >= 1
    assert wire.heard.count(b"GET /api/") == ranges + 1, "none began anew"
    assert (tmp_path / "copy").read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy"]


async def test_an_upload_whose_link_breaks_is_unknown_and_leaves_the_old_file(
    wire: Wire, broken: AsyncSession, direct: AsyncSession
) -> None:
    await direct.files.write("file", "old")
    with pytest.raises(OutcomeUnknown, match="old one or the new one"):
        await broken.files.write("file", os.urandom(20 << 20), progress=lambda *_: wire.cut())
    assert await direct.files["file"].read_text() == "old"
    assert await broken.files.read("file") == b"old"


async def test_a_download_that_fails_leaves_nothing(direct: AsyncSession, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="there is no such file") as caught:
        await direct.files.download("nothing", tmp_path / "copy")
    assert getattr(caught.value, "code", None) == "not_found"
    assert list(tmp_path.iterdir()) == []


async def test_a_connection_is_tried_again_as_often_as_it_takes(
    wire: Wire, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelbridge.client.connection.LONGEST_PAUSE", 0.05)
    async with AsyncClient(wire.url, user_id=user, reconnect=None) as client:
        wire.refuses = True
        await asyncio.to_thread(wire.cut)
        asked = asyncio.create_task(client.sessions())
        tried = wire.connections

        async def often() -> bool:
            return wire.connections > tried + 20

        await until(often)
        assert not asked.done()
        wire.refuses = False
        assert await asyncio.wait_for(asked, PATIENCE) == []


async def test_a_peer_that_sends_no_frames_is_a_typed_error(wire: Wire, user: str) -> None:
    async with AsyncClient(wire.url, user_id=user) as client:
        wire.garbles = True
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(client.sessions(), PATIENCE)


async def test_a_session_that_was_left_can_be_used_again(wire: Wire, broken: AsyncSession) -> None:
    async with broken:
        await broken.run("x = 7")
    await asyncio.to_thread(wire.cut)
    run, _ = await begin(broken, "print('begun', flush=True); import time; time.sleep(0.3); print(x)")
    await asyncio.to_thread(wire.cut)
    assert await asyncio.wait_for(run, PATIENCE) == "begun\n7\n"
    await broken.close(delete_files=True)


async def test_no_server_is_an_error_at_once(wire: Wire) -> None:
    wire.refuses = True
    with pytest.raises(ConnectionLost, match=r"Cannot connect to ws://.* does a server run there\?"):
        await AsyncClient(wire.url, reconnect=None).connect()
