"""Completion, inspection and completeness of code, answered by a kernel.

While no cell runs, the questions go to the kernel's main shell. While one runs, they go to a subshell (Jupyter
enhancement proposal 91), which is made when it is first needed. A kernel without subshells is busy then, and so is one
that cannot answer because the cell holds the interpreter's lock. Answers are bounded: a kernel may send anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec

from kernelbridge.errors import KernelBusy, KernelError
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.requests import RequestTable
from kernelbridge.terminal_text import strip_ansi

IDLE_TIMEOUT = 30.0
"""Seconds for an answer while no cell runs: the first completion imports and parses many files."""
BUSY_TIMEOUT = 2.0
"""Seconds for making a subshell, and for its answer, while a cell runs."""
MAX_MATCHES = 1000
MAX_MATCH = 4096
"""Characters of one match."""
MAX_TREE = 1 << 18
"""Bytes of metadata or of a MIME bundle; larger ones are left out."""
MAX_REPLY = 2 << 20
"""Bytes of a reply; a larger one is refused."""
MAX_SUBSHELL_ID = 256

_T = TypeVar("_T")

Completeness = Literal["complete", "incomplete", "invalid", "unknown"]


@dataclass(frozen=True, slots=True)
class Completion:
    """Possible completions of code: each match replaces `code[start:end]`, counted in characters."""

    matches: list[str]
    start: int
    end: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Information about a name."""

    found: bool
    text: str
    data: dict[str, Any]
    """A MIME bundle."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether code is complete, and the indentation of its next line."""

    status: Completeness
    indent: str


class Help:
    """Asks one kernel. All methods raise `KernelBusy`, or `KernelError` if it is dead or its answer cannot be used."""

    def __init__(self, requests: RequestTable, *, busy: Callable[[], bool]) -> None:
        self.subshells = False
        """Whether the kernel supports subshells."""
        self._requests = requests
        self._busy = busy
        self._subshell: asyncio.Future[wire.Message | None] | None = None

    async def complete(self, code: str, cursor: int) -> Completion:
        """Return completions of `code` at `cursor`, counted in characters."""
        reply = await self._ask("complete_request", {"code": code, "cursor_pos": cursor})
        return read_completion(_read(reply, wire.CompleteReply), len(code))

    async def inspect(self, code: str, cursor: int, detail: int) -> Inspection:
        """Return information about the name at `cursor`, with `detail` 1 also its source."""
        content = {"code": code, "cursor_pos": cursor, "detail_level": detail}
        return read_inspection(_read(await self._ask("inspect_request", content), wire.InspectReply))

    async def is_complete(self, code: str) -> Judgement:
        """Return whether `code` is complete."""
        reply = _read(await self._ask("is_complete_request", {"code": code}), wire.IsCompleteReply)
        status = reply.status if reply.status in get_args(Completeness) else "unknown"
        return Judgement(cast("Completeness", status), reply.indent[:MAX_MATCH])

    async def _ask(self, msg_type: str, content: dict[str, Any]) -> wire.Message:
        subshell = await self._subshell_id() if self._busy() else None
        timeout = IDLE_TIMEOUT if subshell is None else BUSY_TIMEOUT
        answer = self._requests.begin("shell", msg_type, content, subshell=subshell)
        return _answered(await _wait(answer, timeout))

    async def _subshell_id(self) -> str:
        """Return the id of the subshell for questions; make it first if there is none."""
        if not self.subshells:
            raise KernelBusy(
                "The interpreter runs a cell",
                "this kernel cannot answer while a cell runs; try again after the cell has ended",
            )
        if self._subshell is None:
            self._subshell = self._requests.begin("control", "create_subshell_request", {})
        made = _read(_answered(await _wait(self._subshell, BUSY_TIMEOUT)), wire.SubshellReply)
        if made.status != "ok" or made.subshell_id is None or len(made.subshell_id) > MAX_SUBSHELL_ID:
            self._subshell = None
            raise KernelBusy("The interpreter runs a cell", "its kernel could not make a subshell; try again later")
        return made.subshell_id


async def _wait(
    answer: asyncio.Future[wire.Message | None],
    timeout: float,  # noqa: ASYNC109 - the question outlives it
) -> wire.Message | None:
    await asyncio.wait({answer}, timeout=timeout)
    if not answer.done():
        raise KernelBusy("The interpreter is busy", f"it did not answer within {timeout:g} s; try again later")
    return answer.result()


def _answered(reply: wire.Message | None) -> wire.Message:
    if reply is None:
        raise KernelError("The kernel is dead", "send the request again: a new one is started")
    return reply


def _read(reply: wire.Message, kind: type[_T]) -> _T:
    if len(reply.content) > MAX_REPLY:
        raise KernelError("The kernel's answer cannot be used", f"it has {len(reply.content)} bytes")
    try:
        return wire.decode(reply.content, kind)
    except wire.BadFrame as exc:
        raise KernelError("The kernel's answer cannot be used", f"it sent {exc}") from exc


def read_completion(reply: wire.CompleteReply, length: int) -> Completion:
    """Read a completion of code of `length` characters; whatever makes no sense in it is left out."""
    start = min(max(reply.cursor_start, 0), length)
    end = min(max(reply.cursor_end, start), length)
    matches = [match for match in reply.matches[:MAX_MATCHES] if len(match) <= MAX_MATCH]
    return Completion(matches if reply.status == "ok" else [], start, end, _small_tree(reply.metadata))


def read_inspection(reply: wire.InspectReply) -> Inspection:
    """Read an inspection; whatever makes no sense in it is left out."""
    if not reply.found or reply.status != "ok":
        return Inspection(found=False, text="", data={})
    data = _small_tree(reply.data)
    text = data.get("text/plain", "")
    return Inspection(found=True, text=strip_ansi(text) if isinstance(text, str) else "", data=data)


def _small_tree(raw: msgspec.Raw) -> dict[str, Any]:
    if len(memoryview(raw)) > MAX_TREE:
        return {}
    try:
        tree = msgspec.json.decode(raw, type=dict[str, Any] | None) or {}
        wire.check_depth(tree)
    except (msgspec.MsgspecError, wire.BadFrame, ValueError, RecursionError):
        return {}
    return tree
