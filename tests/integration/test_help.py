"""Completion, inspection and completeness of code, while the interpreter is idle, busy, absent and dead."""

import asyncio

from tests.integration.conftest import Client, Frame, on_both_runtimes
from tests.integration.test_interrupt import interrupt, started

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""


async def ask(client: Client, kind: str, code: str, **more: object) -> Frame:
    await client.send(type=kind, sessionId="s", code=code, requestId="help", **more)
    return await client.answer_to("help")


async def test_code_is_completed_at_the_cursor(client: Client) -> None:
    await client.run("import os\nvariable_one = variable_two = 'text'")
    found = await ask(client, "complete", "print(vari")
    assert found["type"] == "complete_reply"
    assert {"variable_one", "variable_two"} <= set(found["matches"])
    assert (found["cursorStart"], found["cursorEnd"]) == (6, 10)
    # Positions are in characters, whatever their size in UTF-8 or UTF-16.
    code = "'äß𝒳🎉'; vari + 1"
    found = await ask(client, "complete", code, cursor=code.index(" +"))
    assert "variable_one" in found["matches"]
    assert code[found["cursorStart"] : found["cursorEnd"]] == "vari"
    assert (await ask(client, "complete", ""))["type"] == "complete_reply"
    wrong = await ask(client, "complete", "a", cursor=2)
    assert (wrong["code"], "'cursor'" in wrong["message"]) == ("invalid_field", True)


async def test_names_are_inspected(client: Client) -> None:
    await client.run('def f(a, b=1):\n    """Add."""\n    return a + b')
    found = await ask(client, "inspect", "f(", cursor=1)
    assert (found["type"], found["found"]) == ("inspect_reply", True)
    assert "Add." in found["text"]
    assert "f(a, b=1)" in found["text"]
    assert "\x1b" not in found["text"]
    assert "text/plain" in found["data"]
    assert "return a + b" in (await ask(client, "inspect", "f", detail=1))["text"]
    assert await ask(client, "inspect", "no_such_name") == {
        "type": "inspect_reply",
        "sessionId": "s",
        "requestId": "help",
        "found": False,
        "text": "",
    }


async def test_code_is_judged(client: Client) -> None:
    for code, status, indent in (
        ("1 + 1", "complete", None),
        ("for x in y:", "incomplete", "    "),
        ("'''", "incomplete", ""),
        ("1 +* 1", "invalid", None),
    ):
        found = await ask(client, "is_complete", code)
        assert (found["status"], found.get("indent")) == (status, indent), code


async def test_help_comes_while_a_cell_runs(client: Client) -> None:
    await client.run("import time\nvariable_one = 1")
    await ask(client, "complete", "vari")
    await started(client, "time.sleep(1000)")
    for _ in range(2):
        assert "variable_one" in (await ask(client, "complete", "vari"))["matches"]
    assert (await ask(client, "is_complete", "1"))["status"] == "complete"
    assert (await ask(client, "inspect", "variable_one"))["found"]
    for number in range(10):
        await client.send(type="is_complete", sessionId="s", code="1", requestId=f"q{number}")
    assert {(await client.answer_to(f"q{number}"))["status"] for number in range(10)} == {"complete"}
    assert (await interrupt(client))[0]["step"] == "sigint"
    assert (await client.answer_to("cell"))["cause"] == "interrupted"
    result = await client.run("print('out'); time.sleep(0.01); variable_one")
    assert (result["output"], "lateOutput" in result) == ("out\n1\n", False)


async def test_a_cell_that_keeps_the_interpreter_makes_it_busy(client: Client) -> None:
    await client.run("import ctypes, time")
    await started(client, "ctypes.PyDLL(None).sleep(8)")
    busy = await ask(client, "is_complete", "1")
    assert (busy["type"], busy["code"], busy["retryable"]) == ("error", "busy", True)
    assert (await client.answer_to("cell"))["success"]
    assert (await ask(client, "is_complete", "1"))["status"] == "complete"


@on_both_runtimes
async def test_help_starts_the_interpreter_and_survives_its_death(client: Client) -> None:
    assert (await ask(client, "is_complete", "1"))["status"] == "complete"
    await client.run("import os, threading")
    await started(client, "threading.Timer(0.2, os._exit, [1]).start()\nthreading.Event().wait()")
    assert (await client.answer_to("cell"))["cause"] == "kernel_died"
    assert (await ask(client, "is_complete", "1"))["status"] == "complete"
    assert (await client.run("print(1)"))["statePreserved"] is False


async def test_too_many_questions_at_once_are_refused(client: Client) -> None:
    await client.run("pass")
    for number in range(300):
        await client.send(type="is_complete", sessionId="s", code="1", requestId=str(number))
    async with asyncio.timeout(60):
        answers = [await client.answer_to(str(number)) for number in range(300)]
    for answer in answers:
        assert answer["type"] == "is_complete_reply" or answer["code"] in {"busy", "limit_exceeded"}
    assert answers[0]["type"] == "is_complete_reply"
