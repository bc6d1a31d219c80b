"""Results say what happened, and show themselves without letting a sandbox into the notebook."""

import base64
from typing import Any

import pytest

from kernelbridge.client.results import (
    Bundle,
    CodeError,
    CommandFailed,
    CommandResult,
    Result,
    RunEnded,
    RunError,
    RunTimeout,
)

PNG = base64.b64encode(b"\x89PNG").decode()
SCRIPT = "<script>steal()</script>"


def result(**more: Any) -> Result:
    return Result({"success": True, "output": "", "error": None, **more})


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        (result(success=False, error="ValueError: x"), CodeError),
        (result(success=False, error="ExecutionTimeout: …", cause="timeout"), RunTimeout),
        (result(success=False, error="KernelDied: …", cause="kernel_died"), RunEnded),
        (CommandResult({"output": "", "exitCode": 3}), CommandFailed),
        (CommandResult({"output": "", "exitCode": 130, "cause": "timeout"}), RunTimeout),
        (CommandResult({"output": "", "cause": "session_closed"}), RunEnded),
    ],
)
def test_check_tells_failures_apart(failed: Result | CommandResult, kind: type[RunError]) -> None:
    with pytest.raises(RunError) as caught:
        failed.check()
    assert type(caught.value) is kind
    assert caught.value.result is failed


def test_check_returns_what_succeeded() -> None:
    assert result().check() == result()
    assert CommandResult({"output": "", "exitCode": 0}).check().success


def test_pictures_are_bytes_and_svg_is_text() -> None:
    png, svg, jpeg = ({"image/png": PNG}, {"image/svg+xml": ["<svg>", "</svg>"]}, {"image/jpeg": PNG + "\n"})
    shown = result(results=[{"type": "display_data", "data": data, "metadata": {}} for data in (png, svg, jpeg)])
    assert [image.mime for image in shown.images] == ["image/png", "image/svg+xml", "image/jpeg"]
    assert (shown.images[0].png, shown.images[1].svg, shown.images[2].jpeg) == (b"\x89PNG", "<svg></svg>", b"\x89PNG")
    assert shown.data == {}


@pytest.mark.parametrize("data", ["x", "ä", ["a", "b", "c", "d", "e"]])
def test_a_picture_that_is_none_is_none(data: Any) -> None:
    bundle = Bundle({"image/png": data, "image/jpeg": data})
    assert (bundle.png, bundle.jpeg) == (None, None)


@pytest.mark.parametrize(
    "data",
    [
        {"text/html": f'"{SCRIPT}'},
        {"text/plain": SCRIPT},
        {"image/svg+xml": f"<svg>{SCRIPT}</svg>"},
        {"image/png": f'"><script>steal()</script>{PNG}'},
        {"application/javascript": "steal()"},
    ],
)
def test_nothing_of_a_sandbox_runs_in_the_notebook(data: dict[str, str]) -> None:
    bundle = Bundle(data)
    everything = result(output=SCRIPT, results=[{"type": "execute_result", "data": data, "metadata": {}}])
    for shown in (bundle._repr_html_(), everything._repr_html_(), CommandResult({"output": SCRIPT})._repr_html_()):
        assert "<script" not in shown
        assert "<iframe" not in shown or "<iframe sandbox srcdoc=" in shown
        assert "<svg" not in shown


def test_a_result_shows_its_text_its_error_and_its_displays() -> None:
    shown = result(output="a < b\n", error="ValueError: x", traceback="Traceback …")._repr_html_()
    assert shown == "<pre>a &lt; b\nTraceback …</pre>"
    assert result()._repr_html_() == ""


def test_what_a_frame_does_not_say_has_a_value_of_its_own() -> None:
    ran = Result({"success": False, "output": "text"})
    assert (ran.success, ran.text, ran.stdout, ran.stderr, ran.displays, ran.data) == (
        False,
        "text",
        "text",
        "",
        (),
        {},
    )
    assert (ran.error, ran.traceback, ran.cause, ran.hint, ran.truncated, ran.execution_count) == (None,) * 6
    assert (ran.duration, ran.state_preserved, ran.late_output, ran.images) == (0.0, True, "", [])
    command = CommandResult({"output": "text"})
    assert (command.text, command.exit_code, command.success, command.cwd, command.cause) == (
        "text",
        None,
        False,
        None,
        None,
    )
    assert (command.duration, command.state_preserved, command.late_output, command.hint) == (0.0, True, "", None)
    assert command.truncated is None


def test_each_field_of_a_frame_has_its_property() -> None:
    png = {"type": "display_data", "data": {"image/png": PNG}, "metadata": {}}
    value = {"type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}}
    both = {
        "output": "text",
        "cause": "interrupted",
        "durationMs": 1500,
        "statePreserved": False,
        "lateOutput": "late",
        "hint": "less",
        "truncated": {"bytes": 1},
    }
    ran = Result(
        {
            **both,
            "success": False,
            "error": "E: x",
            "traceback": "Traceback",
            "stdout": "out",
            "stderr": "err",
            "executionCount": 7,
            "results": [png, value, png],
        }
    )
    assert (ran.error, ran.traceback, ran.stdout, ran.stderr, ran.execution_count) == (
        "E: x",
        "Traceback",
        "out",
        "err",
        7,
    )
    assert (ran.data, len(ran.images), str(ran)) == ({"text/plain": "1"}, 2, "textTraceback")
    command = CommandResult({**both, "exitCode": 0, "cwd": "/w"})
    assert (command.exit_code, command.success, command.cwd) == (0, False, "/w")
    for each in (ran, command):
        assert (each.text, each.cause, each.duration, each.state_preserved) == ("text", "interrupted", 1.5, False)
        assert (each.late_output, each.hint, each.truncated) == ("late", "less", {"bytes": 1})


def test_an_error_says_how_the_command_ended() -> None:
    with pytest.raises(CommandFailed, match=r"ended with 3: x+long$") as caught:
        CommandResult({"output": "x" * 1000 + "long", "exitCode": 3}).check()
    assert len(caught.value.reason or "") == 1000
    with pytest.raises(RunEnded, match="was ended: interrupted: less"):
        CommandResult({"output": "x", "exitCode": 3, "cause": "interrupted", "hint": "less"}).check()
