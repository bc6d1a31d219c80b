"""What the audit log has of each request. A request without an entry changes nothing that an operator looks up later.

The entry is made before the request is handled; if it is refused, another entry says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kernelbridge.audit.audit import Audit, By
from kernelbridge.protocol.cells import ExecuteCode, Interrupt, RestartKernel
from kernelbridge.protocol.files import DeleteFile, MakeDirectory, ReadFile, RenameFile, SaveFile
from kernelbridge.protocol.terminals import OpenTerminal, TerminalCommand

Note = Callable[[Audit, By, Any], None]
"""Makes the entry of one type of request; `Any` is that type, the key in the table."""

_NOTES: Mapping[type, Note] = MappingProxyType(
    {
        ExecuteCode: lambda audit, by, message: audit.cell(by, message.code),
        TerminalCommand: lambda audit, by, message: audit.command(by, message.command),
        Interrupt: lambda audit, by, message: audit.interrupt(by, message.target),
        RestartKernel: lambda audit, by, _: audit.interrupt(by, "kernel"),
        OpenTerminal: lambda audit, by, message: audit.terminal(by, message.terminal_id),
        SaveFile: lambda audit, by, message: audit.file(by, "save", message.filename, size=len(message.content)),
        ReadFile: lambda audit, by, message: audit.file(by, "download", message.filename),
        DeleteFile: lambda audit, by, message: audit.file(by, "delete", message.filename),
        RenameFile: lambda audit, by, message: audit.file(by, "rename", message.filename, to=message.new_filename),
        MakeDirectory: lambda audit, by, message: audit.file(by, "make_directory", message.filename),
    }
)


def note_request(audit: Audit, by: By, message: object) -> None:
    """Add the entry of a request, if it has one."""
    note = _NOTES.get(type(message))
    if note is not None:
        note(audit, by, message)
