from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.jupyter.output import BoundedText, Output, Rendered
from kernelbridge.text import render_terminal

BIG = 1 << 20


def bundle(text: str) -> dict[str, Any]:
    return {"text/plain": text}


def shown(*events: tuple[Any, ...], limit: int = BIG) -> Rendered:
    output = Output(limit)
    for name, *args in events:
        match name:
            case "out":
                output.stream("stdout", *args)
            case "err":
                output.stream("stderr", *args)
            case "result":
                output.display("execute_result", bundle(args[0]), {})
            case "display":
                output.display("display_data", bundle(args[0]), {}, args[1] if len(args) > 1 else None)
            case "update":
                output.update(bundle(args[0]), {}, args[1])
            case "clear":
                output.clear(wait=args[0])
    return output.render()


@pytest.mark.parametrize(
    ("events", "output"),
    [
        ([], ""),
        ([("out", "a\n"), ("err", "b\n"), ("out", "c\n")], "a\nb\nc\n"),
        ([("out", "no newline")], "no newline"),
        ([("out", "10%\r"), ("out", "20%\r"), ("out", "done\n")], "done\n"),
        ([("out", "10%"), ("err", "\r99%\n")], "99%\n"),
        ([("out", "abc\b\bX\n")], "aXc\n"),
        ([("out", "abc\rX\n")], "Xbc\n"),
        ([("out", "\x1b[31mred\x1b[0m\n")], "red\n"),
        ([("out", "\x1b[3"), ("out", "1mred\x1b"), ("out", "[0m\n")], "red\n"),
        ([("out", "a\r"), ("out", "\nb\r\n")], "a\nb\n"),
        ([("result", "2")], "2\n"),
        ([("out", "a"), ("result", "2"), ("out", "b\n")], "a\n2\nb\n"),
        ([("result", "2\n"), ("result", "3")], "2\n3\n"),
        ([("result", "\x1b[1mbold\x1b[0m")], "bold\n"),
        ([("display", "one", "d"), ("out", "x\n"), ("update", "two", "d")], "two\nx\n"),
        ([("display", "a", "d"), ("display", "b", "d"), ("update", "c", "d")], "c\nc\n"),
        ([("display", "one", "d"), ("update", "two", "unknown"), ("update", "three", None)], "one\n"),
        ([("out", "gone\n"), ("clear", False), ("out", "kept\n")], "kept\n"),
        ([("out", "kept\n"), ("clear", True)], "kept\n"),
        ([("out", "gone\n"), ("clear", True), ("out", "kept\n")], "kept\n"),
        ([("out", "gone\n"), ("clear", True), ("display", "kept")], "kept\n"),
        ([("out", "gone"), ("clear", False), ("result", "kept")], "kept\n"),
        ([("display", "gone", "d"), ("clear", False), ("update", "x", "d")], ""),
    ],
)
def test_what_a_terminal_would_have_shown(events: list[tuple[Any, ...]], output: str) -> None:
    assert shown(*events).output == output


