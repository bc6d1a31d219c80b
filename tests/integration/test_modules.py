"""A module that is changed again within the same second: what was written last is what runs, whoever wrote it."""

import pytest

from tests.integration.conftest import Client, RunningServer, StartServer

BOTH = "import importlib, os, mod\nprint(importlib.reload(mod).value)\n"
IN_ONE_SECOND = "os.utime('mod.py', (1_700_000_000, 1_700_000_000))\n"
"""As if it had been written in the same second as all others, at any load."""


async def save(client: Client, text: str, filename: str = "mod.py", **more: object) -> None:
    answer = await client.ask(type="save_file", sessionId="s", filename=filename, content=text, **more)
    assert answer["success"], answer


async def test_what_was_saved_last_is_what_runs(client: Client) -> None:
    for number in range(5):
        await save(client, f"value = {number}\n")
        assert (await client.run(BOTH))["output"] == f"{number}\n"
        await client.shell(f"test $(python -c 'import mod; print(mod.value)') = {number}")


async def test_whoever_wrote_it_and_however(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await save(client, "value = 0\n")
        assert (await client.run("import os\n" + IN_ONE_SECOND + BOTH))["output"] == "0\n"

        async def runs(number: int) -> None:
            told = await client.run(IN_ONE_SECOND + BOTH)
            assert told["output"] == f"{number}\n", told
            answer = await client.shell("python -c 'import mod; print(mod.value)'")
            assert answer["output"] == f"{number}\n"

        await client.shell("echo 'value = 1' > mod.py")
        await runs(1)
        await client.run("%%writefile mod.py\nvalue = 2")
        await runs(2)
        await client.run("open('mod.py', 'w').write('value = 3\\n')")
        await runs(3)
        await save(client, "value = 4\n", "other.py")
        await client.ask(type="rename_file", sessionId="s", filename="other.py", newFilename="mod.py", overwrite=True)
        await runs(4)
        url = server.url.replace("ws://", "http://").replace("/ws", "/api/sessions/s/files/mod.py?user_id=u")
        async with server.http.put(url, data=b"value = 5\n") as response:
            assert response.status < 300, await response.text()
        await runs(5)
        await client.ask(type="delete_file", sessionId="s", filename="mod.py")
        await save(client, "value", "mod.py")
        await save(client, " = 6\n", "mod.py", mode="append")
        await runs(6)


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_byte_code_is_written_where_that_is_asked_for(start_server: StartServer) -> None:
    server = await start_server()
    async with server.connect("u") as client:
        await client.ask(type="open_session", sessionId="s", env={"PYTHONDONTWRITEBYTECODE": ""})
        await save(client, "value = 1\n")
        told = await client.run("import mod, os; print(os.path.exists('__pycache__'))")
        assert told["output"] == "True\n"
