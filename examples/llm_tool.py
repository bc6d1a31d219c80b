"""A chat model with a Python tool: it decides what to run, gets the text, and answers.

It talks to any service with the common "chat completions" interface. Start a server (`kernelbridge serve`), then:

    export CHAT_URL=https://api.example.org/v1/chat/completions CHAT_MODEL=name-of-a-model CHAT_KEY=…
    python examples/llm_tool.py "Which of 2**31-1 and 2**32-1 is prime?"
"""

import asyncio
import json
import os
import sys
from typing import Any

import aiohttp

from kernelbridge import AsyncClient, AsyncSession, Result

SERVER = os.environ.get("KERNELBRIDGE_URL", "ws://localhost:8001")
SECONDS = 30.0
"""How long one piece of code may run."""
SHOWN = 2_000
"""Characters of one text that the model gets."""
ROUNDS = 10
"""How often the model may run code for one question."""
TOOL = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run Python code. Variables, imports and files stay. input() is not available.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}
Message = dict[str, Any]


async def ask_model(http: aiohttp.ClientSession, messages: list[Message]) -> Message:
    """Send the conversation to the model, and return its next message. Replace this for another kind of service."""
    headers = {"Authorization": f"Bearer {os.environ.get('CHAT_KEY', '')}"}
    body = {"model": os.environ.get("CHAT_MODEL", ""), "messages": messages, "tools": [TOOL]}
    async with http.post(os.environ["CHAT_URL"], json=body, headers=headers, raise_for_status=True) as response:
        message: Message = (await response.json())["choices"][0]["message"]
        return message


async def converse(http: aiohttp.ClientSession, session: AsyncSession, question: str) -> str:
    """Let the model run code until it answers, and return the answer."""
    messages: list[Message] = [{"role": "user", "content": question}]
    for _ in range(ROUNDS):
        message = await ask_model(http, messages)
        messages.append(message)
        if not message.get("tool_calls"):
            return str(message["content"])
        for call in message["tool_calls"]:
            text = await run_tool(session, call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
    return "No answer: the model ran code too often."


async def run_tool(session: AsyncSession, arguments: str) -> str:
    """Run what the model wrote, and return what it is shown. What is wrong with its arguments is told to it, too."""
    try:
        code = str(json.loads(arguments)["code"])
    except (ValueError, TypeError, KeyError):
        return 'Nothing was run. The arguments must be {"code": "…"}.'
    return for_the_model(await session.run(code, timeout=SECONDS))


def for_the_model(result: Result) -> str:
    """Say in one text what happened, and what the model cannot know otherwise."""
    parts = [result.late_output, shortened(result.text), shortened(result.traceback or result.error or "")]
    if result.cause == "timeout":
        parts.append("The time limit was reached. Use smaller steps, or less data.")
    if not result.state_preserved:
        parts.append("All variables are lost. Files are kept. Run imports and definitions again.")
    if result.hint:
        parts.append(f"Hint: {result.hint}")
    if result.images:
        parts.append(f"[{len(result.images)} picture(s) shown to the user]")
    return "\n".join(part.rstrip("\n") for part in parts if part) or "(no output)"


def shortened(text: str) -> str:
    """Keep the beginning and the end: the end of a traceback says what failed."""
    left_out = len(text) - SHOWN
    return text if left_out <= 0 else f"{text[: SHOWN // 2]}\n… {left_out} characters …\n{text[-SHOWN // 2 :]}"


async def main() -> None:
    """Answer the question of the command line."""
    token = os.environ.get("KERNELBRIDGE_TOKEN")
    async with aiohttp.ClientSession() as http, AsyncClient(SERVER, token=token) as client, client.session() as session:
        print(await converse(http, session, sys.argv[1]))


if __name__ == "__main__":
    asyncio.run(main())
