"""The output of a cell, as a terminal would have shown it (pure).

`Output` takes the output of one execution in order of arrival. It returns `output` (what a terminal would have shown of
stdout, stderr and the text of results), the raw `stdout` and `stderr`, and the MIME bundles. Every part is bounded: of
more, head and tail are kept and the bytes between them counted, and a `Spill` stores the whole `output`. The work
is linear in the size of the output, however it is cut into messages; generators that do long work yield often. While
there is only one stream and `output` is equal to it, both are kept once.

`handling_output` adds a kernel's messages to an `Output`, and calls a listener with the events.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import BoundedText, Bundle, Display, Spill, size
from kernelbridge.jupyter.events import Cleared, Displayed, Listener, Updated, Wrote
from kernelbridge.protocol import texts
from kernelbridge.terminal_text import Screen, has_control, stripped

ResultType = Literal["execute_result", "display_data"]

_RESULT_COST = 256  # bytes that a bundle costs beside its text: a million empty ones are not free
_MAX_DISPLAYS = 10_000  # displays of one cell that can be updated; each place where an id is shown counts
_PART = 1 << 16  # characters of a display's text that are added at once
_AT_ONCE = 256  # results that are put together at once
DISPLAYS = frozenset({"display_data", "execute_result"})
OUTPUT = DISPLAYS | {"stream", "update_display_data", "clear_output"}
"""The types of the messages that `handling_output` handles."""
_STREAM_PART = 1 << 15  # characters of a stream that are added at once


@dataclass(frozen=True, slots=True)
class Rendered:
    """The complete output of an execution."""

    output: str
    stdout: str
    stderr: str
    results: list[dict[str, Any]]
    """`{"type": "execute_result"|"display_data", "data": MIME bundle, "metadata": …}` each."""
    truncated: dict[str, Any] | None
    """None if nothing is left out, else `{"bytes": left out of `output`, "kept": "head and tail", "at": character of
    `output` where they are missing, "stdout": bytes, "stderr": bytes, "results": bytes}`."""
    spill: Spill | None
    """Stores the whole `output`, if that is truncated. The receiver must finish it."""


class Output:
    """Collects the output of one execution."""

    def __init__(
        self, max_output: int, *, kept: int | None = None, spill: Callable[[], Spill | None] | None = None
    ) -> None:
        """Keep at most `max_output` bytes each of `output`, `stdout`, `stderr` and the results.

        Of a longer text `kept` bytes are kept (None: `max_output`). `spill` returns what stores the whole `output`.
        """
        self._limit = max_output
        self._kept = BoundedText(max_output, kept=kept, spill=spill)
        self._screen = Screen(self._kept.append)
        self._only: str | None = ""
        """The only stream so far, empty if there is none; None when stdout and stderr are kept separately."""
        self._stdout = BoundedText(max_output, kept=kept)
        self._stderr = BoundedText(max_output, kept=kept)
        self._clear_next = False
        self._rendered: Rendered | None = None
        self._reset_results()
        self._results_left_out = 0

    def _reset_results(self) -> None:
        self._results: list[tuple[ResultType, Bundle]] = []
        self._results_size = 0
        self._displays: dict[str, Display] = {}
        self._places = 0

    def stream(self, name: str, text: str) -> None:
        """Add text of a stream; every name but `stderr` counts as stdout."""
        if self._rendered is not None:
            return
        if self._clear_next:
            self._clear()
        name = "stderr" if name == "stderr" else "stdout"
        plain = not has_control(text)
        if self._only is not None:
            if self._only in {"", name} and plain:
                self._only = name
            else:
                self._keep_apart()
        if self._only is None:
            (self._stderr if name == "stderr" else self._stdout).append(text)
        self._screen.feed(text, plain=plain)

    def draw(self) -> Iterator[None]:
        """Draw the text that `stream` has added; yields often. Text that is not drawn is drawn later."""
        return self._screen.draw()

    def _keep_apart(self) -> None:
        """Keep stdout and stderr separately from now on: `output` will differ from the only stream so far."""
        if self._only:
            raw = self._kept.copy()
            raw.append(self._screen.pending())
            if self._only == "stderr":
                self._stderr = raw
            else:
                self._stdout = raw
        self._only = None

    def display(
        self,
        kind: ResultType,
        data: dict[str, Any],
        metadata: dict[str, Any],
        display_id: str | None,
        length: int,
        *,
        text: str,
    ) -> Iterator[None]:
        """Add a result or display of `length` bytes, whose `plain_text` is `text`; yields often.

        If an earlier display has the same id, that is replaced too, as by IPython's `DisplayHandle.display`.
        """
        if self._rendered is not None:
            return
        if self._clear_next:
            self._clear()
        self._keep_apart()
        self.update(data, metadata, display_id, length, text=text)
        self._screen.fresh_line()
        room = self._results_size + length + _RESULT_COST <= self._limit
        if room and _is_image(data):
            text = ""
        display = None
        if display_id is not None and self._places < _MAX_DISPLAYS:
            self._places += 1
            display = self._displays.get(display_id)
            if display is None:
                display = self._displays[display_id] = Display(text, size(text))
            self._kept.append_display(display)
        else:
            for start in range(0, len(text), _PART):
                self._kept.append(text[start : start + _PART])
                yield
                if self._ended():  # by `render`
                    return
        if room:
            self._keep_bundle(kind, Bundle(data, metadata, length), display)
        else:
            self._results_left_out += length

    def _keep_bundle(self, kind: ResultType, bundle: Bundle, display: Display | None) -> None:
        if display is not None:
            if display.bundle is None:
                display.bundle = bundle
            elif display.bundle.data is not bundle.data:
                self._results_left_out += bundle.length  # there was no room for it in its earlier places
                return
            display.results += 1
            bundle = display.bundle
        self._results_size += bundle.length + _RESULT_COST
        self._results.append((kind, bundle))

    def update(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any],
        display_id: str | None,
        length: int,
        *,
        text: str,
    ) -> None:
        """Change a display of this execution; an unknown `display_id` changes nothing."""
        display = self._displays.get(display_id) if display_id is not None else None
        if display is None or self._rendered is not None:
            return
        if display.bundle is None:
            self._kept.replace(display, text)
            return
        size_now = self._results_size + display.results * (length - display.bundle.length)
        if size_now > self._limit:
            self._kept.replace(display, text)
            self._results_left_out += display.results * length
            return
        self._kept.replace(display, "" if _is_image(data) else text)
        self._results_size = size_now
        display.bundle.data, display.bundle.metadata, display.bundle.length = data, metadata, length

    def clear(self, *, wait: bool) -> None:
        """Remove the output so far; with `wait`, when the next output arrives."""
        if self._rendered is not None:
            return
        if wait:
            self._clear_next = True
        else:
            self._clear()

    def _clear(self) -> None:
        self._clear_next = False
        self._keep_apart()
        self._screen.clear()
        self._kept.clear()
        self._reset_results()

    def render(self) -> Rendered:
        """End the output and return it, each time the same; later additions are ignored."""
        for _ in self.ending():
            pass
        if self._rendered is None:
            raise AssertionError("it has ended")
        return self._rendered

    def ending(self) -> Iterator[None]:
        """End the output as `render` does; yields often. It can be abandoned: `render` then does the rest."""
        if self._rendered is not None:
            return
        yield from self._screen.finishing()
        if self._ended():  # by `render`
            return
        if self._only == "stdout":
            self._stdout = self._kept
        elif self._only == "stderr":
            self._stderr = self._kept
        texts = [self._kept.text()]
        for kept in (self._stdout, self._stderr):
            yield
            texts.append(texts[0] if kept is self._kept else kept.text())
        yield
        results: list[dict[str, Any]] = []
        for count, (kind, bundle) in enumerate(self._results, 1):
            results.append({"type": kind, "data": bundle.data, "metadata": bundle.metadata})
            if count % _AT_ONCE == 0:
                yield
        if not self._ended():  # by `render`
            output, stdout, stderr = texts
            self._rendered = self._end(output, stdout, stderr, results)

    def _ended(self) -> bool:
        return self._rendered is not None

    def _end(self, output: str, stdout: str, stderr: str, results: list[dict[str, Any]]) -> Rendered:
        truncated = None
        if self._kept.left_out or self._stdout.left_out or self._stderr.left_out or self._results_left_out:
            truncated = {
                "bytes": self._kept.left_out,
                "kept": "head and tail",
                "at": self._kept.head_length(),
                "stdout": self._stdout.left_out,
                "stderr": self._stderr.left_out,
                "results": self._results_left_out,
            }
        return Rendered(output, stdout, stderr, results, truncated, self._kept.spilled())


def plain_text(data: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the text that a terminal shows for a bundle; the last line is ended."""
    text = data.get("text/plain", "")
    if isinstance(text, list):  # the notebook format allows a list of lines
        text = "".join(map(str, text))
    if not isinstance(text, str) or not text:
        return
    last = ""
    for part in stripped(text):
        yield part
        last = part or last
    if not last.endswith("\n"):
        yield "\n"


