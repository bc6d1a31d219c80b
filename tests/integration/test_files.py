"""File requests, as a client meets them: on both runtimes, whatever the kernel does."""

import asyncio
import base64
import hashlib
from typing import Any

from tests.integration.conftest import Client, RunningServer


async def save(client: Client, name: str, content: str, **more: object) -> dict[str, Any]:
    return await client.ask(type="save_file", sessionId="s", filename=name, content=content, **more)


async def request(client: Client, kind: str, **more: object) -> dict[str, Any]:
    return await client.ask(type=kind, sessionId="s", **more)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_a_file_is_read_as_it_was_saved(client: Client) -> None:
    await save(client, "a/ü.txt", "grün\n")
    found = await request(client, "read_file", filename="a/ü.txt", requestId="r")
    assert found == {
        "type": "file_content",
        "filename": "a/ü.txt",
        "content": "grün\n",
        "encoding": "utf-8",
        "offset": 0,
        "length": 6,
        "size": 6,
        "sha256": sha("grün\n".encode()),
        "sessionId": "s",
        "requestId": "r",
    }
    await save(client, "b", base64.b64encode(bytes(range(256))).decode(), encoding="base64")
    part = await request(client, "read_file", filename="b", encoding="base64", offset=250, length=100)
    assert (base64.b64decode(part["content"]), part["offset"], part["length"]) == (bytes(range(250, 256)), 250, 6)
    assert "sha256" not in part
    refused = await request(client, "read_file", filename="b")
    assert (refused["type"], refused["success"], refused["code"]) == ("file_result", False, "not_text")
    assert refused["operation"] == "read_file"


async def test_a_file_larger_than_a_frame_is_read_in_parts(client: Client) -> None:
    await client.shell("head -c 20000000 /dev/zero > big")
    refused = await request(client, "read_file", filename="big", encoding="base64")
    assert refused["code"] == "too_large"
    assert "offset and length" in refused["message"]
    part = await request(client, "read_file", filename="big", encoding="base64", offset=19_999_990)
    assert (part["length"], part["size"]) == (10, 20_000_000)


async def test_listing(client: Client) -> None:
    await save(client, "src/deep/x.py", "x")
    await save(client, "main.py", "12345")
    await save(client, ".hidden/y", "")
    await client.shell("ln -s /etc/passwd link; mkfifo pipe")
    flat = await request(client, "list_files")
    assert [(e["path"], e["kind"], e.get("size")) for e in flat["files"]] == [
        ("link", "symlink", None),
        ("main.py", "file", 5),
        ("pipe", "other", None),
        ("src", "directory", None),
    ]
    assert flat["truncated"] is False
    assert all(e["modified"].endswith("Z") for e in flat["files"])
    deep = await request(client, "list_files", recursive=True, hidden=True)
    paths = [e["path"] for e in deep["files"]]
    assert paths == sorted(paths)
    assert {"src/deep/x.py", ".hidden", ".hidden/y"} <= set(paths)
    inner = await request(client, "list_files", path="src/")
    assert [e["path"] for e in inner["files"]] == ["src/deep"]
    assert (await request(client, "list_files", path="main.py"))["code"] == "not_a_directory"
    assert (await request(client, "list_files", path="nothing"))["code"] == "not_found"
    assert (await request(client, "list_files", path="../s"))["code"] == "invalid_field"


async def test_delete_rename_and_make(client: Client) -> None:
    assert (await request(client, "make_directory", filename="d/e"))["success"]
    assert (await request(client, "make_directory", filename="d/e"))["success"]
    await save(client, "d/f", "x")
    refused = await request(client, "delete_file", filename="d")
    assert (refused["success"], refused["code"], refused["operation"]) == (False, "not_empty", "delete_file")
    assert (await request(client, "rename_file", filename="d/f", newFilename="n/g"))["success"]
    await save(client, "h", "y")
    taken = await request(client, "rename_file", filename="h", newFilename="n/g")
    assert (taken["code"], taken["filename"]) == ("exists", "h")
    assert (await request(client, "rename_file", filename="h", newFilename="n/g", overwrite=True))["success"]
    assert (await request(client, "read_file", filename="n/g"))["content"] == "y"
    assert (await request(client, "rename_file", filename="h", newFilename="k"))["code"] == "not_found"
    assert (await request(client, "delete_file", filename="d", recursive=True))["success"]
    assert (await request(client, "delete_file", filename="d"))["code"] == "not_found"
    assert [e["path"] for e in (await request(client, "list_files"))["files"]] == ["n"]


