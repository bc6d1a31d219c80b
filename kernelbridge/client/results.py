"""What runs return: text, pictures, errors, and what notebooks show of it; and the errors that carry a result.

A result wraps the server's frame, so a field that a later server adds is there too (`frame`). Results come from a
sandbox: what a notebook shows of them is escaped text, pictures that cannot run scripts, and HTML in a frame without
rights.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kernelbridge.client.errors import ClientError

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")


@dataclass(frozen=True)
class Bundle:
    """One rich result or display: the same thing in several MIME types."""

    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_result: bool = False
    """Whether it is the value of the last expression; False for `display(…)`."""

    @property
    def text(self) -> str:
        """Its plain text, or an empty string."""
        return _text(self.data.get("text/plain", ""))

    @property
    def mime(self) -> str | None:
        """The MIME type of its picture, or None."""
        return next((mime for mime in PICTURES if mime in self.data), None)

    @property
    def png(self) -> bytes | None:
        """Its PNG picture, or None."""
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        """Its JPEG picture, or None."""
        return self._bytes("image/jpeg")

    @property
    def svg(self) -> str | None:
        """Its SVG picture, or None. An SVG can contain scripts: show it as an image, not as a part of a page."""
        return _text(self.data["image/svg+xml"]) if "image/svg+xml" in self.data else None

    @property
    def html(self) -> str | None:
        """Its HTML, or None. It comes from the sandbox, and may contain scripts."""
        return _text(self.data["text/html"]) if "text/html" in self.data else None

    def _bytes(self, mime: str) -> bytes | None:
        try:
            return base64.b64decode(_text(self.data[mime])) if mime in self.data else None
        except ValueError:  # the code in the sandbox may show anything
            return None

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        if (mime := self.mime) is not None:
            text = _text(self.data[mime])
            encoded = base64.b64encode(text.encode()).decode() if mime == "image/svg+xml" else "".join(text.split())
            return f'<img src="data:{mime};base64,{html.escape(encoded)}">'
        if self.html is not None:
            return f'<iframe sandbox srcdoc="{html.escape(self.html)}" style="width: 100%; border: 0"></iframe>'
        return _pre(self.text)


@dataclass(frozen=True)
class Result:
    """What a cell returned."""

    frame: Mapping[str, Any]
    """The `execution_result`, as the server sent it."""

    @property
    def success(self) -> bool:
        """Whether the code ran to its end."""
        return bool(self.frame["success"])

    @property
    def text(self) -> str:
        """What a terminal would have shown: output, and the text of results, in order."""
        return str(self.frame["output"])

    @property
    def error(self) -> str | None:
        """`Name: message`, or None."""
        return _optional_text(self.frame, "error")

    @property
    def traceback(self) -> str | None:
        """The traceback as plain text, or None."""
        return _optional_text(self.frame, "traceback")

    @property
    def stdout(self) -> str:
        """Standard output, as it was written."""
        return str(self.frame.get("stdout", self.text))

    @property
    def stderr(self) -> str:
        """Standard error, as it was written."""
        return str(self.frame.get("stderr", ""))

    @cached_property
    def displays(self) -> tuple[Bundle, ...]:
        """All that the cell showed, the value of its last expression included, in order."""
        return tuple(
            Bundle(item["data"], item["metadata"], item["type"] == "execute_result")
            for item in self.frame.get("results", [])
        )

    @property
    def data(self) -> Mapping[str, Any]:
        """The value of the last expression as a MIME bundle; empty if there is none."""
        return next((bundle.data for bundle in reversed(self.displays) if bundle.is_result), {})

    @property
    def images(self) -> list[Bundle]:
        """The displays that are pictures."""
        return [bundle for bundle in self.displays if bundle.mime]

    @property
    def cause(self) -> str | None:
        """Why the run was ended, if it was: `timeout`, `interrupted`, `kernel_died`, `out_of_memory` and others."""
        return _optional_text(self.frame, "cause")

    @property
    def duration(self) -> float:
        """Seconds that it took."""
        return float(self.frame.get("durationMs", 0.0)) / 1000

    @property
    def execution_count(self) -> int | None:
        """The number in `In[n]`."""
        return self.frame.get("executionCount")

    @property
    def state_preserved(self) -> bool:
        """False if variables were lost in this run, or before it."""
        return self.frame.get("statePreserved") is not False

    @property
    def late_output(self) -> str:
        """What earlier cells wrote since their end, and notes of the server, such as why variables were lost."""
        return str(self.frame.get("lateOutput", ""))

    @property
    def hint(self) -> str | None:
        """What to do instead, when the code failed because of a limit of the sandbox."""
        return _optional_text(self.frame, "hint")

    @property
    def truncated(self) -> Mapping[str, Any] | None:
        """What is missing from `text`, and which file has all of it; None if nothing is missing."""
        return self.frame.get("truncated")

    def check(self) -> Result:
        """Return this result if the code ran to its end. Raises `CodeError`, `RunTimeout` or `RunEnded`."""
        if self.success:
            return self
        reason = self.traceback or self.hint or ""
        raise _kind(self.cause, CodeError)(self.error or "The run was ended", reason, result=self)

    def __str__(self) -> str:
        return self.text + (self.traceback or (f"{self.error}\n" if self.error else ""))

    def _repr_html_(self) -> str:
        """Show it in a notebook: its text and error, then its displays that are more than text."""
        text = [_pre(str(self))] if str(self) else []
        return "".join([*text, *(bundle._repr_html_() for bundle in self.displays if bundle.mime or bundle.html)])


@dataclass(frozen=True)
class CommandResult:
    """What a terminal command returned."""

    frame: Mapping[str, Any]
    """The `terminal_output`, as the server sent it."""

    @property
    def text(self) -> str:
        """What a terminal would have shown."""
        return str(self.frame["output"])

    @property
    def exit_code(self) -> int | None:
        """128 + n if signal n ended it; None if it was ended with its shell."""
        return self.frame.get("exitCode")

    @property
    def success(self) -> bool:
        """Whether the exit code is 0 and nothing ended it."""
        return self.exit_code == 0 and self.cause is None

    @property
    def cwd(self) -> str | None:
        """The shell's directory after it."""
        return _optional_text(self.frame, "cwd")

    @property
    def cause(self) -> str | None:
        """Why it was ended, if it was."""
        return _optional_text(self.frame, "cause")

    @property
    def duration(self) -> float:
        """Seconds that it took."""
        return float(self.frame.get("durationMs", 0.0)) / 1000

    @property
    def state_preserved(self) -> bool:
        """False if the shell was lost in this run, or before it."""
        return self.frame.get("statePreserved") is not False

    @property
    def late_output(self) -> str:
        """What background jobs wrote since the last result, and notes of the server."""
        return str(self.frame.get("lateOutput", ""))

    @property
    def hint(self) -> str | None:
        """What to do instead, when the command failed because of a limit of the sandbox."""
        return _optional_text(self.frame, "hint")

    @property
    def truncated(self) -> Mapping[str, Any] | None:
        """What is missing from `text`, and which file has all of it; None if nothing is missing."""
        return self.frame.get("truncated")

    def check(self) -> CommandResult:
        """Return this result if it succeeded. Raises `CommandFailed`, `RunTimeout` or `RunEnded`."""
        if self.success:
            return self
        what = f"The command was ended: {self.cause}" if self.cause else f"The command ended with {self.exit_code}"
        raise _kind(self.cause, CommandFailed)(what, self.hint or self.text[-1000:], result=self)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        return _pre(self.text)


class RunError(ClientError):
    """A run did not succeed. `result` is the whole result."""

    code = "run_failed"

    def __init__(self, message: str, reason: str, *, result: Result | CommandResult) -> None:
        super().__init__(message, reason)
        self.result = result


class CodeError(RunError):
    """The code raised an exception."""

    code = "code_failed"


class CommandFailed(RunError):
    """A terminal command ended with an exit code other than 0."""

    code = "command_failed"


class RunTimeout(RunError):
    """The run was ended because it ran longer than its time limit."""

    code = "run_timeout"


class RunEnded(RunError):
    """The run was ended by something else than its code: `result.cause`."""

    code = "run_ended"


def _kind(cause: str | None, failed: type[RunError]) -> type[RunError]:
    if cause is None:
        return failed
    return RunTimeout if cause == "timeout" else RunEnded


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _optional_text(frame: Mapping[str, Any], name: str) -> str | None:
    value = frame.get(name)
    return None if value is None else str(value)


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
