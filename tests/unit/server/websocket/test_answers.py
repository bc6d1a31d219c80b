"""What an answer says of an outcome."""

import json
from typing import Any, cast

import pytest
from msgspec import UNSET

from kernelbridge.jupyter.cell import Outcome
from kernelbridge.protocol import dump
from kernelbridge.server.websocket.handlers.cells import execution_result
from kernelbridge.server.websocket.handlers.commands import terminal_output
from kernelbridge.server.websocket.handlers.request_context import RequestContext
from kernelbridge.workspace.command_outcome import CommandOutcome

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


def test_each_part_of_an_outcome_has_its_field() -> None:
    truncated = {"bytes": 1, "kept": "head and tail", "at": 2}
    sent = frame(
        error="E: x",
        traceback="T",
        results=[{"type": "execute_result", "data": {}, "metadata": {}}],
        execution_count=0,
        duration_ms=1.23456,
        cpu_ms=0.0,
        truncated=truncated,
        cause="timeout",
        exit_code=0,
        signal="SIGKILL",
        late_output="late",
    )
    del sent["timestamp"]
    assert sent == {
        "type": "execution_result",
        "sessionId": "s",
        "success": True,
        "output": "",
        "error": "E: x",
        "traceback": "T",
        "results": [{"type": "execute_result", "data": {}, "metadata": {}}],
        "executionCount": 0,
        "durationMs": 1.235,
        "cpuMs": 0.0,
        "truncated": truncated,
        "cause": "timeout",
        "exitCode": 0,
        "signal": "SIGKILL",
        "statePreserved": True,
        "lateOutput": "late",
    }
    assert "statePreserved" not in frame()
    assert frame(state_preserved=False)["statePreserved"] is False


def test_what_events_left_out_is_in_the_answer() -> None:
    whole = json.loads(dump(execution_result(CONTEXT, Outcome(success=True), seq=7, events_left_out=5)))
    assert (whole["seq"], whole["truncated"]) == (7, {"bytes": 0, "kept": "all", "at": 0, "events": 5})


def command(**outcome: Any) -> dict[str, Any]:
    given = {"output": "o", "exit_code": None, "cwd": None, "duration_ms": 1.23456, **outcome}
    found = json.loads(dump(terminal_output(CONTEXT, CommandOutcome(**given))))
    assert isinstance(found, dict)
    return found


def test_each_part_of_a_command_s_outcome_has_its_field() -> None:
    assert command() == {"type": "terminal_output", "sessionId": "s", "output": "o", "durationMs": 1.235}
    sent = command(
        exit_code=0,
        cwd="/w",
        cause="interrupted",
        hint="less",
        late_output="late",
        state_preserved=True,
        json={"output": "j"},
    )
    assert sent == {
        "type": "terminal_output",
        "sessionId": "s",
        "output": "j",
        "durationMs": 1.235,
        "exitCode": 0,
        "cwd": "/w",
        "cause": "interrupted",
        "statePreserved": True,
        "hint": "less",
        "lateOutput": "late",
    }
    assert command(state_preserved=False)["statePreserved"] is False
