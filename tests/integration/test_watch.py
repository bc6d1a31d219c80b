"""`file_changed`: what is told of a session's files, to whom, and what is not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.conftest import Client, RunningServer, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""

Changes = dict[str, str]


async def watch(client: Client, **more: object) -> dict[str, Any]:
    answer = await client.ask(type="list_files", sessionId="s", watch=True, requestId="w", **more)
    assert answer["type"] == "file_list", answer
    return answer


async def changes_until(client: Client, path: str, change: str) -> Changes:
    """Collect what is told up to this change."""
    seen: Changes = {}
    while seen.get(path) != change:
        frame = await client.receive()
        if frame["type"] == "file_changed":
            assert "truncated" not in frame
            assert frame["sessionId"] == "s"
            assert frame["requestId"] == "w"
            seen.update((told["path"], told["change"]) for told in frame["changes"])
    return seen


@pytest.fixture
async def actor(server: RunningServer) -> AsyncIterator[Client]:
    """Another connection of the same user, which changes things."""
    async with server.connect("tester") as actor:
        yield actor


async def save(client: Client, name: str, content: str = "x") -> None:
    assert (await client.ask(type="save_file", sessionId="s", filename=name, content=content))["success"]


@on_both_runtimes
async def test_whoever_changes_a_file_the_watcher_is_told(client: Client, actor: Client) -> None:
    await watch(client)
    await save(actor, "a")
    assert await changes_until(client, "a", "added") == {"a": "added"}
    await save(actor, "a", "y")
    assert await changes_until(client, "a", "modified") == {"a": "modified"}
    await actor.run("open('a', 'a').write('z')")
    assert await changes_until(client, "a", "modified") == {"a": "modified"}
    await actor.shell("mkdir -p d/e && echo > d/e/f")
    assert await changes_until(client, "d/e/f", "added") == {"d": "added", "d/e": "added", "d/e/f": "added"}
    await actor.shell("mv d g")
    assert await changes_until(client, "g/e/f", "added") == {
        **dict.fromkeys(("d", "d/e", "d/e/f"), "deleted"),
        **dict.fromkeys(("g", "g/e", "g/e/f"), "added"),
    }
    await actor.ask(type="delete_file", sessionId="s", filename="g", recursive=True)
    assert await changes_until(client, "g", "deleted") == {"g": "deleted", "g/e": "deleted", "g/e/f": "deleted"}


async def test_numbers_grow_and_the_list_comes_first(client: Client, actor: Client) -> None:
    await save(actor, "before")
    answer = await watch(client)
    assert [entry["path"] for entry in answer["files"]] == ["before"]
    numbers = []
    for name in ("a", "b", "c"):
        await save(actor, name)
        frame = await client.receive()
        numbers.append(frame["seq"])
        assert frame["changes"] == [{"path": name, "change": "added"}]
    assert numbers == sorted(set(numbers))


async def test_hidden_names_only_for_who_asks_and_the_bridges_own_for_nobody(client: Client, actor: Client) -> None:
    await watch(actor, hidden=True)
    await watch(client)
    await client.send(type="save_file", sessionId="s", filename=".kernelbridge/x", content="")
    await client.send(type="save_file", sessionId="s", filename=".secret/y", content="")
    await client.send(type="save_file", sessionId="s", filename="z", content="")
    assert await changes_until(actor, "z", "added") == {".secret": "added", ".secret/y": "added", "z": "added"}
    assert await changes_until(client, "z", "added") == {"z": "added"}


async def test_who_watched_before_hidden_names_were_asked_for_is_told_to_look_again(
    client: Client, actor: Client
) -> None:
    await watch(client)
    await watch(actor, hidden=True)
    await save(actor, "a")
    frame = await client.receive()
    assert frame["truncated"] is True


async def test_it_ends_when_told_to_and_when_the_connection_closes(
    server: RunningServer, client: Client, actor: Client
) -> None:
    await watch(client)
    async with server.connect("tester") as third:
        await watch(third)
    stopped = await client.ask(type="list_files", sessionId="s", watch=False)
    assert stopped["type"] == "file_list"
    await watch(actor)
    await save(client, "a")
    await changes_until(actor, "a", "added")
    assert (await client.ask(type="ping"))["type"] == "pong"


async def test_a_link_out_of_the_workspace_is_not_watched(client: Client, actor: Client) -> None:
    await actor.shell("ln -s /tmp out; mkdir real; ln -s / real/root")
    await watch(client)
    await actor.shell("echo > /tmp/outside; echo > real/inside")
    assert await changes_until(client, "real/inside", "added") == {"real/inside": "added"}


async def test_more_changes_than_are_told_at_once_are_said_to_be_more(client: Client, actor: Client) -> None:
    await watch(client)
    # In one moment, however slow this machine is: as long as its name is hidden, nothing of a directory is told.
    make = "import os\nos.mkdir('.made')\nfor i in range(3_000): open(f'.made/f{i}', 'w').close()\n"
    await actor.send(type="execute_code", sessionId="s", code=f"{make}os.rename('.made', 'made')", requestId="c")
    truncated = False
    while not truncated:
        frame = await client.receive()
        assert len(frame["changes"]) <= 1000
        truncated = frame.get("truncated", False)
    await actor.answer_to("c")
    await save(actor, "zz-last")
    while not any(told["path"] == "zz-last" for told in frame["changes"]):
        frame = await client.receive()
        if frame.get("truncated"):
            listed = await actor.ask(type="list_files", sessionId="s", path="")
            assert listed["truncated"]
            break


async def test_two_connections_are_told_the_same(client: Client, actor: Client) -> None:
    await watch(client)
    await watch(actor)
    await save(client, "a")
    assert await changes_until(client, "a", "added") == {"a": "added"}
    async with asyncio.timeout(10):
        assert await changes_until(actor, "a", "added") == {"a": "added"}
