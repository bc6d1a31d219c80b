"""Ranges and entity tags, as RFC 9110 has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.errors import BadRequest
from kernelbridge.server.http_conditions import Span, Tags, span, tags


@given(
    header=st.one_of(st.text(), st.from_regex(r"bytes=[0-9]{0,5}-[0-9]{0,5}", fullmatch=True)),
    size=st.integers(0, 9999),
)
def test_a_part_is_inside_the_file(header: str, size: int) -> None:
    part = span(header, size)
    if part is not None:
        assert part.start >= 0
        assert part.length >= 0
        assert part.start + part.length <= size


def test_no_range_is_the_whole() -> None:
    assert span(None, 7) == Span(0, 7)
    assert span("bytes=-", 7) == Span(0, 7)
    assert span("bytes=0-", 0) is None


def test_tags() -> None:
    assert tags(" * ", "If-Match").any
    assert tags('"a", W/"b" ,"c,d"', "If-Match") == Tags(
        any=False, strong=frozenset({"a", "c,d"}), weak=frozenset({"b"})
    )
    assert tags(f'"{"0" * 64}", "x"', "If-Match").hashes == {"0" * 64}


@pytest.mark.parametrize("header", ["a", '"a', '"a" "b"', 'w/"a"', '"a";', '"a","b'])
def test_what_is_no_tag_is_refused(header: str) -> None:
    with pytest.raises(BadRequest, match="If-Match"):
        tags(header, "If-Match")
