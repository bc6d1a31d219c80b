"""What each method of the clients does with a real server, whose sandboxes are plain processes of this host."""

import asyncio
import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from kernelbridge import (
    AsyncClient,
    AsyncSession,
    Client,
    Closed,
    CodeError,
    CommandFailed,
    RequestRefused,
    RunTimeout,
    Session,
    WaitTimeout,
)
from kernelbridge.client.events import Cleared, Display, Output, Started
from kernelbridge.client.results import Result
from kernelbridge.client.terminal import AsyncTerminal

PATIENCE = 60.0


# -- cells -----------------------------------------------------------------------------


async def test_a_result_has_what_the_cell_did(session: AsyncSession) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); display({'text/html': '<b>'}, raw=True); 6 * 7"
    result = await session.run(code)
    assert (result.success, result.stdout, result.stderr) == (True, "out\n", "err\n")
    assert (result.data["text/plain"], result.error) == ("42", None)
    assert [bundle.is_result for bundle in result.displays] == [False, True]
    assert result.duration > 0


async def test_a_failed_cell_raises_only_where_that_is_wanted(session: AsyncSession) -> None:
    failed = await session.run("1 / 0", filename="mine.py")
    assert (failed.success, failed.error) == (False, "ZeroDivisionError: division by zero")
    assert "mine.py" in (failed.traceback or "")
    with pytest.raises(CodeError, match="ZeroDivisionError") as caught:
        await session.run("1 / 0", check=True)
    count = failed.execution_count
    assert count is not None
    assert isinstance(caught.value.result, Result)
    assert caught.value.result.execution_count == count + 1


async def test_output_is_passed_on_as_it_comes_in_order(session: AsyncSession) -> None:
    seen: list[tuple[str, str]] = []

    async def note(output: Output) -> None:
        seen.append((output.stream, output.text))

    code = "import sys\nfor n in 1, 2:\n  print(n, flush=True); print(n, file=sys.stderr, flush=True)\n1"
    await session.run(code, on_output=note)
    assert "".join(text for stream, text in seen if stream == "stdout") == "1\n2\n"
    assert "".join(text for stream, text in seen if stream == "stderr") == "1\n2\n"


async def test_questions_are_answered_by_the_callback(session: AsyncSession) -> None:
    asked: list[tuple[str, bool]] = []

    def answer(prompt: str, secret: bool) -> int:  # noqa: FBT001 - as the client calls it
        asked.append((prompt, secret))
        return len(asked)

    code = "import getpass; print(input('name? '), getpass.getpass('word? '))"
    assert (await session.run(code, on_input=answer)).stdout.splitlines()[-1] == "1 2"
    assert asked == [("name? ", False), ("word? ", True)]
    assert "StdinNotImplementedError" in ((await session.run("input()")).error or "")


async def test_an_error_of_a_callback_ends_the_cell(session: AsyncSession) -> None:
    def fail(_prompt: str, _secret: bool) -> str:  # noqa: FBT001 - as the client calls it
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await session.run("input()", on_input=fail)
    with pytest.raises(LookupError):
        await session.run("print(1, flush=True)\nwhile True: pass", on_output=lambda _: fail("", False))  # noqa: FBT003
    assert (await session.run("'next'")).data["text/plain"] == "'next'"


async def test_silent_code_and_code_without_history_do_not_count(session: AsyncSession) -> None:
    before = (await session.run("1")).execution_count or 0
    await session.run("a = 1", silent=True)
    await session.run("b = a", store_history=False)
    after = await session.run("a + b")
    assert (after.data["text/plain"], after.execution_count) == ("2", before + 1)


async def test_a_time_limit_ends_the_cell(session: AsyncSession) -> None:
    ended = await session.run("while True: pass", timeout=0.2)
    assert (ended.cause, ended.success) == ("timeout", False)
    with pytest.raises(RunTimeout):
        await session.run("while True: pass", timeout=0.2, check=True)