def test_raw_streams_and_bundles_are_kept_apart() -> None:
    rendered = shown(("out", "a\r"), ("err", "\x1b[31mb"), ("out", "c"), ("result", "1"))
    assert (rendered.stdout, rendered.stderr) == ("a\rc", "\x1b[31mb")
    assert rendered.results == [{"type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}}]
    assert rendered.truncated is None


def test_clearing_takes_results_but_not_the_raw_streams() -> None:
    rendered = shown(("out", "a"), ("display", "1"), ("clear", True), ("display", "2"))
    assert rendered.stdout == "a"
    assert [result["data"]["text/plain"] for result in rendered.results] == ["2"]


def test_an_update_replaces_the_bundle_too() -> None:
    rendered = shown(("display", "1", "d"), ("update", "2", "d"))
    assert [result["data"]["text/plain"] for result in rendered.results] == ["2"]


def test_a_bundle_without_text_shows_nothing() -> None:
    output = Output(BIG)
    output.display("display_data", {"image/png": "AAAA"}, {"width": 1})
    output.display("display_data", {"text/plain": ["a\n", "b"]}, {})
    assert output.render().output == "a\nb\n"


@given(st.lists(st.text("ab\n\r\b\x1b[31mK", max_size=30)))
def test_how_the_text_is_cut_makes_no_difference(parts: list[str]) -> None:
    assert shown(*(("out", part) for part in parts)).output == render_terminal("".join(parts))


@given(parts=st.lists(st.text(max_size=40)), limit=st.integers(2, 200))
def test_head_and_tail_are_kept_and_the_rest_is_counted(parts: list[str], limit: int) -> None:
    whole = "".join(part for part in parts).encode("utf-8", "surrogatepass").decode("utf-8", "ignore")
    text = BoundedText(limit)
    for part in parts:
        text.append(part.encode("utf-8", "ignore").decode())
    kept = text.text()
    head = kept[: text.head_length()]
    tail = kept[text.head_length() :]
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(kept.encode()) <= limit
    assert len(kept.encode()) + text.left_out == len(whole.encode())
    if len(whole.encode()) <= limit // 2:
        assert kept == whole


def test_truncation_says_what_is_missing_and_where() -> None:
    rendered = shown(("out", "a" * 100_000), ("err", "e"), ("out", "z" * 100_000), limit=50_000)
    assert rendered.output == "a" * 25_000 + "z" * 25_000
    assert rendered.stderr == "e"
    assert rendered.truncated == {
        "bytes": 150_001,
        "kept": "head and tail",
        "at": 25_000,
        "stdout": 150_000,
        "stderr": 0,
        "results": 0,
    }


def test_bundles_over_the_limit_are_left_out_and_counted() -> None:
    rendered = shown(("display", "a" * 100), ("display", "b" * 2_000), limit=1_000)
    assert [result["data"]["text/plain"] for result in rendered.results] == ["a" * 100]
    assert rendered.truncated is not None
    assert rendered.truncated["results"] > 1_000


def test_displays_are_dropped_whole_and_stay_dropped() -> None:
    events = [("display", f"{number:04}" * 50, f"d{number}") for number in range(100)]
    rendered = shown(*events, ("update", "new", "d50"), ("update", "new", "d99"), limit=2_000)
    assert rendered.output.startswith("0000" * 50 + "\n")
    assert rendered.output.endswith("\nnew\n")
    assert rendered.output.count("new") == 1
    assert len(rendered.output) <= 2_000


def test_a_progress_bar_needs_no_room() -> None:
    output = Output(1 << 16)
    for number in range(100_000):
        output.stream("stdout", f"\r{number:>7} of many, a bar of some length ......")
    assert output.render().output == f"{99_999:>7} of many, a bar of some length ......"


def test_a_hundred_thousand_small_writes() -> None:
    output = Output(16 << 20)
    line = "x" * 79 + "\n"
    for _ in range(100_000):
        output.stream("stdout", line)
    rendered = output.render()
    assert rendered.output == rendered.stdout == line * 100_000
    assert rendered.truncated is None


def test_one_long_line_in_small_pieces() -> None:
    output = Output(16 << 20)
    for _ in range(100_000):
        output.stream("stdout", "x" * 80)
    assert output.render().output == "x" * 8_000_000


def test_updates_stay_within_the_limit() -> None:
    for events in ([("display", "a", "d")], [("out", "x" * 600), ("display", "a", "d")]):
        rendered = shown(*events, ("update", "b" * 100_000, "d"), limit=1_000)
        assert len(rendered.output) <= 1_000
        assert rendered.results[0]["data"] == {"text/plain": "a"}
        assert rendered.truncated is not None
        assert rendered.truncated["bytes"] > 90_000
        assert rendered.truncated["results"] > 100_000
