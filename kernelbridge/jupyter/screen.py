"""What programs write, drawn as it comes (pure)."""

from __future__ import annotations

from collections.abc import Callable

from kernelbridge.text import render_terminal

_BLOCK = 1 << 18  # characters that are drawn at once; a block takes milliseconds, whatever is in it
_ESCAPE_TAIL = 64  # characters in which the start of a cut escape sequence is looked for


class Screen:
    """Draws text as it comes and hands on what the cursor has left behind."""

    def __init__(self, settled: Callable[[str], None]) -> None:
        self._settled = settled
        self._raw: list[str] = []
        self._length = 0
        self._fresh = True

    def feed(self, text: str) -> None:
        """Take what a program wrote."""
        if not text:
            return
        self._raw.append(text)
        self._length += len(text)
        if self._length >= _BLOCK:
            self._draw()

    def _draw(self) -> None:
        raw = "".join(self._raw)
        self.clear_pending()
        line_end = raw.rfind("\n") + 1
        if line_end:
            self._settle(render_terminal(raw[:line_end]))
            self.feed_rest(raw[line_end:])
            return
        # One long line: most of it was overwritten (a progress bar), or it is settled although `\r` could reach it.
        cut = raw.rfind("\x1b", len(raw) - _ESCAPE_TAIL)
        shown, rest = (raw, "") if cut < 0 else (raw[:cut], raw[cut:])
        shown = render_terminal(shown)
        if len(shown) > _BLOCK // 2:
            self._settle(shown)
            shown = ""
        self.feed_rest(shown + rest)

    def feed_rest(self, text: str) -> None:
        """Take back what was not settled; it is shorter than a block."""
        if text:
            self._raw.append(text)
            self._length = len(text)

    def _settle(self, text: str) -> None:
        if text:
            self._settled(text)
            self._fresh = text.endswith("\n")

    def finish(self) -> None:
        """Hand on all that there is."""
        raw = "".join(self._raw)
        self.clear_pending()
        self._settle(render_terminal(raw))

    def fresh_line(self) -> None:
        """Hand on all that there is and end the line if something is on it."""
        self.finish()
        if not self._fresh:
            self._settle("\n")

    def pending(self) -> str:
        """Give what was not handed on."""
        return "".join(self._raw)

    def clear_pending(self) -> None:
        """Forget what was not handed on."""
        self._raw.clear()
        self._length = 0

    def clear(self) -> None:
        """Start with an empty screen."""
        self.clear_pending()
        self._fresh = True
