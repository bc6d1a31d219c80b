from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.settings.quantities import format_duration, format_size, human_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512m", 512 << 20),
        ("1g", 1 << 30),
        ("1G", 1 << 30),
        ("16MiB", 16 << 20),
        ("16 MB", 16 << 20),
        ("1.5g", 3 << 29),
        ("100b", 100),
        (" 1k ", 1024),
        ("2t", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "m", "-1", "+1", "1x", "1.m", ".5m", "1e3", "0.1b", "1 2", "1ib", "0x10", "1mm", "٣", "99999999t", "nan"],
)
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a (size|whole number)"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("250ms", 0.25),
        ("15", 15.0),
        ("0.5", 0.5),
        ("2 H", 7200.0),
        ("1d", 86400.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1y", "1m30s", "inf", "nan", "1e3", "1 0s", "٣s", "9999999d"])
def test_texts_that_are_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration|century"):
        parse_duration(text)


@given(st.integers(0, (1 << 63) - 1))
def test_a_written_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.floats(0, 3e9))
def test_a_written_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 1 << 20), st.sampled_from("kmgt"), st.sampled_from(["", "b", "ib", "B", "iB"]), st.booleans())
def test_every_spelling_of_a_unit_is_the_same(count: int, unit: str, suffix: str, upper: bool) -> None:  # noqa: FBT001 - drawn
    spelled = (unit.upper() if upper else unit) + suffix
    assert parse_size(f"{count}{spelled}") == count << (10 * ("kmgt".index(unit) + 1))


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_sizes_for_reading(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (60.0, "1m"), (90.0, "90s"), (3600, "1h"), (0.25, "250ms"), (0.0004, "0.0004s")]
)
def test_durations_are_written_in_their_largest_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
