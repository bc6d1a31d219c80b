"""The command that starts a kernel, and the programs that a Python kernel runs before its first cell (pure)."""

from __future__ import annotations

import functools
import marshal
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import MAGIC_NUMBER
from pathlib import PurePosixPath
from typing import Any

from kernelbridge.jupyter import wire
from kernelbridge.runtimes.facts import KernelSpec

PROGRAM = (
    *("imports.py", "names.py", "tracebacks.py", "interrupts.py"),
    *("recall.py", "questions.py", "own_modules.py", "streams.py", "forks.py", "commands.py"),
    *("uncaught.py", "strict_json.py", "hooks.py"),
)
"""The files of `guest/kernel/` that together are the hooks: the program that runs inside a Python kernel."""

START = ("imports.py", "pump.py", "start.py")
"""The files of `guest/kernel/` that together are the program that starts a Python kernel."""

ENV: Mapping[str, str] = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
"""Without this, the debugger that ipykernel loads warns about frozen modules."""

_IPYKERNEL_OPTIONS = ("--HistoryManager.enabled=False",)
"""No history database: its thread and its file take a third of the time of a small cell. `In`, `Out` and `_` work."""
_PYTHON_OPTIONS_WITH_VALUE = frozenset({"-W", "-X", "-c", "--check-hash-based-pycs"})


def is_ipykernel(spec: KernelSpec, argv: Sequence[str] | None = None) -> bool:
    """Whether the kernel is an ipykernel."""
    return spec.language == "python" and any(word.startswith("ipykernel") for word in argv or spec.argv)


def command(
    spec: KernelSpec,
    connection_file: str,
    argv: Sequence[str] | None = None,
    *,
    start_file: str | None,
) -> list[str]:
    """Return the command that starts a kernel, with `{connection_file}` replaced by its path inside the sandbox.

    `start_file` is the path inside the sandbox of the program that `start_source` returns. It replaces the `-m` of an
    ipykernel's command. None leaves the command of the kernelspec as it is.
    """
    words = [word.replace("{connection_file}", connection_file) for word in (argv or spec.argv)]
    if start_file is None or not is_ipykernel(spec, words):
        return words
    words += _IPYKERNEL_OPTIONS
    if starts_itself(words):
        words[words.index("-m")] = start_file
    return words


def starts_itself(words: Sequence[str]) -> bool:
    """Whether a command is `python [option …] -m ipykernel… …`."""
    if not PurePosixPath(words[0]).name.startswith(("python", "pypy")):
        return False
    for at, word in enumerate(words[1:], 1):
        if word == "-m":
            return words[at + 1].startswith("ipykernel")
        if not word.startswith("-") or word in _PYTHON_OPTIONS_WITH_VALUE:
            return False
    return False


def start_source() -> str:
    """Return the program that starts a Python kernel."""
    return _source(START)


@functools.cache
def _source(names: tuple[str, ...]) -> str:
    guest = resources.files("kernelbridge.guest.kernel")
    return "\n".join(guest.joinpath(name).read_text(encoding="utf-8") for name in names)


@functools.cache
def hooks_request() -> Mapping[str, Any]:
    """Return the content of the `execute_request` that installs the hooks in a Python kernel."""
    return program_request(_source(PROGRAM))


def program_request(source: str, magic: bytes = MAGIC_NUMBER) -> Mapping[str, Any]:
    """Return the content of the `execute_request` that runs a program.

    The program runs in an expression beside an empty cell, because IPython wraps the streams while a cell runs. The
    request may be sent twice, and the program runs only the first time. Beside the source it has the code that this
    Python has compiled, for kernels whose Python has the same `magic`: compiling the hooks takes 40 ms of a start.
    """
    code = marshal.dumps(compile(source, "<kernelbridge>", "exec", dont_inherit=True)).hex()
    loaded = f"__import__('marshal').loads(bytes.fromhex('{code}'))"
    compiled = f"compile({source!r}, '<kernelbridge>', 'exec')"
    same = f"__import__('_frozen_importlib_external').MAGIC_NUMBER == {magic!r}"
    program = f"exec({loaded} if {same} else {compiled}, {{'__name__': '<kernelbridge>'}})"
    once = "seen.get('ran') or seen.update(ran=True)"
    run = f"(lambda seen: {once} or {program})(get_ipython().kernel.__dict__.setdefault('_kernelbridge', {{}}))"
    beside = {"code": "", "silent": True, "store_history": False, "allow_stdin": False}
    return {**beside, "user_expressions": {"hooks": run}}


def hooks_failure(reply: wire.Message) -> str | None:
    """Return why the hooks were not installed, or None if they were. Raises `BadFrame`."""
    content = wire.decode(reply.content, wire.ExpressionReply)
    result = content.user_expressions.get("hooks", {})
    return None if result.get("status") == "ok" else f"{content.status}: {result.get('evalue')}"
