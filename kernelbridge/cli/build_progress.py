"""How far the build or the pull of an image is: lines, and on a terminal a bar below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from kernelbridge.cli import screen

if TYPE_CHECKING:
    from rich.progress import Progress


class BuildProgress:
    """Shows lines as they come, and a bar from the first one that is `Counted`. May be called from any thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._what = ""
        """The image that the bar is about."""

    def __call__(self, line: str) -> None:
        """Show a line. It may come from a package or a registry: nothing of it reaches the terminal as a command."""
        from kernelbridge.images.progress import Counted  # noqa: PLC0415 - not for --help

        if isinstance(line, Counted) and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._show(line.what, line.done, line.total)
        self._console.print(screen.plain(line))

    def end(self) -> None:
        """Remove the bar. Idempotent."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

            name = TextColumn("{task.description}", markup=False)
            columns = (name, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("")
            self._bar.start()
            self._what = ""
        [task] = self._bar.task_ids
        if what != self._what:
            self._what = what
            self._bar.reset(task, description=screen.plain(what), total=total, completed=done)
        else:
            self._bar.update(task, total=total, completed=done)
