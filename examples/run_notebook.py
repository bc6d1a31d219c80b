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


def run_cell(session: Session, cell: Cell) -> bool:
    """Run one cell, put its outputs into it, and return whether it succeeded."""
    outputs: list[Cell] = []
    shown: dict[str, Cell] = {}
    for event in session.stream("".join(cell["source"]), timeout=SECONDS):
        if isinstance(event, Result):
            result = event
        else:
            add(outputs, shown, event)
    cell["execution_count"] = result.execution_count
    for output in outputs:
        if output["output_type"] == "execute_result":
            output["execution_count"] = result.execution_count
    if not result.success:
        name, _, value = (result.error or "").partition(": ")
        traceback = (result.traceback or result.error or "").splitlines()
        outputs.append({"output_type": "error", "ename": name, "evalue": value, "traceback": traceback})
    cell["outputs"] = outputs
    return result.success


def add(outputs: list[Cell], shown: dict[str, Cell], event: Event) -> None:
    """Add one event to the outputs of a cell; `shown` has those that may be replaced, by their display id."""
    match event:
        case Output(text, stream):
            if not (outputs and outputs[-1].get("name") == stream):
                outputs.append({"output_type": "stream", "name": stream, "text": ""})
            outputs[-1]["text"] += text
        case Display(bundle, display_id, updates=True):
            if display_id in shown:
                shown[display_id].update(data=dict(bundle.data), metadata=dict(bundle.metadata))
        case Display(bundle, display_id):
            kind = "execute_result" if bundle.is_result else "display_data"
            outputs.append({"output_type": kind, "data": dict(bundle.data), "metadata": dict(bundle.metadata)})
            if display_id:
                shown[display_id] = outputs[-1]
        case Cleared():
            outputs.clear()


def main(source: str, target: str) -> int:
    """Run the notebook `source`, and write it to `target`."""
    notebook = json.loads(Path(source).read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        cell.update(outputs=[], execution_count=None)
    with Client(SERVER, token=os.environ.get("KERNELBRIDGE_TOKEN")) as client, client.session() as session:
        session.run("%matplotlib inline", silent=True)
        failed = next((cell for cell in cells if not run_cell(session, cell)), None)
    Path(target).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if failed is None:
        return 0
    print("A cell failed:", failed["outputs"][-1]["ename"], failed["outputs"][-1]["evalue"], file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[-1]))
