import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kernelbridge.audit.entries import COST, MOST_CODE, MOST_TEXT, Entry, line

HOSTILE = "a\r\nb\x85c\u2028d\x1b[31me\x7f\x9bf\ud800\u202eg\0"


def read(entry: Entry, *, with_code: bool = False) -> dict[str, object]:
    written = line(entry, with_code=with_code)
    assert written.endswith(b"\n")
    found = json.loads(written)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", ["user", "session", "path", "what", "reason", "address"])
def test_no_text_of_a_client_leaves_its_line_or_is_obeyed_by_a_terminal(name: str) -> None:
    written = line(Entry(0.0, "refused", {name: HOSTILE}), with_code=False)
    text = written.decode("ascii")
    assert text.splitlines(keepends=True) == [text]
    assert text.removesuffix("\n").isprintable()
    assert json.loads(written)[name] == HOSTILE


def test_an_entry_has_when_what_and_its_fields() -> None:
    assert read(Entry(1.5, "destroy", {"user": None, "session": "s", "files_deleted": False})) == {
        "time": "1970-01-01T00:00:01.500Z",
        "event": "destroy",
        "session": "s",
        "files_deleted": False,
    }


def test_code_is_hashed_and_measured_and_not_shown() -> None:
    code = "print('é')\ud800"
    content = code.encode("utf-8", "surrogatepass")
    entry = Entry(0.0, "cell", {}, code)
    found = read(entry)
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["size"] == len(content)
    assert "code" not in found
    assert read(entry, with_code=True)["code"] == code


def test_fields_and_code_are_bounded() -> None:
    found = read(Entry(0.0, "cell", {"path": "p" * 5000}, "c" * 100_000), with_code=True)
    assert found["path"] == "p" * MOST_TEXT + "… (3976 more)"
    assert found["code"] == "c" * MOST_CODE + "… (34464 more)"
    assert found["size"] == 100_000


@pytest.mark.parametrize(
    "text",
    [
        "é" * 5000,
        "🐍" * 5000,
        "abcd" + "🐍" * 5000,
        "abcdef" + "🐍" * 5000,
        "\\" * 5000,
        "\n" * 5000,
        "\ud800" * 5000,
        'x"' * 5000,
    ],
)
def test_what_is_long_only_in_the_line_is_bounded_too(text: str) -> None:
    entry = Entry(0.0, "download", {"path": text})
    path = read(entry)["path"]
    assert isinstance(path, str)
    kept, _, rest = path.partition("… (")
    assert rest == f"{len(text) - len(kept)} more)"
    assert 0 <= MOST_TEXT - (len(json.dumps(kept)) - 2) <= 12
    assert len(line(entry, with_code=False)) < MOST_TEXT + 120
    assert "\ud800" in text or kept.isprintable() or "\n" in text  # no half of a character


def test_a_large_text_costs_what_it_holds_and_only_its_beginning_is_looked_at() -> None:
    entry = Entry(0.0, "download", {"path": "x" * 10_000_000}, "y" * 1_000_000)
    assert entry.cost == COST + 11_000_000
    with tracing() as peak:
        line(entry, with_code=False)
    assert peak() < 2_000_000 + 1_000_000  # the code is hashed as UTF-8


@contextmanager
def tracing() -> Iterator[Callable[[], int]]:
    """Count the bytes that are allocated at most at a time."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_text_that_just_fits_is_whole() -> None:
    for text in ("x" * MOST_TEXT, "\n" * (MOST_TEXT // 2)):
        assert read(Entry(0.0, "download", {"path": text}))["path"] == text
    cut = read(Entry(0.0, "download", {"path": "x" * (MOST_TEXT + 1)}))["path"]
    assert cut == "x" * MOST_TEXT + "… (1 more)"
