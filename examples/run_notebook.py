"""Run a notebook from top to bottom, and write what its cells show into it.

It stops at the first cell that fails, and exits with 1 then. Start a server (`kernelbridge serve`), then:

    python examples/run_notebook.py analysis.ipynb result.ipynb
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from kernelbridge import Cleared, Client, Display, Output, Result, Session
from kernelbridge.client.events import Event

SERVER = os.environ.get("KERNELBRIDGE_URL", "ws://localhost:8001")
SECONDS = 600.0
"""How long one cell may run."""
Cell = dict[str, Any]


class Outputs:
    """The outputs of one cell, as they come; `shown` has those of all cells that may be replaced, by display id."""

    def __init__(self, shown: dict[str, Cell]) -> None:
        self.list: list[Cell] = []
        self._shown = shown
        self._clears = False

    def take(self, event: Event) -> None:
        """Do with one event what a notebook does with it."""
        match event:
            case Cleared(wait):
                self._clears = wait  # until the next output, so that a progress bar does not flicker
                if not wait:
                    self.list.clear()
            case Display(bundle, display_id, updates=True):
                if display_id in self._shown:
                    self._shown[display_id].update(data=dict(bundle.data), metadata=dict(bundle.metadata))
            case Display(bundle, display_id):
                kind = "execute_result" if bundle.is_result else "display_data"
                self._add({"output_type": kind, "data": dict(bundle.data), "metadata": dict(bundle.metadata)})
                if display_id:
                    self._shown[display_id] = self.list[-1]
            case Output(text, stream):
                if self._clears or not self.list or self.list[-1].get("name") != stream:
                    self._add({"output_type": "stream", "name": stream, "text": ""})
                self.list[-1]["text"] += text

    def _add(self, output: Cell) -> None:
        if self._clears:
            self.list.clear()
        self._clears = False
        self.list.append(output)


def run_cell(session: Session, cell: Cell, shown: dict[str, Cell]) -> bool:
    """Run one cell, put its outputs into it, and return whether it succeeded."""
    outputs = Outputs(shown)
    for event in session.stream("".join(cell["source"]), timeout=SECONDS):
        if isinstance(event, Result):
            result = event
        else:
            outputs.take(event)
    cell.update(outputs=outputs.list, execution_count=result.execution_count)
    for output in outputs.list:
        if output["output_type"] == "execute_result":
            output["execution_count"] = result.execution_count
    if not result.success:
        name, _, value = (result.error or "").partition(": ")
        traceback = (result.traceback or result.error or "").splitlines()
        outputs.list.append({"output_type": "error", "ename": name, "evalue": value, "traceback": traceback})
    return result.success


def main(source: str, target: str) -> int:
    """Run the notebook `source`, and write it to `target`, also if the server is lost on the way."""
    notebook = json.loads(Path(source).read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        cell.update(outputs=[], execution_count=None)
    kernel = notebook["metadata"].get("kernelspec", {}).get("name")
    shown: dict[str, Cell] = {}
    try:
        with (
            Client(SERVER, token=os.environ.get("KERNELBRIDGE_TOKEN")) as client,
            client.session(kernel=kernel) as session,
        ):
            failed = next((cell for cell in cells if not run_cell(session, cell, shown)), None)
    finally:
        Path(target).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if failed is None:
        return 0
    print("A cell failed:", failed["outputs"][-1]["ename"], failed["outputs"][-1]["evalue"], file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[-1]))
