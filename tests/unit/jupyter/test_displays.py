"""Displays of cells in strict JSON, from real kernels of both generations."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import CellEvent, Displayed, Updated
from tests.unit.jupyter.conftest import PATIENCE, Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOW = """
import datetime, decimal, enum, types, numpy as np
def show(value, **more):
    display({'application/json': value, 'text/plain': 'shown'}, raw=True, **more)
"""


def strictly(value: Any) -> Any:
    """Return what a client reads that knows only JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(msgspec.json.encode(value), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ("{'v': [float('nan'), 1.5]}", {"v": [None, 1.5]}),
        ("{'v': [float('inf'), -float('inf')], 'w': {'x': (float('nan'),)}}", {"v": [None, None], "w": {"x": [None]}}),
        ("{float('nan'): 1, 1: 2, None: 3, True: 4, 1.5: 5}", {"nan": 1, "1": 4, "null": 3, "1.5": 5}),
        ("{(1, 2): 1, np.int64(3): 2, b'b': 3}", {"(1, 2)": 1, "3": 2, "b": 3}),
        ("{1: 'a', '1': 'b'}", {"1": "b"}),
        ("b'bytes'", "Ynl0ZXM="),
        ("[b'bytes', float('nan')]", ["Ynl0ZXM=", None]),
        ("[np.float32('nan'), np.float64(1.5), np.int8(3), np.bool_(True)]", [None, 1.5, 3, True]),
        ("np.array([[1, np.nan], [np.inf, 2]])", [[1, None], [None, 2]]),
        ("np.array(5)", 5),
        ("'a\\ud800b'", "a\ufffdb"),
        ("['\\udcff', '\\ud83d\\ude00', float('nan')]", ["\ufffd", "\U0001f600", None]),
        ("{'k\\udfff': 1}", {"k\ufffd": 1}),
        ("2 ** 70", 2**70),
        ("[10 ** 5000, 1]", [None, 1]),
        ("{1, 2}", [1, 2]),
        ("[iter([1, float('nan')]), (n for n in [2, 3])]", [[1, None], [2, 3]]),
        ("[float('nan'), (n for n in [2, 3])]", [None, [2, 3]]),
        ("range(3)", [0, 1, 2]),
        ("datetime.date(2026, 1, 2)", "2026-01-02"),
        ("datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)", "2026-01-02T00:00:00Z"),
        ("types.MappingProxyType({'a': float('nan')})", {"a": None}),
        ("enum.IntEnum('Colour', 'RED')['RED']", 1),
        ("None", None),
        ("{'deep': " + "[" * 100 + "float('nan')" + "]" * 100 + "}", None),
    ],
)
async def test_a_bundle_arrives_in_strict_json_without_warnings(
    any_notebook: Notebook, value: str, arrives: Any
) -> None:
    outcome = await any_notebook.run(f"{SHOW}\nshow({value})")
    assert (outcome.success, outcome.output, outcome.stderr) == (True, "shown\n", ""), outcome.error
    (result,) = strictly(outcome.results)
    assert result["data"]["text/plain"] == "shown"
    if arrives is not None:
        assert result["data"]["application/json"] == arrives


async def test_metadata_results_updates_and_comms_are_strict_too(any_notebook: Notebook) -> None:
    events: list[CellEvent] = []
    code = f"""{SHOW}
import comm
show([1], metadata={{'nan': float('nan')}}, display_id='d')
show([float('nan')], display_id='d', update=True)
widget = comm.create_comm(target_name='t', data={{'nan': float('nan')}})
widget.send({{'nan': float('nan'), 'b': b'x'}})
class Shown:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {{'application/json': {{'x': float('inf')}}, 'text/plain': 'a value'}}, {{'n': float('nan')}}
Shown()"""
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    any_notebook.kernel.submit(Cell(code), done.set_result, events.append)
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert (outcome.success, outcome.stderr) == (True, ""), outcome.error
    first, value = strictly(outcome.results)
    assert first["data"] == {"application/json": [None], "text/plain": "shown"}
    assert value["data"] == {"application/json": {"x": None}, "text/plain": "a value"}
    assert value["metadata"] == {"n": None}
    told = [event for event in events if isinstance(event, Displayed | Updated)]
    assert strictly([(event.data, event.metadata) for event in told]) == [
        [{"application/json": [1], "text/plain": "shown"}, {"nan": None}],
        [{"application/json": [None], "text/plain": "shown"}, {}],
        [value["data"], value["metadata"]],
    ]


async def test_large_bundles_arrive_complete(any_notebook: Notebook) -> None:
    """They are not decoded, but passed on as they are."""
    outcome = await any_notebook.run(f"{SHOW}\nshow({{'y': [0.5, float('nan')] * 200_000, 's': 'a\\udcffb'}})")
    assert (outcome.success, outcome.stderr) == (True, "")
    data = strictly(outcome.results)[0]["data"]["application/json"]
    assert data == {"y": [0.5, None] * 200_000, "s": "a\ufffdb"}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("object()", "TypeError: Object of type object is not JSON serializable"),
        ("[float('nan'), 1j]", "TypeError: Object of type complex is not JSON serializable"),
        ("(lambda a: a.append(a) or a)([])", "ValueError: Circular reference detected"),
    ],
)
async def test_values_that_json_cannot_encode_are_errors_of_the_cell(
    any_notebook: Notebook, value: str, error: str
) -> None:
    outcome = await any_notebook.run(f"{SHOW}\nshow({value})")
    assert (outcome.success, outcome.error) == (False, error)
    assert (await any_notebook.run("print('lives')")).output == "lives\n"


async def test_a_figure_has_no_text_besides_its_image(any_notebook: Notebook) -> None:
    code = "import matplotlib.pyplot as plt\n%matplotlib inline\n_ = plt.plot([1, 2])\nprint('before')"
    outcome = await any_notebook.run(code)
    assert outcome.output == "before\n"
    (figure,) = outcome.results
    assert {"image/png", "text/plain"} <= figure["data"].keys()
    outcome = await any_notebook.run("%config InlineBackend.figure_formats = ['svg', 'pdf']\nplt.plot([1]); plt.show()")
    assert outcome.output == ""
    assert {"image/svg+xml", "application/pdf"} <= outcome.results[0]["data"].keys()