async def test_a_cell_goes_on_after_its_caller_has_waited_enough(session: AsyncSession) -> None:
    await session.run("import os, pathlib")
    code = "while not pathlib.Path('go').exists(): pass\ndone = True"
    with pytest.raises(WaitTimeout, match="The run goes on"):
        await session.run(code, wait=0.2)
    await session.files.write("go", "")
    assert (await session.run("done")).data["text/plain"] == "True"


async def test_a_cancelled_cell_is_interrupted(session: AsyncSession) -> None:
    began = asyncio.Event()
    cell = asyncio.create_task(session.run("print(1, flush=True)\nwhile True: pass", on_output=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), PATIENCE)
    cell.cancel()
    assert (await asyncio.wait_for(session.run("'free'"), PATIENCE)).success


async def test_a_stream_has_all_events_and_ends_with_the_result(session: AsyncSession) -> None:
    code = """
print("text")
shown = display({"text/html": "<i>"}, raw=True, display_id="d")
shown.update({"text/html": "<b>"}, raw=True)
from IPython.display import clear_output
clear_output(wait=True)
input("? ")
"""
    seen = [event async for event in session.stream(code, on_input=lambda _prompt, _secret: "yes")]
    kinds = [type(event) for event in seen]
    assert (kinds[0], kinds[-1]) == (Started, Result)
    displays = [event for event in seen if isinstance(event, Display)]
    assert [(each.display_id, each.updates, each.bundle.is_result) for each in displays] == [
        ("d", False, False),
        ("d", True, False),
        (None, False, True),
    ]
    assert [event.wait for event in seen if isinstance(event, Cleared)] == [True]
    assert "".join(event.text for event in seen if isinstance(event, Output)).startswith("text\n")


async def test_leaving_a_stream_interrupts_its_cell(session: AsyncSession) -> None:
    events = session.stream("print(1, flush=True)\nwhile True: pass")
    async for event in events:
        if isinstance(event, Output):
            break
    await events.aclose()
    assert (await asyncio.wait_for(session.run("'free'"), PATIENCE)).success


async def test_one_run_is_interrupted_by_its_id(session: AsyncSession) -> None:
    events = session.stream("while True: pass")
    async for event in events:
        if isinstance(event, Started):
            assert await session.interrupt(run_id="another") == "none"
            assert await session.interrupt(run_id=event.run_id, escalate=False) == "sigint"
        elif isinstance(event, Result):
            assert event.cause == "interrupted"


async def test_a_restart_forgets_variables(session: AsyncSession) -> None:
    await session.run("kept = 1")
    await session.restart()
    assert (await session.run("kept")).error == "NameError: name 'kept' is not defined"


async def test_names_are_completed_and_explained_at_the_cursor(session: AsyncSession) -> None:
    await session.run("first_name = 1; second_name = 2")
    assert await session.complete("first_n") == ["first_name"]
    assert await session.complete("second_n + other", 8) == ["second_name"]
    assert "int" in await session.inspect("first_name")
    assert await session.inspect("no_such_name") == ""
    assert "len" in await session.inspect("len + no_such_name", 2)


# -- commands and terminals ------------------------------------------------------------


async def test_a_command_has_its_output_exit_code_and_directory(session: AsyncSession) -> None:
    seen: list[Output] = []
    done = await session.sh("mkdir -p d && cd d && echo here", on_output=seen.append)
    assert (done.text, done.exit_code, done.success) == ("here\n", 0, True)
    assert str(done.cwd).endswith("/d")
    assert {output.stream for output in seen} == {"terminal"}
    failed = await session.sh("false")
    assert (failed.exit_code, failed.success, failed.cause) == (1, False, None)
    with pytest.raises(CommandFailed, match="ended with 3"):
        await session.sh("(exit 3)", check=True)
    assert (await session.sh("sleep 60", timeout=0.2)).cause == "timeout"


async def test_a_command_is_interrupted_and_not_the_cell(session: AsyncSession) -> None:
    began = asyncio.Event()
    command = asyncio.create_task(session.sh("echo on; sleep 60", on_output=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), PATIENCE)
    await session.interrupt(terminal=True)
    assert (await asyncio.wait_for(command, PATIENCE)).cause == "interrupted"


