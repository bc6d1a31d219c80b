"""Where a request carries its token, and what is refused before anybody looks at the token itself."""

import base64

import pytest

from kernelbridge.identity.credentials import (
    CARRIER,
    LONGEST_TOKEN,
    MARKER,
    bearer_token,
    is_token,
    protocols,
    subprotocol_problem,
)
from kernelbridge.identity.principal import Refused

TOKEN = "kb_abc-DEF_0123456789"


def carrier(token: str | bytes) -> str:
    data = token.encode() if isinstance(token, str) else token
    return CARRIER + base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN} "])
def test_a_token_in_the_header(header: str) -> None:
    assert bearer_token([header], [], []) == TOKEN


@pytest.mark.parametrize("name", [carrier(TOKEN), carrier(TOKEN) + "="])
def test_a_token_in_a_subprotocol(name: str) -> None:
    assert bearer_token([], [MARKER, name], []) == TOKEN


def test_the_same_token_twice_is_one() -> None:
    assert bearer_token([f"Bearer {TOKEN}"], [MARKER, carrier(TOKEN), carrier(TOKEN)], ["user_id"]) == TOKEN


def test_no_token() -> None:
    assert bearer_token([], [MARKER, "graphql-ws"], ["user_id", "stream"]) is None


@pytest.mark.parametrize(
    ("authorization", "offered", "query"),
    [
        ([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], [], []),
        ([f"Bearer {TOKEN}, Bearer {TOKEN}"], [], []),
        (["Basic YTpi"], [], []),
        (["Bearer"], [], []),
        (["Bearer "], [], []),
        ([""], [], []),
        (["Bearer caf\xe9"], [], []),
        (["Bearer \udce9"], [], []),  # as aiohttp reads bytes that are not UTF-8
        ([f"Bearer {TOKEN}\x00"], [], []),
        ([f"Bearer {'x' * (LONGEST_TOKEN + 1)}"], [], []),
        ([f"Bearer {TOKEN}"], [carrier("another")], []),
        ([], [carrier(TOKEN), carrier("another")], []),
        ([], [CARRIER], []),
        ([], [CARRIER + "***"], []),
        ([], [CARRIER + "A"], []),  # no number of bytes
        ([], [carrier("café")], []),
        ([], [carrier(b"\xff\xfe")], []),
        ([], [carrier("a b")], []),
        ([], [CARRIER + "A" * (4 * LONGEST_TOKEN)], []),
        ([], [], ["token"]),
        ([f"Bearer {TOKEN}"], [], ["access_token"]),
        ([], [], ["Access-Token"]),
        ([], [], ["JWT"]),
    ],
)
def test_what_is_refused(authorization: list[str], offered: list[str], query: list[str]) -> None:
    found = bearer_token(authorization, offered, query)
    assert isinstance(found, Refused)
    assert TOKEN not in found.reason
    assert found.reason.isprintable()


def test_a_subprotocol_with_a_token_needs_the_marker_beside_it() -> None:
    assert subprotocol_problem([]) is None
    assert subprotocol_problem(["graphql-ws"]) is None
    assert subprotocol_problem([f"{MARKER}, {carrier(TOKEN)}"]) is None
    for headers in ([carrier(TOKEN)], [MARKER, carrier(TOKEN)]):
        problem = subprotocol_problem(headers)
        assert problem is not None
        assert carrier(TOKEN) not in problem


def test_offers_are_split() -> None:
    assert protocols(["a, b", ",c ,"]) == ["a", "b", "c"]


def test_the_form_of_a_token() -> None:
    assert is_token(TOKEN)
    assert is_token("a.b.c")
    assert is_token("YWI=")  # as `openssl rand -base64` ends
    for wrong in ("", "a b", "é", "a\n", "x" * (LONGEST_TOKEN + 1)):
        assert not is_token(wrong)
