from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.jupyter import bounded as bounded_module
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import BoundedText, Spilled, size
from kernelbridge.jupyter.output import Output, Rendered, ResultType, handling_output, plain_text
from kernelbridge.terminal_text import drawn

BIG = 1 << 20


def bundle(text: str) -> dict[str, Any]:
    return {"text/plain": text}


def displaying(
    output: Output, kind: ResultType, data: dict[str, Any], display_id: str | None = None, length: int | None = None
) -> Iterator[None]:
    size_sent = len(json.dumps(data)) if length is None else length
    return output.display(kind, data, {}, display_id, size_sent, text="".join(plain_text(data)))


def display(*args: Any) -> None:
    for _ in displaying(*args):
        pass


def update(output: Output, data: dict[str, Any], display_id: str, length: int | None = None) -> None:
    size_sent = len(json.dumps(data)) if length is None else length
    output.update(data, {}, display_id, size_sent, text="".join(plain_text(data)))


def shown(*events: tuple[Any, ...], limit: int = BIG) -> Rendered:
    output = Output(limit)
    for name, *args in events:
        match name:
            case "out":
                output.stream("stdout", *args)
            case "err":
                output.stream("stderr", *args)
            case "result":
                display(output, "execute_result", bundle(args[0]))
            case "display":
                display(output, "display_data", bundle(args[0]), args[1] if len(args) > 1 else None)
            case "update":
                update(output, bundle(args[0]), args[1])
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
def test_output_is_the_text_that_a_terminal_would_have_shown(events: list[tuple[Any, ...]], output: str) -> None:
    assert shown(*events).output == output


def test_raw_streams_and_bundles_are_separate() -> None:
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
    display(output, "display_data", {"image/png": "AAAA"})
    display(output, "display_data", {"text/plain": ["a\n", "b"]})
    assert output.render().output == "a\nb\n"


@given(st.lists(st.text("ab\n\r\b\x1b[31mK", max_size=30)))
def test_pieces_of_any_size_give_the_same_output(parts: list[str]) -> None:
    assert shown(*(("out", part) for part in parts)).output == "".join(drawn("".join(parts)))


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
    copied = text.copy()
    assert (copied.text(), copied.left_out) == (kept, text.left_out)
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


def test_messages_count_with_all_their_bytes() -> None:
    output = Output(1_000)

    def sent(kind: str, text: str, **more: str) -> None:
        content = {"data": {"text/plain": text} | more, "metadata": {}, "transient": {"display_id": "d"}}
        for _ in handling_output(output, wire.Message(kind, "m", "p", b"{}", msgspec.json.encode(content))):
            pass

    sent("display_data", "a")
    sent("display_data", "b", image="x" * 2_000)
    sent("update_display_data", "c", image="y" * 3_000)
    rendered = output.render()
    assert [result["data"] for result in rendered.results] == [{"text/plain": "a"}]
    assert rendered.truncated is not None
    assert rendered.truncated["results"] > 5_000


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