async def test_a_terminal_is_typed_into_read_resized_and_ends(session: AsyncSession) -> None:
    async with await session.terminal(rows=7, cols=50, name="mine") as terminal:
        assert terminal.terminal_id == "mine"
        await terminal.write("stty size\r")
        await _until(terminal, "7 50")
        await terminal.resize(8, 60)
        await terminal.write("stty size\r")
        await _until(terminal, "8 60")
        with pytest.raises(ValueError, match="must be 1 to 1000"):
            await terminal.resize(0, 60)
        with pytest.raises(ValueError, match="must be 1 to 1000"):
            await terminal.resize(1, 1001)
        await terminal.write("exit 5\r")
        await _read_all(terminal, PATIENCE)
        assert (terminal.exit_code, terminal.cause) == (5, "exited")
        with pytest.raises(Closed):
            await terminal.write("more")
    assert terminal.left_out == 0


async def test_a_closed_terminal_is_gone_and_a_quiet_one_ends_no_wait(session: AsyncSession) -> None:
    terminal = await session.terminal()
    with pytest.raises(WaitTimeout, match=r"not within 0\.2 s"):
        await _read_all(terminal, 0.2)
    await terminal.close()
    await terminal.close()
    await _read_all(terminal, PATIENCE)
    assert terminal.cause == "closed"


async def test_what_a_terminal_wrote_is_shown_to_who_attaches_later(session: AsyncSession) -> None:
    first = await session.terminal(name="t")
    await first.write("echo wo''rd\r")
    await _until(first, "word")
    other = AsyncClient(session.target.url, user_id=session.target.user_id)
    async with other, await other.session(session.session_id).terminal(name="t") as second:
        await _until(second, "word")
        assert second.replayed
    await _read_all(first, PATIENCE)
    assert first.cause == "closed"


async def _read_all(terminal: AsyncTerminal, wait: float) -> None:
    while await terminal.read(wait=wait):
        pass


async def _until(terminal: AsyncTerminal, text: str) -> None:
    seen = ""
    while text not in seen:
        new = await terminal.read(wait=PATIENCE)
        assert new, seen
        seen += new


# -- files -----------------------------------------------------------------------------


async def test_a_file_is_written_read_listed_renamed_and_deleted(client: AsyncClient) -> None:
    session = client.session("files")  # files need no sandbox
    saved = await session.files.write("d/a.txt", "ä")
    assert (saved.path, saved.size, saved.sha256) == ("d/a.txt", 2, hashlib.sha256("ä".encode()).hexdigest())
    assert await session.files["d/a.txt"].read_text() == "ä"
    await session.files.make_directory("e/f")
    await session.files["e/.h"].write_bytes(b"x")
    await session.files["e/t"].write_text("xyz")
    assert [(each.path, each.kind, each.size) for each in await session.files.list()] == [
        ("d", "directory", None),
        ("e", "directory", None),
    ]
    assert [each.path for each in await session.files.list("e")] == ["e/f", "e/t"]
    assert [each.path for each in await session.files.list(recursive=True)] == ["d", "d/a.txt", "e", "e/f", "e/t"]
    found = await session.files.list("e", hidden=True)
    assert [each.path for each in found] == ["e/.h", "e/f", "e/t"]
    assert not found.truncated
    await session.files.rename("d/a.txt", "g/b.txt")
    with pytest.raises(RequestRefused) as caught:
        await session.files.rename("e/t", "g/b.txt")
    assert caught.value.code == "exists"
    await session.files.rename("e/t", "g/b.txt", overwrite=True)
    assert await session.files["g/b.txt"].read_bytes() == b"xyz"
    await session.files["g/b.txt"].delete()
    with pytest.raises(RequestRefused) as caught:
        await session.files.delete("e")
    await session.files.delete("e", recursive=True)
    with pytest.raises(RequestRefused) as caught:
        await session.files.read("e/t")
    assert caught.value.code == "not_found"


