"""The README's own program, and what every example of a client must have."""

import re
from pathlib import Path

import kernelbridge

ROOT = Path(kernelbridge.__file__).parent.parent
PAGES = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
EXAMPLE = re.compile(r"^```(?:python|javascript)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
CLIENTS = ("ws_connect", "websockets", "new WebSocket")


def test_every_example_of_a_client_takes_frames_of_any_size_and_looks_for_errors() -> None:
    examples = [(page, match["code"]) for page in PAGES for match in EXAMPLE.finditer(page.read_text(encoding="utf-8"))]
    found = [(page, code) for page, code in examples if any(client in code for client in CLIENTS)]
    assert len(found) >= 2
    for page, code in found:
        assert re.search(r"max_msg_size=0|max_size=None|new WebSocket\('[^']*'\)|maxPayload: 0", code), page
        assert re.search(r"""["']?type["']?\]? === ?'error'|\["type"\] == "error\"""", code), page
