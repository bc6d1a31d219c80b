"""What a kernel shows: from its messages to the output that is kept, and to who watches (pure)."""

from __future__ import annotations

from collections.abc import Generator

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.events import Cleared, Displayed, Listener, Updated, Wrote
from kernelbridge.jupyter.output import Output, ResultType, plain_text
from kernelbridge.protocol import texts

DISPLAYS = frozenset({"display_data", "execute_result"})
OUTPUT = DISPLAYS | {"stream", "update_display_data", "clear_output"}
"""The types of the messages that `taking_output` takes."""

_PART = 1 << 15  # characters of output that are taken at once


def taking_output(
    output: Output, message: wire.Message, listener: Listener | None = None
) -> Generator[None, None, None]:
    """Take a message of output; yields often. Raises `BadFrame`."""
    match message.msg_type:
        case "stream":
            stream = yield from wire.decoding(message.content, wire.Stream)
            yield from writing(output, "stderr" if stream.name == "stderr" else "stdout", stream.text, listener)
        case "display_data" | "execute_result" as kind:
            display = yield from wire.decoding(message.content, wire.Display)
            text = yield from text_of(display)
            # Its long texts are written once, and not in one go with every frame that they are in.
            data = yield from texts.bundle(display.data)
            shown = data, display.metadata or {}, display.display_id
            result = kind == "execute_result"
            told: ResultType = "execute_result" if result else "display_data"
            yield from output.displaying(told, *shown, len(message.content), text=text)
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
    """Take text on a stream; yields often."""
    for start in range(0, len(text), _PART):
        part = text[start : start + _PART]
        output.stream(stream, part)
        if listener is not None:
            listener(Wrote(stream, part))
        yield from output.draw()
        if start:
            yield


def text_of(display: wire.Display) -> Generator[None, None, str]:
    """Give the text form of a display; yields often."""
    parts: list[str] = []
    for part in plain_text(display.data):
        if parts:
            yield
        parts.append(part)
    return "".join(parts)
