"""Principals: who is the same, and what is stored of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.identity.principal import Principal, is_name, name_refusal
from kernelbridge.workspace.session_key import SessionKey

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(is_name)


@given(NAMES | st.none(), NAMES | st.none())
def test_a_key_is_read_again(subject: str | None, issuer: str | None) -> None:
    principal = Principal(subject, issuer if subject is not None else None)
    assert Principal.of_key(principal.key) == principal


def test_what_is_no_key() -> None:
    with pytest.raises(TypeError):
        Principal.of_key(3)  # type: ignore[arg-type]


def test_the_names_of_this_server_have_the_sessions_that_user_id_had() -> None:
    """The hashes are those of directories that a server without authentication made."""
    assert SessionKey(Principal("ada"), "s").workspace_id == "ad55458af8b97010f36edc70"
    assert SessionKey(Principal(), "s").workspace_id == "3d9f58f7459366dcbc22e6e4"


@given(st.lists(st.tuples(NAMES | st.none(), NAMES | st.none(), st.from_regex(r"[A-Za-z0-9._-]{1,9}", fullmatch=True))))
def test_different_principals_have_different_sessions(keys: list[tuple[str | None, str | None, str]]) -> None:
    sessions = {
        SessionKey(Principal(subject, issuer if subject else None), session) for subject, issuer, session in keys
    }
    assert len({session.workspace_id for session in sessions}) == len(sessions)


def test_names_are_compared_as_they_are() -> None:
    assert Principal("Ada") != Principal("ada")
    assert Principal("e\u0301") != Principal("\xe9")
    assert Principal("ada", "https://a.example") != Principal("ada", "https://b.example") != Principal("ada")


def test_the_query_may_repeat_the_name_and_no_other() -> None:
    assert name_refusal(None, Principal("ada")) is None
    assert name_refusal("ada", Principal("ada")) is None
    assert name_refusal("ada", Principal("ada", "https://a.example")) is None
    assert all(name_refusal(name, Principal("ada")) for name in ("", "ad", "adam", "ADA", "da"))
    refused = name_refusal("eve", Principal("ada"))
    assert refused is not None
    assert "ada" not in refused
