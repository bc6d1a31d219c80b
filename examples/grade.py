r"""Grade programs of students: each runs in a session of its own, with limits of time, memory and output.

A task is a JSON file, `[{"input": ["3", "4"], "output": "7\n"}, …]`: lines for `input()`, and what must be printed.
The expected output never reaches a session. Start a server (`kernelbridge serve`), then:

    python examples/grade.py task.json ann.py bob.py
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TypedDict

from kernelbridge import AsyncClient, AsyncSession, KernelBridgeError

SERVER = os.environ.get("KERNELBRIDGE_URL", "ws://localhost:8001")
SECONDS = 3.0
"""How long a program may run for one test."""
MEMORY = 256 << 20
"""Bytes of memory that a session has, its interpreter included."""
OUTPUT = 10_000
"""Characters that a program may print for one test."""
AT_ONCE = 4
"""How many programs run at the same time."""


class Test(TypedDict):
    """One test of a task."""

    input: list[str]
    output: str


class TooMuchOutput(Exception):  # noqa: N818 - a verdict
    """The program printed more than it may."""


async def run_test(session: AsyncSession, program: str, test: Test) -> str:
    """Run a program with the input of one test, and return the verdict."""
    lines = iter(test["input"])
    printed = 0

    def count(output: object) -> None:
        nonlocal printed
        printed += len(str(output))
        if printed > OUTPUT:
            raise TooMuchOutput  # an exception in a callback interrupts the program

    try:
        result = await session.run(
            program,
            timeout=SECONDS,
            filename="main.py",
            on_output=count,
            on_input=lambda _prompt, _secret: next(lines, "\x04"),  # the end of the input
        )
    except TooMuchOutput:
        return "too much output"
    match result.cause:
        case "timeout":
            return "time limit"
        case "out_of_memory":
            return "memory limit"
    if not result.success:
        return f"failed: {result.error}"
    return "passed" if result.stdout.split() == test["output"].split() else "wrong output"


async def grade(client: AsyncClient, program: str, tests: list[Test]) -> str:
    """Return the first verdict that is not `passed`, with the number of its test."""
    async with client.session(limits={"memory": MEMORY, "pids": 64}, egress="none") as session:
        for number, test in enumerate(tests, 1):
            if number > 1:
                await session.restart()  # no test finds what the one before defined
            verdict = await run_test(session, program, test)
            if verdict != "passed":
                return f"test {number}: {verdict}"
    return "passed"


async def main(tests: list[Test], programs: dict[str, str]) -> None:
    """Print a line for each program."""
    free = asyncio.Semaphore(AT_ONCE)

    async def verdict(client: AsyncClient, program: str) -> str:
        async with free:
            try:
                return await grade(client, program, tests)
            except KernelBridgeError as exc:  # not the student's fault
                return f"not graded: {exc}"

    async with AsyncClient(SERVER, token=os.environ.get("KERNELBRIDGE_TOKEN")) as client:
        verdicts = await asyncio.gather(*(verdict(client, program) for program in programs.values()))
    for name, found in zip(programs, verdicts, strict=True):
        print(f"{name}: {found}")


if __name__ == "__main__":
    task, *paths = map(Path, sys.argv[1:])
    asyncio.run(
        main(
            json.loads(task.read_text(encoding="utf-8")),
            {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths},
        )
    )
