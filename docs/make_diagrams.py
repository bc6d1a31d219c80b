"""Draw the state diagrams of architecture.md from the tables in the code.

python docs/make_diagrams.py          rewrite the diagrams in docs/explanation/architecture.md
python docs/make_diagrams.py --check  fail if they differ (a test does this)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from kernelbridge.jupyter.execution import TRANSITIONS
from kernelbridge.workspace.states import KERNEL, WORKSPACE

PAGE = Path(__file__).with_name("explanation") / "architecture.md"


def draw(start: str, arrows: Iterable[tuple[str, str, str]]) -> str:
    """Return a Mermaid state diagram of (from, event, to) arrows."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {start}"]
    lines += [f"    {source} --> {target}: {event}" for source, event, target in arrows]
    return "\n".join([*lines, "```"]) + "\n"


def diagrams() -> dict[str, str]:
    """Return every diagram by name."""
    return {
        "workspace": draw(
            "absent",
            ((s.value, e.value if t.action.name == "NOTHING" else f"{e.value} / {t.action.value}", t.state.value)
             for (s, e), t in WORKSPACE.items()),
        ),
        "kernel": draw(
            "absent",
            ((s.value, e.value if t.action.name == "NOTHING" else f"{e.value} / {t.action.value}", t.state.value)
             for (s, e), t in KERNEL.items()),
        ),
        "execution": draw("sent", ((s.value, e.value, t.value) for (s, e), t in TRANSITIONS.items())),
    }  # fmt: skip


def rewritten(page: str) -> str:
    """Return the page with its diagrams drawn anew."""
    drawn = diagrams()
    for name, diagram in drawn.items():
        marker = f"<!-- diagram: {name} -->\n"
        start = page.index(marker) + len(marker)
        page = page[:start] + diagram + page[page.index("<!-- end -->", start) :]
    return page


def main() -> int:
    """Run the command."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = rewritten(page)
    if "--check" in sys.argv[1:]:
        return int(page != fresh)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