async def test_only_the_expected_version_is_replaced(client: AsyncClient) -> None:
    session = client.session("files")
    first = await session.files.write("f", "1", create=True)
    with pytest.raises(RequestRefused) as caught:
        await session.files.write("f", "2", create=True)
    assert caught.value.code == "exists"
    await session.files.write("f", "2", if_match=first.sha256)
    with pytest.raises(RequestRefused) as caught:
        await session.files.write("f", "3", if_match=first.sha256)
    assert caught.value.code == "conflict"
    assert await session.files.read("f") == b"2"


async def test_progress_is_told_in_both_directions(client: AsyncClient, tmp_path: Path) -> None:
    session = client.session("files")
    sent: list[tuple[int, int]] = []
    got: list[tuple[int, int]] = []
    (tmp_path / "local").write_bytes(os.urandom(1_500_000))
    await session.files.upload(tmp_path / "local", "far", progress=lambda *each: sent.append(each))

    async def note(done: int, whole: int) -> None:
        got.append((done, whole))

    old = os.umask(0o027)
    try:
        await session.files.download("far", tmp_path / "back", progress=note)
    finally:
        os.umask(old)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "local").read_bytes()
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o640
    assert sent == [(1 << 20, 1_500_000), (1_500_000, 1_500_000)]
    assert got[-1] == (1_500_000, 1_500_000)


async def test_a_failed_download_leaves_the_old_file_and_nothing_else(session: AsyncSession, tmp_path: Path) -> None:
    (tmp_path / "local").write_text("old")
    with pytest.raises(RequestRefused):
        await session.files.download("none", tmp_path / "local")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("local", "old")]


async def test_a_stream_is_uploaded_from_its_beginning(client: AsyncClient) -> None:
    content = io.BytesIO(b"whole")
    content.read(2)
    assert (await client.session("files").files.write("f", content)).size == 5


# -- sessions and clients --------------------------------------------------------------


async def test_a_session_without_a_name_ends_with_its_files_and_another_stays(client: AsyncClient) -> None:
    async with client.session(linger=60) as temporary, client.session("named", linger=60) as named:
        await temporary.run("1")
        await named.sh("true")
        assert {each["sessionId"] for each in await client.sessions()} == {temporary.session_id, "named"}
    assert {each["sessionId"] for each in await client.sessions()} == {"named"}
    assert (await named.info())["linger"] == 60
    await client.session("named").close(delete_files=True)
    assert await client.sessions() == []


async def test_a_session_gets_its_options(client: AsyncClient) -> None:
    async with client.session(env={"MINE": "1"}, limits={"pids": 50}, keep_while_running=False) as session:
        assert (await session.run("import os; os.environ['MINE']")).data["text/plain"] == "'1'"
        info = await session.info()
        assert info["limits"]["pids"] == 50
        assert info["keepWhileRunning"] is False
    with pytest.raises(RequestRefused):
        await client.session(image="none").run("1")
    with pytest.raises(ValueError, match="JSON"):
        client.session(limits={"cpus": float("nan")})


async def test_a_closed_client_serves_nobody(url: str) -> None:
    client = AsyncClient(url, user_id="shared")
    session = client.session("shared")
    await client.connect()
    waiting = asyncio.create_task(session.run("while True: pass"))
    while not client._calls:  # noqa: ASYNC110 - no event tells it
        await asyncio.sleep(0)
    await client.close()
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await session.run("1")
    await client.close()
    async with AsyncClient(url, user_id="shared") as other:
        await other.session("shared").interrupt()


async def test_what_is_too_large_for_the_server_is_not_sent(url: str) -> None:
    async with AsyncClient(url, user_id="shared", max_message=2000) as client:
        session = client.session("shared", linger=600)
        with pytest.raises(RequestRefused) as caught:
            await session.run("1" * 2000)
        assert caught.value.code == "frame_too_large"
        assert (await session.run("1")).success


