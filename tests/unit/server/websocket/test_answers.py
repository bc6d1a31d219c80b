"""What an answer says of an outcome."""

import json
from typing import Any, cast

import pytest
from msgspec import UNSET

from kernelbridge.jupyter.cell import Outcome
from kernelbridge.protocol import dump
from kernelbridge.server.websocket.handlers.cells import execution_result
from kernelbridge.server.websocket.handlers.request_context import RequestContext

CONTEXT = RequestContext(cast("Any", None), cast("Any", None), "s", UNSET)


def frame(**outcome: Any) -> dict[str, Any]:
    found = json.loads(dump(execution_result(CONTEXT, Outcome(success=True, **outcome))))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("output", "stdout", "stderr", "told"),
    [
        ("", "", "", {}),
        ("a\n", "a\n", "", {}),
        ("a\nb\n", "a\n", "b\n", {"stdout": "a\n", "stderr": "b\n"}),
        ("b\n", "", "b\n", {"stdout": "", "stderr": "b\n"}),
        ("99%\n", "10%\r99%\n", "", {"stdout": "10%\r99%\n"}),
        ("a\n2\n", "a\n", "", {"stdout": "a\n"}),
    ],
)
def test_no_text_is_sent_twice(output: str, stdout: str, stderr: str, told: dict[str, str]) -> None:
    sent = frame(output=output, stdout=stdout, stderr=stderr)
    assert sent["output"] == output
    assert {name: sent[name] for name in ("stdout", "stderr") if name in sent} == told


def test_a_hint_is_there_when_there_is_one() -> None:
    assert frame(hint="do this")["hint"] == "do this"
    assert "hint" not in frame()
