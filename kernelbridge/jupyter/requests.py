"""The unanswered requests of a kernel that are answered by one message each.

Executions have a table of their own. This one is bounded in number and in bytes: a request stays in it until its answer
arrives, whether or not somebody still waits for that, because until then some queue has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kernelbridge.errors import KernelBusy
from kernelbridge.jupyter import wire

LIMIT = 64
"""Unanswered requests of one kernel."""
MAX_BYTES = 32 << 20
"""Bytes of all unanswered requests of one kernel; a single one may be as large as a frame."""
FIRST_REPEAT = 0.25
"""Seconds until a request that may have been dropped is sent again; doubled each time."""
LAST_REPEAT = 4.0
"""Maximum of these seconds."""

Send = Callable[[str, list[bytes]], None]
"""Sends frames on a channel; raises `KernelError` if the kernel is dead."""


@dataclass(frozen=True, slots=True)
class _Request:
    channel: str
    reply: str
    """The `msg_type` of the answer."""
    size: int
    answer: asyncio.Future[wire.Message | None]


class RequestTable:
    """The unanswered requests of one kernel."""

    def __init__(self, codec: wire.Codec, send: Send) -> None:
        self._codec = codec
        self._send = send
        self._pending: dict[str, _Request] = {}
        self._size = 0
        self._ended = False

    def __len__(self) -> int:
        return len(self._pending)

    def begin(
        self, channel: str, msg_type: str, content: Mapping[str, Any], *, subshell: str | None = None
    ) -> asyncio.Future[wire.Message | None]:
        """Send a request. Return a future of its answer, which is None if the kernel ends first.

        Raises `KernelError` if the kernel is dead, `KernelBusy` if too many requests are unanswered.
        """
        msg_id, frames = self._codec.request(msg_type, content, subshell=subshell)
        size = sum(map(len, frames))
        if len(self._pending) >= LIMIT or (self._pending and self._size + size > MAX_BYTES):
            raise KernelBusy("The kernel is busy", "it has not answered many earlier requests; try again later")
        self._send(channel, frames)
        answer: asyncio.Future[wire.Message | None] = asyncio.get_running_loop().create_future()
        if self._ended:
            answer.set_result(None)
            return answer
        self._pending[msg_id] = _Request(channel, msg_type.replace("_request", "_reply"), size, answer)
        self._size += size
        return answer

    async def ask(self, channel: str, msg_type: str, content: Mapping[str, Any]) -> wire.Message | None:
        """Send a request and return its answer, or None if the kernel ends first. Raises as `begin` does.

        If cancelled, the request stays in the table, because some queue still has it.
        """
        answer = self.begin(channel, msg_type, content)
        await asyncio.wait({answer})
        return answer.result()

    async def ask_until_answered(self, channel: str, msg_type: str, content: Mapping[str, Any]) -> wire.Message | None:
        """Send a request repeatedly until one is answered. Return the answer, or None if the kernel ends first.

        It is for a kernel that starts, which may drop requests, and for requests that may be answered twice: the others
        are forgotten, and their answers ignored.
        """
        asked: list[asyncio.Future[wire.Message | None]] = []
        pause = FIRST_REPEAT
        try:
            while True:
                asked.append(self.begin(channel, msg_type, content))
                done, _ = await asyncio.wait(asked, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return done.pop().result()
                pause = min(2 * pause, LAST_REPEAT)
        finally:
            self.forget(asked)

    def forget(self, answers: Collection[asyncio.Future[wire.Message | None]]) -> None:
        """Remove requests that the kernel has dropped, or whose answers nobody needs."""
        for msg_id, request in list(self._pending.items()):
            if request.answer in answers:
                del self._pending[msg_id]
                self._size -= request.size

    def accept(self, channel: str, message: wire.Message) -> bool:
        """Return whether a message answers a request by id, channel and type; if so, set the result of its future."""
        request = self._pending.get(message.parent_id)
        if request is None or (request.channel, request.reply) != (channel, message.msg_type):
            return False
        del self._pending[message.parent_id]
        self._size -= request.size
        if not request.answer.done():
            request.answer.set_result(message)
        return True

    def end(self) -> None:
        """Answer all requests with None, because the kernel is dead. Idempotent."""
        self._ended = True
        for request in self._pending.values():
            if not request.answer.done():
                request.answer.set_result(None)
        self._pending.clear()
        self._size = 0
