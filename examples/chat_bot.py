r"""The loop of a chat bot: a session for each user, which keeps its variables and is closed when it is idle.

The chat is standard input here: each line is a user's name, a colon and code. Start a server (`kernelbridge serve`):

    printf 'ann: x = 20\nbob: x = 1\nann: x + 1\n' | python examples/chat_bot.py
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Self

from kernelbridge import AsyncClient, AsyncSession, ConnectionLost, KernelBridgeError

SERVER = os.environ.get("KERNELBRIDGE_URL", "ws://localhost:8001")
SECONDS = 20.0
"""How long one message may keep its session busy."""
IDLE = float(os.environ.get("IDLE", "600"))
"""Seconds without a message after which a user's session is closed. Files would stay for the next one."""


class Bot:
    """Passes each user's messages to a task of their own: users do not wait for each other."""

    def __init__(self, client: AsyncClient, say: Callable[[str, str], None]) -> None:
        self._client = client
        self._say = say
        self._messages: dict[str, asyncio.Queue[str | None]] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        for waiting in self._messages.values():
            waiting.put_nowait(None)  # behind the messages that are not answered yet
        await self._tasks.__aexit__(*failure)  # type: ignore[arg-type]

    def receive(self, user: str, message: str) -> None:
        """Take a message from the chat; the answer comes by `say`."""
        if user not in self._messages:
            self._messages[user] = asyncio.Queue()
            self._tasks.create_task(self._serve(user, self._messages[user]))
        self._messages[user].put_nowait(message)

    async def _serve(self, user: str, messages: asyncio.Queue[str | None]) -> None:
        """Answer one user until nothing has come for long."""
        with contextlib.suppress(ConnectionLost):  # at the end: a server that is gone has closed the session, too
            async with self._client.session() as session:
                while (code := await self._next(user, messages)) is not None:
                    self._say(user, await answer(session, code))
        self._say(user, "(your session is closed)")

    async def _next(self, user: str, messages: asyncio.Queue[str | None]) -> str | None:
        """Return the next message, or None after which the user's next one finds no session, and makes one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE):
                if (message := await messages.get()) is not None:
                    return message
        del self._messages[user]
        return None


async def answer(session: AsyncSession, code: str) -> str:
    """Run what a user wrote, and return what they are shown."""
    try:
        result = await session.run(code, timeout=SECONDS)
    except KernelBridgeError as exc:  # the server refused it, or is gone
        return f"{exc.message}: {exc.reason}"
    return result.text or result.error or "done"


async def main() -> None:
    """Answer the lines of standard input."""
    loop = asyncio.get_running_loop()
    async with (
        AsyncClient(SERVER, token=os.environ.get("KERNELBRIDGE_TOKEN")) as client,
        Bot(client, lambda user, text: print(f"{user}> {text.rstrip()}", flush=True)) as bot,
    ):
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            user, _, code = line.partition(":")
            bot.receive(user.strip(), code.strip())


if __name__ == "__main__":
    asyncio.run(main())
