from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kernelbridge.protocol.texts import LONG, MANY, long, written


def of(**fields: Any) -> tuple[dict[str, Any], int]:
    work, pieces = written(fields), 0
    while True:
        try:
            next(work)
        except StopIteration as exc:
            return exc.value, pieces
        pieces += 1


@pytest.mark.parametrize("char", ["x", "\x1b", "é", "\n", "😀", '"', "\\"])
def test_a_long_text_is_written_in_many_pieces_as_it_would_be_at_once(char: str) -> None:
    text = "a" + char * LONG
    found, pieces = of(output=text, stdout=text, stderr="short")
    assert msgspec.json.decode(msgspec.json.encode(found)) == {"output": text, "stdout": text}
    assert found["output"] is found["stdout"]
    assert pieces > 3


def test_half_a_surrogate_pair_is_replaced_as_in_a_short_text() -> None:
    found, _ = of(output="\udc80" * (LONG + 1))
    assert msgspec.json.decode(found["output"]) == "\ufffd" * (LONG + 1)


def test_long_bundles_and_many_of_them_are_written_one_by_one() -> None:
    results = [{"type": "display_data", "data": {"text/html": "\n" * (LONG + n)}, "metadata": {}} for n in range(3)]
    found, pieces = of(results=results)
    assert not long(found["results"][:0])
    assert msgspec.json.decode(msgspec.json.encode(found["results"])) == results
    assert pieces > 9
    many: list[dict[str, Any]] = [{"type": "display_data", "data": {"n": n}, "metadata": {}} for n in range(MANY + 1)]
    found, pieces = of(results=many)
    assert msgspec.json.decode(msgspec.json.encode(found["results"])) == many
    assert pieces == MANY + 1
    assert of(results=many[:1]) == ({}, 0)
