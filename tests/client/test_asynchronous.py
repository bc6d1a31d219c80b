"""What the asynchronous client alone does: cancelling, and many tasks."""

import asyncio
import threading

import pytest

from kernelbridge import AsyncClient, AsyncSession, Closed, Output, RequestRefused, Result, Started
from tests.client.servers import PATIENCE, ServerProcess, until
from tests.client.test_lost_links import GATED, begin, queued


async def test_cancelling_interrupts_the_cell_and_withdraws_one_that_waits(direct: AsyncSession) -> None:
    run, _ = await begin(direct)
    waits = asyncio.create_task(direct.run("open('withdrawn', 'w')"))
    stays = asyncio.create_task(direct.run("'stays'"))
    await until(lambda: queued(direct, 2))
    waits.cancel()
    await asyncio.wait([waits])
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    assert waits.cancelled()
    assert (await stays).text == "'stays'\n"
    assert [entry.path for entry in await direct.files.list()] == ["runs"]


async def test_cancelling_before_anything_was_sent_sends_nothing(server: ServerProcess, user: str) -> None:
    async with AsyncClient(server.url, user_id=user) as client:
        session = client.session()
        run = asyncio.create_task(session.run("open('ran', 'w')"))
        await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run])
        assert await session.files.list() == []
        await session.close(delete_files=True)


async def test_a_stream_that_is_closed_interrupts_its_cell(direct: AsyncSession) -> None:
    events = direct.stream(GATED)
    await anext(events)
    await events.aclose()
    assert (await direct.run("'next'")).text == "'next'\n"
    assert (await direct.sh("cat runs")).text == "x"


async def test_an_interrupt_reaches_the_run_that_it_names_and_no_other(direct: AsyncSession) -> None:
    events = direct.stream("1")
    ended = await anext(events)
    assert isinstance(ended, Started)
    async for _ in events:
        pass
    stream = direct.stream(GATED)
    runs = await anext(stream)
    assert isinstance(runs, Started)
    assert runs.run_id != ended.run_id
    assert await direct.interrupt(run_id=ended.run_id) == "none"
    assert await direct.interrupt(run_id=runs.run_id) != "none"
    last = [event async for event in stream][-1]
    assert isinstance(last, Result)
    assert last.cause == "interrupted"


async def test_a_client_is_not_used_from_two_loops_at_once(server: ServerProcess, user: str) -> None:
    async with AsyncClient(server.url, user_id=user) as client:
        errors = []

        def other() -> None:
            try:
                asyncio.run(client.sessions())
            except RuntimeError as exc:
                errors.append(str(exc))

        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert "make a client for each" in errors[0]
    with pytest.raises(Closed):
        await client.sessions()


async def test_nobody_is_waited_for_who_is_asked_when_the_run_ends(direct: AsyncSession) -> None:
    asked = asyncio.Event()

    async def never(_prompt: str, _secret: bool) -> str:  # noqa: FBT001 - it is called so
        asked.set()
        await asyncio.get_running_loop().create_future()
        return ""

    running = asyncio.create_task(direct.run("input()", on_input=never))
    await asked.wait()
    await direct.interrupt()
    assert (await running).cause == "interrupted"


async def test_a_path_never_leads_to_a_file_of_another_session(direct: AsyncSession) -> None:
    await direct.files.write("secret", "mine")
    other = direct._client.session("other")
    with pytest.raises(RequestRefused) as caught:
        await other.files.read("../../s/files/secret")
    with pytest.raises(RequestRefused) as of_the_server:
        await other.files.delete("../../s/files/secret")
    assert caught.value.code == of_the_server.value.code
    await other.close(delete_files=True)


async def test_an_error_of_the_one_who_is_asked_ends_the_run(direct: AsyncSession) -> None:
    async def fails(_prompt: str, _secret: bool) -> str:  # noqa: FBT001 - it is called so
        await asyncio.sleep(0)
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        await asyncio.wait_for(direct.run("input()", on_input=fails), PATIENCE)
    with pytest.raises(ValueError, match="no answer"):
        async for _ in direct.stream("input()", on_input=fails):
            pass
    assert (await asyncio.wait_for(direct.run("'next'"), PATIENCE)).text == "'next'\n"


GOES_ON = """\
import os, signal, time
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    input('first')
except KeyboardInterrupt:
    print('goes on', flush=True)
while not os.path.exists('go'): time.sleep(0.01)
"""
"""A program that waits for its answer for a moment only, and then for a file `go`."""


async def test_a_program_that_does_not_wait_for_its_answer_is_followed(direct: AsyncSession) -> None:
    async def never(_prompt: str, _secret: bool) -> str:  # noqa: FBT001 - it is called so
        await asyncio.get_running_loop().create_future()
        return ""

    async def go(output: Output) -> None:
        if "goes on" in output.text:
            await direct.files.write("go", "")

    result = await asyncio.wait_for(direct.run(GOES_ON, on_input=never, on_output=go), PATIENCE)
    assert result.text.endswith("goes on\n")
