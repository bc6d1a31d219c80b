from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, structlog, sys, warnings
from kernelbridge import log
log.configure(sys.argv[1], sys.argv[2])
ours, theirs = structlog.get_logger("ours"), logging.getLogger("theirs")
ours.debug("too small")
ours.info("saved", session="a\\nforged \\x1b[31m\\x85\\u2028", size=3)
theirs.warning("from\\n%s", "outside")
logging.getLogger("docker").debug("chatter")
warnings.warn("careful", UserWarning)
secret = "hunter2"
try:
    raise ValueError("bad")
except ValueError:
    ours.exception("failed")
    theirs.exception("failed too")
"""


def lines(form: str, level: str) -> list[str]:
    # A process of its own: the log is a process's one piece of global state.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form, level],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout == ""
    assert "hunter2" not in done.stderr
    return done.stderr.splitlines()


def test_json_has_one_object_a_line() -> None:
    events = [json.loads(line) for line in lines("json", "info")]
    assert [event["event"] for event in events][:2] == ["saved", "from\noutside"]
    assert events[0] | {"timestamp": ""} == {
        "event": "saved",
        "level": "info",
        "session": "a\nforged \x1b[31m\x85\u2028",
        "size": 3,
        "timestamp": "",
    }
    assert events[0]["timestamp"].endswith("Z")
    assert events[1]["logger"] == "theirs"
    assert "careful" in events[2]["event"]
    assert [("ValueError: bad" in event["exception"]) for event in events[3:]] == [True, True]


def test_a_value_forges_no_line_and_no_colour_on_the_console() -> None:
    text = lines("console", "info")
    assert text[0].endswith(r"saved session='a\nforged \x1b[31m\x85\u2028' size=3")
    assert text[1].endswith(r"from\noutside [theirs]")
    assert "Traceback (most recent call last):" in text
    assert all("\x1b" not in line for line in text)


@pytest.mark.parametrize(("level", "seen"), [("debug", True), ("info", False), ("error", False)])
def test_levels(level: str, seen: bool) -> None:  # noqa: FBT001 - a column of the table
    text = "\n".join(lines("console", level))
    assert ("too small" in text) is seen
    assert ("saved" in text) is (level != "error")
    assert "chatter" not in text
    assert "failed" in text
