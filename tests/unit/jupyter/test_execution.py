from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.end_causes import Ended
from kernelbridge.jupyter.events import Asked, CellEvent, GivenUp, Started
from kernelbridge.jupyter.execution import FINAL, TRANSITIONS, Event, ExecutionTable, State
from kernelbridge.jupyter.failures import describe
from kernelbridge.jupyter.wire import BadFrame, Message

LIMIT = 1 << 16


class Bench:
    """A table with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.late: list[str] = []
        self.outcomes: dict[str, list[Outcome]] = {}
        self.table = ExecutionTable(max_output=LIMIT, clock=lambda: self.now, late=self.late.append)

    def add(self, name: str) -> None:
        self.outcomes[name] = []
        self.table.add(name, self.outcomes[name].append)

    def shell(self, parent: str, msg_type: str = "execute_reply", metadata: Any = None, **content: Any) -> None:
        self.table.on_shell(make(parent, msg_type, content, metadata or {}))

    def iopub(self, parent: str, msg_type: str, **content: Any) -> None:
        self.table.on_iopub(make(parent, msg_type, content, {}))

    def event(self, name: str, event: Event) -> None:
        match event:
            case Event.REPLY:
                self.shell(name, status="ok", execution_count=1)
            case Event.IDLE:
                self.iopub(name, "status", execution_state="idle")
            case Event.END:
                self.table.end_all(Ended("kernel_died", "KernelDied: gone"))

    def output(self, name: str) -> None:
        self.iopub(name, "stream", name="stdout", text="text\n")


def make(parent: str, msg_type: str, content: Any, metadata: Any) -> Message:
    raw, meta = json.dumps(content).encode(), json.dumps(metadata).encode()
    return Message(msg_type=msg_type, msg_id="m", parent_id=parent, metadata=meta, content=raw)


def test_every_state_and_event_is_decided() -> None:
    for state, event in itertools.product(State, Event):
        if state in FINAL:
            assert (state, event) not in TRANSITIONS
        if event is Event.END and state not in FINAL:
            assert TRANSITIONS[state, event] is State.ENDED
    ignored = {pair for pair in itertools.product(State, Event) if pair not in TRANSITIONS and pair[0] not in FINAL}
    assert ignored == {(State.REPLIED, Event.REPLY), (State.IDLE, Event.IDLE)}


@given(st.lists(st.sampled_from([*Event, None]), max_size=12))
def test_whatever_comes_there_is_one_completion(events: list[Event | None]) -> None:
    """None is output: it changes no state."""
    bench = Bench()
    bench.add("a")
    state = State.SENT
    for event in events:
        if event is None:
            bench.output("a")
        else:
            bench.event("a", event)
            state = TRANSITIONS.get((state, event), state)
        assert len(bench.outcomes["a"]) == (1 if state in FINAL else 0)
        assert len(bench.table) == (0 if state in FINAL else 1)


def test_done_is_reply_and_idle() -> None:
    for first, second in itertools.permutations((Event.REPLY, Event.IDLE)):
        bench = Bench()
        bench.add("a")
        bench.output("a")
        bench.event("a", first)
        bench.output("a")
        assert not bench.outcomes["a"]
        bench.now = 1.5
        bench.event("a", second)
        (outcome,) = bench.outcomes["a"]
        assert outcome.success
        assert outcome.output == outcome.stdout == "text\ntext\n"
        assert outcome.duration_ms == 1500
        assert (outcome.error, outcome.cause, outcome.state_preserved) == (None, None, True)


@pytest.mark.parametrize("status", ["aborted", "abort"])
def test_a_skipped_cell_says_so(status: str) -> None:
    bench = Bench()
    events: list[CellEvent] = []
    bench.outcomes["a"] = []
    bench.table.add("a", bench.outcomes["a"].append, events.append)
    bench.iopub("a", "status", execution_state="busy")
    bench.shell("a", status=status)
    assert not bench.outcomes["a"]
    bench.event("a", Event.IDLE)
    (outcome,) = bench.outcomes["a"]
    assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, None, True)
    assert outcome.error == "Aborted: the kernel skipped the cell because an earlier one had failed"
    assert events == []


@pytest.mark.parametrize("status", ["aborted", "abort", "error"])
@pytest.mark.parametrize("missing", [{}, {"ename": "", "evalue": "", "traceback": []}, {"ename": None, "evalue": None}])
def test_a_cell_that_was_interrupted_was_not_skipped(status: str, missing: dict[str, Any]) -> None:
    for interrupted, error in (
        (True, "Interrupted: the kernel stopped the cell"),
        (False, "Error" if status == "error" else "Aborted: the kernel stopped the cell"),
    ):
        bench = Bench()
        bench.add("a")
        bench.iopub("a", "stream", name="stdout", text="before\n")
        running = bench.table.running
        assert running is not None
        running.cause = "interrupted" if interrupted else None
        bench.shell("a", status=status, **missing)
        bench.iopub("a", "stream", name="stdout", text="behind the reply\n")
        bench.event("a", Event.IDLE)
        (outcome,) = bench.outcomes["a"]
        assert (outcome.success, outcome.error, outcome.cause) == (False, error, running.cause)
        assert (outcome.output, outcome.state_preserved) == ("before\nbehind the reply\n", True)


def test_an_error_without_a_name_is_one() -> None:
    bench = Bench()
    bench.add("a")
    bench.iopub("a", "error", evalue="2", traceback=[])
    bench.shell("a", status="error", ename="", evalue="2", traceback=[])
    bench.event("a", Event.IDLE)
    assert bench.outcomes["a"][0].error == "Error: 2"


def test_the_end_keeps_the_output_and_says_why() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    bench.output("a")
    bench.table.end_all(Ended("out_of_memory", "OutOfMemory: too much"))
    assert len(bench.table) == 0
    for name, output in (("a", "text\n"), ("b", "")):
        (outcome,) = bench.outcomes[name]
        assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, "out_of_memory", False)
        assert outcome.error == "OutOfMemory: too much"
        assert outcome.output == output


def test_a_cell_is_timed_from_the_end_of_the_one_before() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    for name, at in (("a", 1.0), ("b", 3.0)):
        bench.now = at
        bench.event(name, Event.REPLY)
        bench.event(name, Event.IDLE)
    assert [bench.outcomes[name][0].duration_ms for name in "ab"] == [1000, 2000]


def test_an_error_is_one_line_and_a_traceback() -> None:
    bench = Bench()
    bench.add("a")
    bench.iopub("a", "error", ename="X", evalue="y", traceback=["ignored"])
    bench.shell(
        "a", status="error", ename="ValueError", evalue="one\n  two", traceback=["\x1b[31mTraceback\x1b[0m", "line"]
    )
    bench.event("a", Event.IDLE)
    (outcome,) = bench.outcomes["a"]
    assert outcome.error == "ValueError: one two"
    assert outcome.traceback == "Traceback\nline"
    assert outcome.cause is None


def test_the_error_message_replaces_an_empty_reply() -> None:
    bench = Bench()
    bench.add("a")
    bench.iopub("a", "error", ename="E", evalue="", traceback=["t"])
    bench.shell("a", status="error")
    bench.event("a", Event.IDLE)
    assert (bench.outcomes["a"][0].error, bench.outcomes["a"][0].traceback) == ("E", "t")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("SyntaxError", "invalid syntax (main.py, line 1)", "SyntaxError: invalid syntax"),
        ("IndentationError", "unexpected indent (my file.py, line 12)", "IndentationError: unexpected indent"),
        ("ValueError", "bad (main.py, line 1)", "ValueError: bad (main.py, line 1)"),
        ("KeyError", "'a'", "KeyError: 'a'"),
        ("StopIteration", "", "StopIteration"),
        ("Error", None, "Error"),
        ("A\nB", "c\r\n\r\nd", "A B: c d"),
    ],
)
def test_error_lines(name: str, value: str | None, text: str) -> None:
    assert describe(wire.Failure(name, value)) == text


def test_a_long_error_is_cut() -> None:
    assert len(describe(wire.Failure("E", "x" * 100_000))) == 4096


def test_an_interrupted_cell_says_so_only_if_it_failed() -> None:
    for status, cause in (("ok", None), ("error", "interrupted")):
        bench = Bench()
        bench.add("a")
        running = bench.table.running
        assert running is not None
        running.cause = "interrupted"
        bench.shell("a", status=status, ename="KeyboardInterrupt", evalue="")
        bench.event("a", Event.IDLE)
        assert bench.outcomes["a"][0].cause == cause
        assert bench.outcomes["a"][0].state_preserved


def test_exit_loses_the_state() -> None:
    bench = Bench()
    bench.add("a")
    bench.shell("a", status="ok", payload=[{"source": "ask_exit", "keepkernel": False}])
    bench.event("a", Event.IDLE)
    assert bench.outcomes["a"][0].success
    assert not bench.outcomes["a"][0].state_preserved


def test_cpu_time_comes_from_the_metadata() -> None:
    bench = Bench()
    bench.add("a")
    bench.shell("a", metadata={"started": "x", "kernelbridge": {"cpu_ms": 12.5}}, status="ok")
    bench.event("a", Event.IDLE)
    assert bench.outcomes["a"][0].cpu_ms == 12.5


def test_a_cell_that_asks_has_started_even_if_iopub_reports_it_later() -> None:
    table, events = Bench(), list[CellEvent]()
    table.table.add("a", list[Outcome]().append, events.append, allow_stdin=True)
    table.table.on_stdin(make("a", "input_request", {"prompt": "name? ", "password": False}, {}))
    table.iopub("a", "execute_input", code="input('name? ')", execution_count=1)
    assert events == [Started(None), Asked("name? ", False, "m")]  # noqa: FBT003 - not a password


class Asking:
    """A table with one execution that may ask."""

    def __init__(self) -> None:
        self.bench, self.events = Bench(), list[CellEvent]()
        self.bench.table.add("a", list[Outcome]().append, self.events.append, allow_stdin=True)

    def ask(self, input_id: str) -> None:
        self.bench.table.on_stdin(Message("input_request", input_id, "a", b"{}", b'{"prompt": "? "}'))

    @property
    def asked(self) -> list[str]:
        return [event.input_id for event in self.events if isinstance(event, Asked)]


def test_a_question_takes_the_place_of_one_that_is_not_answered() -> None:
    """Code gives up an `input()` by itself, for example in a handler of SIGALRM."""
    asking = Asking()
    asking.ask("first")
    asking.ask("second")
    asking.ask("second")  # as recalled by a server that has taken the kernel over
    assert asking.asked == ["first", "second"]


def test_a_question_is_given_up_once_and_only_one_that_waits() -> None:
    asking = Asking()
    given_up = Message("kernelbridge_given_up", "m", "a", b"{}", b"{}")
    asking.bench.table.on_stdin(given_up)
    asking.ask("first")
    for _ in range(2):
        asking.bench.table.on_stdin(given_up)
    assert [type(event) for event in asking.events] == [Started, Asked, GivenUp]
    assert asking.bench.table.take_question() is None


def test_a_flood_of_questions_is_left_out_and_answered_ones_are_none() -> None:
    asking = Asking()
    for number in range(1000):
        asking.ask(f"forged-{number}")
    told = len(asking.asked)
    assert 1 < told < 50
    asking.bench.now += 1
    asking.ask("later")
    assert asking.asked[told:] == ["later"]
    for number in range(1000):
        asking.bench.table.take_question()
        asking.ask(f"answered-{number}")
    assert len(asking.asked) == told + 1001


def test_a_flood_of_questions_that_are_given_up_is_left_out_too() -> None:
    asking = Asking()
    given_up = Message("kernelbridge_given_up", "m", "a", b"{}", b"{}")
    for number in range(1000):
        asking.ask(f"{number}")
        asking.bench.table.on_stdin(given_up)
    told = len(asking.asked)
    assert 100 < told < 300  # a program may poll for input
    asking.bench.now += 1
    for number in range(10):
        asking.ask(f"later-{number}")
        asking.bench.table.on_stdin(given_up)
    assert len(asking.asked) == told + 10


def test_messages_of_unknown_parents_are_ignored() -> None:
    bench = Bench()
    bench.add("a")
    bench.shell("b", status="ok")
    bench.shell("", status="ok")
    bench.shell("a", msg_type="kernel_info_reply", status="ok")
    bench.iopub("b", "status", execution_state="idle")
    bench.iopub("a", "execute_reply", status="ok")
    bench.iopub("a", "comm_open", comm_id="x")
    assert len(bench.table) == 1
    assert not bench.late


def test_output_of_no_pending_cell_is_late() -> None:
    bench = Bench()
    bench.iopub("old", "stream", name="stderr", text="thread\n")
    bench.iopub("old", "display_data", data={"text/plain": "shown"}, metadata={})
    bench.iopub("old", "error", ename="E", evalue="", traceback=[])
    bench.iopub("old", "clear_output", wait=False)
    assert bench.late == ["thread\n", "shown\n", "E\n"]


def test_a_traceback_that_is_not_the_end_is_output() -> None:
    bench = Bench()
    bench.add("a")
    bench.iopub("a", "error", ename="Shown", evalue="", traceback=["by %tb"])
    bench.output("a")
    bench.iopub("a", "error", ename="Last", evalue="", traceback=["the end"])
    bench.shell("a", status="error", ename="Last", evalue="", traceback=["the end"])
    bench.event("a", Event.IDLE)
    outcome = bench.outcomes["a"][0]
    assert (outcome.output, outcome.error, outcome.traceback) == ("by %tb\ntext\n", "Last", "the end")
    bench.add("b")
    bench.iopub("b", "error", ename="Shown", evalue="", traceback=["by %tb"])
    bench.event("b", Event.REPLY)
    bench.event("b", Event.IDLE)
    assert (bench.outcomes["b"][0].output, bench.outcomes["b"][0].error) == ("by %tb\n", None)


def test_a_bad_message_raises() -> None:
    bench = Bench()
    bench.add("a")
    with pytest.raises(BadFrame):
        bench.iopub("a", "stream", name="stdout", text=5)
    with pytest.raises(BadFrame):
        bench.shell("a", status=7)
