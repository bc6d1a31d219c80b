"""The token file: what its lines mean, and whose a token is."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.identity.principal import NAME_LENGTH, Identity, Principal, Refused, is_name
from kernelbridge.identity.tokens import (
    HASHED,
    Tokens,
    WrongLineError,
    hash_of,
    new_token,
    parse_time,
    parse_tokens,
    token_line,
)

A, B = "kb_" + "A" * 43, "kb_" + "B" * 43


def test_a_token_is_known_by_its_whole_hash() -> None:
    digest = hash_of(A)
    for other in (digest[:-1] + "x", "x" + digest[1:]):
        assert Tokens({other: Identity(Principal("ada"))}).judge(A, 0) == Refused("the token is not known")


def test_a_new_token_has_32_random_bytes() -> None:
    assert new_token() != new_token()
    assert re.fullmatch(r"kb_[A-Za-z0-9_-]{43}", new_token())


def test_tokens_and_hashes_names_and_times() -> None:
    tokens = parse_tokens(f"# staff\n\nada {A}\n  grace\t{HASHED}{hash_of(B).upper()}  admin   2027-01-31\n")
    assert tokens.judge(A, 0) == Identity(Principal("ada"), proof=hash_of(A))
    end = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert tokens.judge(B, end - 1) == Identity(Principal("grace"), admin=True, expires=end, proof=hash_of(B))
    assert tokens.judge(B, end) == Refused("the token has expired")
    for wrong in (new_token(), "", A[:-1], A + "x", hash_of(A), "\udce9"):
        assert tokens.judge(wrong, 0) == Refused("the token is not known")


def test_a_token_that_left_the_file_or_changed_is_revoked() -> None:
    identity = parse_tokens(f"ada {A}").judge(A, 0)
    assert isinstance(identity, Identity)
    assert parse_tokens(f"other {B}\nada {HASHED}{hash_of(A)}").still(identity)
    for text in ("", f"ada {B}", f"eve {A}", f"ada {A} admin", f"ada {A} 2027-01-01"):
        assert not parse_tokens(text).still(identity), text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ada", "expected `principal token-or-its-hash"),
        (f"ada {A} admin 2027-01-31 more", "expected `principal token-or-its-hash"),
        ("ada short", "at least 43 ASCII characters"),
        (f"ada {'é' * 50}", "at least 43 ASCII characters"),
        (f"ada {HASHED}{'0' * 63}", "64 hexadecimal digits"),
        (f"ada {HASHED}{'g' * 64}", "64 hexadecimal digits"),
        (f"ada {A} administrator", "the time must be written as"),
        (f"ada {A} 2027-01-31 admin", "`admin` before the time"),
        (f"ada {A} tomorrow", "the time must be written as"),
        (f"ada {A} 2027-01-31T12:00:00", "the time must be written as"),  # no zone
        (f"ada {A} 20270131T00", "the time must be written as"),
        (f"%ff {A}", "a principal's name"),
        (f"%00 {A}", "a principal's name"),
        (f"{'x' * (NAME_LENGTH + 1)} {A}", "a principal's name"),
        (f"eve {A}\nada {A}", "on an earlier line"),
        (f"eve {HASHED}{hash_of(A)}\nada {A}", "on an earlier line"),
    ],
)
def test_what_a_line_may_not_be(line: str, expected: str) -> None:
    number = 2 + line.count("\n")
    with pytest.raises(WrongLineError) as wrong:
        parse_tokens(f"# comment\n{line}")
    assert expected in str(wrong.value)
    assert f"line {number}: " in str(wrong.value)
    assert A not in str(wrong.value)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.booleans(), st.booleans())
def test_a_line_that_is_written_is_read_again(name: str, admin: bool, ends: bool) -> None:  # noqa: FBT001
    token, end = new_token(), datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    if not is_name(name):
        with pytest.raises(ValueError, match="a principal's name is"):
            token_line(name, token)
        return
    line = token_line(name, token, admin=admin, expires=end if ends else None)
    assert token not in line
    expires = end.timestamp() if ends else None
    assert parse_tokens(line).judge(token, 0) == Identity(Principal(name), admin, expires, hash_of(token))


def test_the_end_of_a_token_is_written_in_utc() -> None:
    end = datetime(2031, 5, 6, 1, 8, 9, tzinfo=timezone(timedelta(hours=2)))
    assert token_line("ada", A, expires=end).split()[-1] == "2031-05-05T23:08:09Z"


def test_times() -> None:
    assert parse_time("2027-01-31T12:00:00+01:00").timestamp() == parse_time("2027-01-31T11:00:00Z").timestamp()