def _is_image(data: dict[str, Any]) -> bool:
    """Whether a MIME bundle has an image, whose text is only its name. A figure may be a PDF."""
    return any(kind.startswith("image/") or kind == "application/pdf" for kind in data)


def handling_output(
    output: Output, message: wire.Message, listener: Listener | None = None
) -> Generator[None, None, None]:
    """Add a message to an output; yields often. Raises `BadFrame`."""
    match message.msg_type:
        case "stream":
            stream = yield from wire.decoding(message.content, wire.Stream)
            yield from writing(output, "stderr" if stream.name == "stderr" else "stdout", stream.text, listener)
        case "display_data" | "execute_result" as kind:
            display = yield from wire.decoding(message.content, wire.Display)
            text = yield from text_of(display)
            # Long texts are encoded once, and in parts, and not again with every frame that has them.
            data = yield from texts.bundle(display.data)
            shown = data, display.metadata or {}, display.display_id
            result = kind == "execute_result"
            result_type: ResultType = "execute_result" if result else "display_data"
            yield from output.display(result_type, *shown, len(message.content), text=text)
            if listener is not None:
                listener(Displayed(*shown, result, len(message.content)))
        case "update_display_data":
            display = yield from wire.decoding(message.content, wire.Display)
            text = yield from text_of(display)
            data = yield from texts.bundle(display.data)
            shown = data, display.metadata or {}, display.display_id
            output.update(*shown, len(message.content), text=text)
            if listener is not None and display.display_id is not None:
                listener(Updated(data, display.metadata or {}, display.display_id, len(message.content)))
        case "clear_output":
            wait = wire.decode(message.content, wire.ClearOutput).wait
            output.clear(wait=wait)
            if listener is not None:
                listener(Cleared(wait))


def writing(output: Output, stream: str, text: str, listener: Listener | None) -> Generator[None, None, None]:
    """Add text of a stream to an output; yields often."""
    for start in range(0, len(text), _STREAM_PART):
        part = text[start : start + _STREAM_PART]
        output.stream(stream, part)
        if listener is not None:
            listener(Wrote(stream, part))
        yield from output.draw()
        if start:
            yield


def text_of(display: wire.Display) -> Generator[None, None, str]:
    """Return the text form of a display; yields often."""
    parts: list[str] = []
    for part in plain_text(display.data):
        if parts:
            yield
        parts.append(part)
    return "".join(parts)