async def test_modes_and_conditions_of_a_save(client: Client) -> None:
    first = await save(client, "f", "one\n", mode="create")
    assert (first["size"], first["sha256"]) == (4, sha(b"one\n"))
    assert (await save(client, "f", "two", mode="create"))["code"] == "exists"
    more = await save(client, "f", "two\n", mode="append", ifMatch=first["sha256"])
    assert (more["size"], more["sha256"]) == (8, sha(b"one\ntwo\n"))
    stale = await save(client, "f", "three", ifMatch=first["sha256"])
    assert (stale["success"], stale["code"]) == (False, "conflict")
    assert more["sha256"] in stale["message"]
    assert (await request(client, "read_file", filename="f"))["content"] == "one\ntwo\n"
    assert (await save(client, "f", "three", ifMatch=more["sha256"]))["success"]
    assert (await save(client, "none", "x", ifMatch=first["sha256"]))["code"] == "conflict"
    assert (await save(client, "f", "!", encoding="base64"))["code"] == "invalid_field"


async def test_each_is_complete_before_the_next_begins(client: Client) -> None:
    for n in range(20):
        await client.send(type="save_file", sessionId="s", filename="f", content=str(n), requestId=f"s{n}")
        await client.send(type="rename_file", sessionId="s", filename="f", newFilename=f"f{n}", requestId=f"r{n}")
        await client.send(type="read_file", sessionId="s", filename=f"f{n}", requestId=f"g{n}")
    for n in range(20):
        assert (await client.answer_to(f"g{n}"))["content"] == str(n)


async def test_files_need_no_sandbox(server: RunningServer, client: Client) -> None:
    await save(client, "f", "x")
    assert (await request(client, "read_file", filename="f"))["content"] == "x"
    await request(client, "list_files", watch=True)
    await request(client, "delete_file", filename="f")
    assert not list((server.data_dir / "run").iterdir())


async def test_files_while_the_kernel_is_busy_and_when_it_is_dead(client: Client) -> None:
    await client.run("x = 1")
    await client.send(
        type="execute_code", sessionId="s", code="open('up', 'w').close()\nwhile True: pass", requestId="c"
    )
    await save(client, "f", "x")
    found: dict[str, Any] = {}
    while found.get("type") != "file_content":
        found = await request(client, "read_file", filename="up")
    assert (await request(client, "read_file", filename="f"))["content"] == "x"
    assert (await request(client, "delete_file", filename="f"))["success"]
    await client.send(type="terminal_command", sessionId="s", command="pkill -9 -f ipykernel", requestId="k")
    assert (await client.answer_to("c"))["cause"] == "kernel_died"
    await client.answer_to("k")
    await save(client, "g", "y")
    assert (await request(client, "read_file", filename="g"))["content"] == "y"
    listed = await request(client, "list_files")
    assert [e["path"] for e in listed["files"]] == ["g", "up"]


async def test_no_file_of_another_user_or_session(server: RunningServer, client: Client) -> None:
    await save(client, "secret", "x")
    async with server.connect("other") as other:
        foreign = await request(other, "read_file", filename="secret")
        unknown = await other.ask(type="read_file", sessionId="unknown", filename="secret")
        assert foreign == {**unknown, "sessionId": "s"}
        assert (await request(other, "list_files"))["files"] == []


async def test_a_fifo_and_a_lease_hold_nobody_up(client: Client) -> None:
    await save(client, "leased", "x")
    await client.shell("mkfifo pipe")
    lease = "import fcntl; held = open('leased', 'r+'); fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)"
    assert (await client.run(f"import signal; signal.signal(signal.SIGIO, signal.SIG_IGN)\n{lease}"))["success"]
    # The system would have an open of the leased file wait for 45 seconds, and one of the FIFO for ever.
    async with asyncio.timeout(20):
        assert (await request(client, "read_file", filename="pipe"))["code"] == "not_a_file"
        leased = await request(client, "read_file", filename="leased")
    assert leased["code"] == "file_failed"
    assert "lease" in leased["message"]
    assert (await save(client, "leased", "y"))["success"]