def test_a_client_serves_one_event_loop_after_the_other(url: str) -> None:
    client = AsyncClient(url, user_id="shared")

    async def run() -> bool:
        return (await client.session("shared", linger=600).run("1")).success

    async def last() -> bool:
        found = await run()
        await client.close()
        return found

    first = asyncio.new_event_loop()
    assert first.run_until_complete(run())
    other: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(run())
        except RuntimeError as exc:
            other.append(exc)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "another event loop" in str(other[0])
    assert client._link is not None
    first.run_until_complete(client._link.close())
    first.close()
    assert asyncio.run(last())


# -- without async ---------------------------------------------------------------------


def test_the_blocking_client_runs_cells_in_the_caller_s_thread(blocking: Session) -> None:
    threads: set[int] = set()

    def note(*_: object) -> str:
        threads.add(threading.get_ident())
        return "yes"

    result = blocking.run("print(input('? '))", on_output=note, on_input=note)
    assert result.stdout.splitlines()[-1] == "yes"
    assert threads == {threading.get_ident()}


def test_the_blocking_client_has_all_options_of_a_run(blocking: Session) -> None:
    with pytest.raises(CodeError):
        blocking.run("1 / 0", check=True, filename="f.py", timeout=60, wait=PATIENCE)
    assert blocking.run("while True: pass", timeout=0.2).cause == "timeout"
    with pytest.raises(WaitTimeout):
        blocking.run("while True: pass", wait=0.2)
    assert blocking.interrupt() == "sigint"
    blocking.run("a = 1", silent=True)
    blocking.run("a = 2", store_history=False)
    assert blocking.run("a").data["text/plain"] == "2"
    assert blocking.complete("import o", 8)
    assert "int" in blocking.inspect("a")
    blocking.restart()
    assert "NameError" in (blocking.run("a").error or "")
    assert blocking.info()["sessionId"] == blocking.session_id


def test_the_blocking_client_streams_runs_commands_and_opens_terminals(blocking: Session) -> None:
    seen = list(blocking.stream("print(input('? '))", on_input=lambda *_: "yes"))
    assert (type(seen[0]), type(seen[-1])) == (Started, Result)
    assert blocking.sh("echo hi", check=True, timeout=60, wait=PATIENCE).text == "hi\n"
    with pytest.raises(CommandFailed):
        blocking.sh("false", check=True)
    with blocking.terminal(rows=7, cols=50, name="t") as terminal:
        terminal.resize(8, 60)
        terminal.write("stty size; exit 5\r")
        assert "8 60" in "".join(terminal)
        assert (terminal.exit_code, terminal.cause, terminal.terminal_id) == (5, "exited", "t")


def test_the_blocking_client_keeps_files(url: str, tmp_path: Path) -> None:
    moved: list[tuple[int, int]] = []
    client = Client(url, user_id="files")
    blocking = client.session("files")
    first = blocking.files.write("d/f", "1", create=True, progress=lambda *each: moved.append(each))
    blocking.files.write("d/f", "22", if_match=first.sha256)
    assert blocking.files.read("d/f") == b"22"
    blocking.files.download("d/f", tmp_path / "f")
    blocking.files.upload(tmp_path / "f", "g")
    blocking.files.make_directory("e")
    blocking.files.rename("g", "e/g")
    blocking.files.write("h", "")
    blocking.files.rename("h", "e/g", overwrite=True)
    assert [each.path for each in blocking.files.list(recursive=True)] == ["d", "d/f", "e", "e/g"]
    assert [each.path for each in blocking.files.list("e", hidden=True)] == ["e/g"]
    blocking.files["e/g"].write_text("t")
    blocking.files["e/g"].write_bytes(b"tt")
    assert (blocking.files["e/g"].read_text(), blocking.files["e/g"].read_bytes()) == ("tt", b"tt")
    blocking.files["e/g"].delete()
    blocking.files.delete("d", recursive=True)
    assert [each.path for each in blocking.files.list()] == ["e"]
    assert moved == [(1, 1)]
    client.close()


def test_a_closed_blocking_client_serves_nobody(url: str) -> None:
    client = Client(url, user_id="closed")
    with client, client.session() as session:
        session.files.write("f", "")
        assert [each["sessionId"] for each in client.sessions()] == [session.session_id]
    with pytest.raises(Closed):
        session.run("1")
    client.close()
