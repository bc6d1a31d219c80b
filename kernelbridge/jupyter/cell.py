"""A cell: what to run and how, the request that runs it, and how it ended (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelbridge.jupyter.bounded import Overflow


@dataclass(frozen=True, slots=True)
class Cell:
    """What to run, and how."""

    code: str
    filename: str = "main.py"
    silent: bool = False
    store_history: bool = True
    allow_stdin: bool = False
    stream: bool = False
    """Whether somebody watches: the kernel then sends at once what it would else collect for a while."""
    user: str = ""
    """The name the kernel is told in its message headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an execution ended."""

    success: bool
    output: str = ""
    """What a terminal would have shown: stdout, stderr, results and displays as text, in order."""
    error: str | None = None
    """`<Name>: <message>` on one line."""
    stdout: str = ""
    stderr: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    traceback: str | None = None
    """Plain text, lines separated by `\\n`."""
    execution_count: int | None = None
    duration_ms: float = 0.0
    """From its submission, or from the end of the cell before it if that was later."""
    cpu_ms: float | None = None
    """Of the kernel and the children it waited for; None if the kernel does not tell."""
    oom_kills: int = 0
    """How often something in the sandbox was killed for want of memory meanwhile, if the kernel tells."""
    truncated: dict[str, Any] | None = None
    """See `output.Rendered.truncated`."""
    cause: str | None = None
    """Why it was ended: one of `protocol.base.Cause`."""
    exit_code: int | None = None
    """Of the kernel, when that ended by itself."""
    signal: str | None = None
    """The name of the signal that ended the kernel."""
    state_preserved: bool = True
    """Whether the interpreter still has its variables."""
    late_output: str = ""
    """What background threads wrote while no cell was theirs."""
    hint: str | None = None
    """What to do instead, where the cell or a program in it failed for a reason that a sandbox gives."""
    overflow: Overflow | None = None
    """What has the whole of `output`, when that is truncated; to be finished by whoever takes this."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Those of its long texts that are written as JSON already, by their names here."""

    @property
    def texts(self) -> dict[str, str | list[dict[str, Any]] | None]:
        """What may be long, by name."""
        names = ("output", "stdout", "stderr", "results", "traceback")
        # No text twice; see `answers.execution_result`.
        return {name: getattr(self, name) for name in names if name != "stdout" or self.stdout != self.output}

    @classmethod
    def ended(cls, cause: str, error: str) -> Outcome:
        """Give the outcome of a cell that never reached a kernel."""
        return cls(success=False, error=error, cause=cause, state_preserved=False)


def request_content(cell: Cell) -> dict[str, Any]:
    """Return the content of the `execute_request` of a cell."""
    return {
        "code": cell.code,
        "silent": cell.silent,
        "store_history": cell.store_history and not cell.silent,
        "user_expressions": {},
        "allow_stdin": cell.allow_stdin,
        "stop_on_error": False,
    }


def request_metadata(cell: Cell) -> dict[str, Any]:
    """Return the metadata of that request, which the hooks in the kernel read."""
    return {"kernelbridge": {"filename": cell.filename, **({"stream": True} if cell.stream else {})}}
