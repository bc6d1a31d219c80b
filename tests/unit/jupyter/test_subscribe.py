"""A second consumer of a kernel's messages gets all parts of each message."""

import asyncio
import json
from typing import Any

import pytest

from kernelbridge.jupyter.cell import Cell
from kernelbridge.jupyter.wire import RawMessage
from tests.unit.jupyter.conftest import PATIENCE, Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMM = """
from comm import create_comm
buffers = [b"\\x00\\xff", bytes(2 << 20)]
comm = create_comm(target_name="a widget", data={"value": 1}, metadata={"version": "2"}, buffers=buffers)
kernel = get_ipython().kernel
kernel.session.send(kernel.iopub_socket, "comm_msg", {"comm_id": "nobody's", "data": {}}, parent={}, buffers=[b"b"])
"""


class Consumer:
    """Keeps all messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, RawMessage]] = []
        self._more = asyncio.Event()

    def __call__(self, channel: str, message: RawMessage) -> None:
        self.messages.append((channel, json.loads(message.header)["msg_type"], message))
        self._more.set()

    async def first(self, channel: str, kind: str) -> RawMessage:
        async with asyncio.timeout(PATIENCE):
            while not (found := [message for *what, message in self.messages if what == [channel, kind]]):
                self._more.clear()
                await self._more.wait()
        return found[0]


def content(message: RawMessage) -> Any:
    return json.loads(message.content)


async def test_comms_buffers_and_messages_without_a_parent_arrive(any_notebook: Notebook) -> None:
    consumer = Consumer()
    end = any_notebook.kernel.subscribe(consumer)
    assert (await any_notebook.run(COMM)).error is None
    opened = await consumer.first("iopub", "comm_open")
    assert (content(opened)["target_name"], opened.buffers) == ("a widget", [b"\x00\xff", bytes(2 << 20)])
    assert json.loads(opened.metadata) == {"version": "2"}
    reply = await consumer.first("shell", "execute_reply")
    assert content(reply)["status"] == "ok"
    request = json.loads(reply.parent_header)
    assert (request["msg_type"], json.loads(opened.parent_header)["msg_id"]) == ("execute_request", request["msg_id"])
    assert {"msg_id", "session", "date", "version"} <= json.loads(opened.header).keys()
    orphan = await consumer.first("iopub", "comm_msg")
    assert (json.loads(orphan.parent_header), orphan.buffers) == ({}, [b"b"])
    end()
    before = len(consumer.messages)
    await any_notebook.run("1")
    assert len(consumer.messages) == before


async def test_questions_and_interrupts_arrive_too(any_notebook: Notebook) -> None:
    consumer = Consumer()
    end = any_notebook.kernel.subscribe(consumer)
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    any_notebook.kernel.submit(Cell(code="input('name? ')", allow_stdin=True), done.set_result, lambda _event: None)
    assert content(await consumer.first("stdin", "input_request"))["prompt"] == "name? "
    await any_notebook.kernel.interrupt()
    await asyncio.wait_for(done, PATIENCE)
    await consumer.first("control", "interrupt_reply")
    end()


async def test_a_failing_consumer_costs_the_cells_nothing(any_notebook: Notebook) -> None:
    def failing(_channel: str, _message: RawMessage) -> None:
        raise RuntimeError

    consumer = Consumer()
    any_notebook.kernel.subscribe(failing)
    end = any_notebook.kernel.subscribe(consumer)
    assert (await any_notebook.run("print(1)")).output == "1\n"
    await consumer.first("iopub", "stream")
    assert any_notebook.kernel._intake.consumers == {consumer}
    end()
