"""What a kernel shows: from its messages to the output that is kept, and to who watches (pure)."""

from __future__ import annotations

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.events import Cleared, Displayed, Listener, Updated, Wrote
from kernelbridge.jupyter.output import Output

DISPLAYS = frozenset({"display_data", "execute_result"})
OUTPUT = DISPLAYS | {"stream", "update_display_data", "clear_output"}
"""The types of the messages that `take_output` takes."""


def take_output(output: Output, message: wire.Message, listener: Listener | None = None) -> None:
    """Take a message of output; raises `BadFrame`."""
    match message.msg_type:
        case "stream":
            stream = wire.decode(message.content, wire.Stream)
            output.stream(stream.name, stream.text)
            if listener is not None:
                listener(Wrote("stderr" if stream.name == "stderr" else "stdout", stream.text))
        case "display_data" | "execute_result" as kind:
            display = wire.decode(message.content, wire.Display)
            shown = display.data, display.metadata or {}, display.display_id
            result = kind == "execute_result"
            output.display("execute_result" if result else "display_data", *shown, len(message.content))
            if listener is not None:
                listener(Displayed(*shown, result, len(message.content)))
        case "update_display_data":
            display = wire.decode(message.content, wire.Display)
            output.update(display.data, display.metadata or {}, display.display_id, len(message.content))
            if listener is not None and display.display_id is not None:
                listener(Updated(display.data, display.metadata or {}, display.display_id, len(message.content)))
        case "clear_output":
            wait = wire.decode(message.content, wire.ClearOutput).wait
            output.clear(wait=wait)
            if listener is not None:
                listener(Cleared(wait))