def calls(work: Callable[[], object]) -> int:
    """Count the function calls of some work: unlike its time, they are the same on every machine."""
    count = 0

    def profile(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def work_of_displays(number: int) -> int:
    output = Output(BIG)

    def work() -> None:
        for at in range(number):
            display(output, "display_data", bundle(str(at)), "d", 20)
        for at in range(number):
            update(output, bundle(str(at)), "d", 20)

    return calls(work)


def test_the_work_of_updates_is_linear() -> None:
    """8,000 displays and 8,000 updates of one id: once, each update visited each display."""
    assert work_of_displays(4000) < 5 * work_of_displays(1000)


def test_the_work_of_dropping_text_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, each addition read a long part at the start of the tail."""
    seen = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(text: str, *args: int) -> Any:
            nonlocal seen
            seen += len(text)
            return function(text, *args)

        return count

    for name in ("size", "_first_bytes", "_last_bytes"):
        monkeypatch.setattr(bounded_module, name, counted(getattr(bounded_module, name)))
    text = BoundedText(4 << 20)
    text.append("x" * (2 << 20))
    text.append("é" * (1 << 20))
    for _ in range(200):
        text.append("y" * 10_000)
    assert text.text().endswith("éy" + "y" * 1_999_999)
    assert seen < 10 * ((3 << 20) + 2_000_000)


def test_displays_past_the_number_that_can_be_updated_are_text() -> None:
    output = Output(16 << 20)
    for number in range(10_001):
        display(output, "display_data", bundle(f"{number}"), f"d{number}")
    update(output, bundle("updated"), "d9999")
    update(output, bundle("updated"), "d10000")
    rendered = output.render()
    assert rendered.output.splitlines()[9998:] == ["9998", "updated", "10000"]
    assert [result["data"]["text/plain"] for result in rendered.results[9998:]] == ["9998", "updated", "10000"]


def test_a_display_under_a_known_id_replaces_the_earlier_ones() -> None:
    rendered = shown(("display", "a", "d"), ("out", "x\n"), ("display", "b", "d"))
    assert rendered.output == "b\nx\nb\n"
    assert [result["data"]["text/plain"] for result in rendered.results] == ["b", "b"]


def test_bytes_cut_from_a_display_count_while_they_are_missing() -> None:
    rendered = shown(("display", "a", "d"), ("update", "b" * 5_000, "d"), ("update", "c", "d"), limit=1_000)
    assert (rendered.output, (rendered.truncated or {})["bytes"]) == ("c\n", 0)


@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("out"), st.text("abé\n", max_size=40)),
            st.tuples(st.sampled_from(["display", "update"]), st.text("abé", max_size=90), st.sampled_from("de")),
        ),
        max_size=40,
    ),
    limit=st.integers(2, 300),
)
def test_displays_and_updates_stay_within_the_limit(events: list[tuple[Any, ...]], limit: int) -> None:
    whole, bounded = shown(*events), shown(*events, limit=limit)
    assert size(bounded.output) <= limit
    assert (bounded.output == whole.output) or (bounded.truncated is not None and bounded.truncated["bytes"] > 0)


def test_text_and_render_can_be_repeated() -> None:
    text = BoundedText(20)
    text.append("é" * 100)
    assert (text.text(), text.left_out, text.head_length()) == (text.text(), text.left_out, text.head_length())
    assert text.text() == "é" * 10
    text.append("end")
    assert text.text() == "é" * 8 + "end"
    output = Output(100)
    output.stream("stdout", "50%")
    first = output.render()
    output.stream("stdout", "\r99%")
    display(output, "display_data", bundle("x"), "d")
    output.clear(wait=False)
    assert output.render() == first


class Collected:
    """A spill in memory."""

    def __init__(self) -> None:
        self.text: str | None = None

    def begin(self, texts: Sequence[str]) -> None:
        self.text = "".join(texts)

    def write(self, text: str) -> None:
        assert self.text is not None, "it begins first"
        self.text += text

    def discard(self) -> None:
        self.text = None

    async def finish(self) -> Spilled:
        raise AssertionError("only whoever takes the output finishes it")


PIECES = st.tuples(st.sampled_from(["out", "err"]), st.text("ab\n", max_size=60))


@given(events=st.lists(PIECES), limit=st.integers(8, 200))
def test_the_spill_gets_all_output_in_order(events: list[tuple[str, str]], limit: int) -> None:
    whole = "".join(text for _, text in events)
    collected = Collected()
    output = Output(limit, kept=limit // 4, spill=lambda: collected)
    for name, text in events:
        output.stream("stderr" if name == "err" else "stdout", text)
    rendered = output.render()
    if len(whole) <= limit:
        assert (rendered.output, rendered.spill, collected.text) == (whole, None, None)
        assert rendered.stdout == "".join(text for name, text in events if name == "out")
        assert rendered.stderr == "".join(text for name, text in events if name == "err")
        return
    assert rendered.spill is collected
    assert collected.text == whole
    assert rendered.truncated is not None
    at = rendered.truncated["at"]
    assert whole.startswith(rendered.output[:at])
    assert whole.endswith(rendered.output[at:])
    assert len(rendered.output) <= max(limit // 4, 2)
    assert rendered.truncated["bytes"] == len(whole) - len(rendered.output)


@given(st.lists(st.tuples(st.sampled_from(["out", "err", "result", "clear"]), st.text("ab\n\r\x1b[K", max_size=9))))
def test_streams_have_the_text_that_was_written_to_them(events: list[tuple[str, str]]) -> None:
    rendered = shown(*((name, False if name == "clear" else text) for name, text in events))
    assert rendered.stdout == "".join(text for name, text in events if name == "out")
    assert rendered.stderr == "".join(text for name, text in events if name == "err")


def test_one_stream_alone_is_kept_once() -> None:
    rendered = shown(*[("out", "x" * 1000 + "\n")] * 500)
    assert rendered.stdout is rendered.output
    assert rendered.stderr == ""


def test_cleared_output_is_not_in_the_spill() -> None:
    collected = Collected()
    output = Output(100, spill=lambda: collected)
    output.stream("stdout", "a" * 300)
    output.stream("stdout", "\n")
    output.clear(wait=False)
    output.stream("stdout", "b")
    rendered = output.render()
    assert (rendered.output, rendered.spill, collected.text) == ("b", None, None)


def test_the_spill_starts_again_after_a_clear() -> None:
    collected = Collected()
    output = Output(1000, spill=lambda: collected)
    for letter in "ab":
        output.clear(wait=False)
        for _ in range(100):
            output.stream("stdout", letter * 9000 + "\n")
    assert output.render().spill is collected
    assert collected.text == ("b" * 9000 + "\n") * 100


IMAGES = ["image/png", "image/jpeg", "image/gif", "image/svg+xml", "image/webp", "application/pdf"]


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("how", ["display_data", "execute_result"])
def test_the_text_that_names_an_image_is_not_shown_beside_it(how: Any, kind: str) -> None:
    output = Output(BIG)
    output.stream("stdout", "before\n")
    figure = {"text/plain": "<Figure size 640x480>", kind: "AAAA"}
    display(output, how, figure)
    output.stream("stdout", "after\n")
    rendered = output.render()
    assert rendered.output == "before\nafter\n"
    assert rendered.results == [{"type": how, "data": figure, "metadata": {}}]


@pytest.mark.parametrize("kind", ["text/html", "application/json", "text/latex", "application/vnd.plotly.v1+json"])
def test_the_text_of_other_bundles_is_shown(kind: str) -> None:
    output = Output(BIG)
    display(output, "display_data", {"text/plain": "a table", kind: "…"})
    assert output.render().output == "a table\n"


def test_an_update_with_an_image_removes_the_text_and_without_one_adds_it() -> None:
    image = {"text/plain": "<Figure>", "image/png": "AAAA"}
    output = Output(BIG)
    display(output, "display_data", bundle("waiting"), "d")
    output.stream("stdout", "x\n")
    update(output, image, "d")
    display(output, "display_data", image, "e")
    update(output, bundle("no figure"), "e")
    assert output.render().output == "x\nno figure\n"


def test_an_image_without_room_is_shown_as_text() -> None:
    image = {"text/plain": "<Figure>", "image/png": "A" * 5_000}
    output = Output(1_000)
    display(output, "display_data", image)
    display(output, "display_data", bundle("small"), "d")
    update(output, image, "d")
    rendered = output.render()
    assert rendered.output == "<Figure>\n<Figure>\n"
    assert [result["data"] for result in rendered.results] == [bundle("small")]


def test_a_long_text_of_a_display_is_added_in_parts() -> None:
    output = Output(100 << 20)
    data = {"text/plain": "x" * (1 << 24)}
    assert sum(1 for _ in displaying(output, "execute_result", data)) >= 100
    assert output.render().output == data["text/plain"] + "\n"


def test_many_results_are_put_together_in_parts() -> None:
    output = Output(100 << 20)
    for number in range(5_000):
        display(output, "display_data", {"text/plain": str(number)})
    assert sum(1 for _ in output.ending()) >= 15
    assert [each["data"] for each in output.render().results] == [{"text/plain": str(n)} for n in range(5_000)]


def test_an_output_that_ends_while_a_display_is_added_does_not_have_it() -> None:
    output = Output(100 << 20)
    taking = displaying(output, "execute_result", {"text/plain": "x" * (1 << 20)})
    next(taking)
    rendered = output.render()
    assert list(taking) == []
    assert rendered.results == []
    assert output.render() is rendered


def test_a_change_for_which_there_is_no_room_counts_in_each_place() -> None:
    places = [("display", "a", "d")] * 3
    fits = shown(*places, ("update", "b" * 100, "d"), limit=10_000)
    assert (len(fits.results), fits.truncated) == (3, None)
    once, thrice = (shown(*each, ("update", "b" * 20_000, "d"), limit=10_000) for each in (places[:1], places))
    assert once.truncated is not None
    assert thrice.truncated is not None
    assert once.truncated["results"] > 20_000
    assert thrice.truncated["results"] == 3 * once.truncated["results"]
