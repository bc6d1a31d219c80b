"""The request that runs a cell (pure)."""

from __future__ import annotations

from typing import Any

from kernelbridge.jupyter.execution import Cell


def content(cell: Cell) -> dict[str, Any]:
    """Give the content of its `execute_request`."""
    return {
        "code": cell.code,
        "silent": cell.silent,
        "store_history": cell.store_history and not cell.silent,
        "user_expressions": {},
        "allow_stdin": cell.allow_stdin,
        "stop_on_error": False,
    }


def metadata(cell: Cell) -> dict[str, Any]:
    """Give what the hooks in the kernel are told with it."""
    return {"kernelbridge": {"filename": cell.filename, **({"stream": True} if cell.stream else {})}}
