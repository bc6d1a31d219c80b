"""A cell, the request that runs it, and its outcome (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelbridge.jupyter.bounded import Spill


@dataclass(frozen=True, slots=True)
class Cell:
    """Code to run, and how to run it."""

    code: str
    filename: str = "main.py"
    silent: bool = False
    store_history: bool = True
    allow_stdin: bool = False
    stream: bool = False
    """Whether a client watches the output. Then the kernel sends it at once instead of collecting it for 0.2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an execution ended."""

    success: bool
    output: str = ""
    """The text that a terminal would have shown: stdout, stderr, results and displays, in order."""
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
    """CPU time of the kernel and of the children for which it waited; None if the kernel does not report it."""
    oom_kills: int = 0
    """Number of processes of the sandbox that the system killed meanwhile because memory was exhausted, if reported."""
    truncated: dict[str, Any] | None = None
    """See `output.Rendered.truncated`."""
    cause: str | None = None
    """Why it was ended: one of `protocol.base.Cause`."""
    exit_code: int | None = None
    """Exit code of the kernel, if it ended by itself."""
    signal: str | None = None
    """Name of the signal that ended the kernel."""
    state_preserved: bool = True
    """Whether the interpreter still has its variables."""
    late_output: str = ""
    """Text that background threads wrote after the end of their cells."""
    hint: str | None = None
    """What to do instead, if the cell or a program in it failed because of the sandbox."""
    spill: Spill | None = None
    """Stores the whole `output`, if that is truncated. The receiver of the outcome must finish it."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Long texts that are encoded as JSON already, by the name of their field here."""

    @property
    def texts(self) -> dict[str, str | list[dict[str, Any]] | None]:
        """The fields that may be long, by name."""
        names = ("output", "stdout", "stderr", "results", "traceback")
        # An equal stdout is left out; see `answers.execution_result`.
        return {name: getattr(self, name) for name in names if name != "stdout" or self.stdout != self.output}

    @classmethod
    def ended(cls, cause: str, error: str) -> Outcome:
        """Return the outcome of a cell that never reached a kernel."""
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
    """Return the metadata of that request. The hooks in the kernel read it."""
    return {"kernelbridge": {"filename": cell.filename, **({"stream": True} if cell.stream else {})}}
