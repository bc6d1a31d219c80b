"""Logins end once, when their credential does."""

from kernelbridge.identity.logins import EXPIRED, REVOKED, Login, Logins
from kernelbridge.identity.principal import Identity, Principal

ADA = Principal("ada")


def test_a_login_ends_once_when_its_credential_expires() -> None:
    ended: list[str] = []
    logins = Logins(lambda _: True)
    with logins.watched(Login(Identity(ADA, expires=10.0)), ended.append):
        logins.sweep(9.9)
        assert ended == []
        logins.sweep(10.0)
        logins.sweep(11.0)
        assert ended == [EXPIRED]


def test_a_login_ends_once_when_its_credential_is_revoked_and_others_stay() -> None:
    first_ended: list[str] = []
    second_ended: list[str] = []
    revoked: set[str | None] = set()
    logins = Logins(lambda identity: identity.proof not in revoked)
    first, second = (Login(Identity(ADA, proof=proof)) for proof in ("one", "two"))
    with logins.watched(first, first_ended.append), logins.watched(second, second_ended.append):
        revoked.add("one")
        logins.sweep(0.0)
        logins.sweep(1.0)
    revoked.add("two")
    logins.sweep(2.0)
    assert (first_ended, second_ended) == ([REVOKED], [])


def test_a_renewed_login_lasts_as_long_as_the_new_credential() -> None:
    ended: list[str] = []
    login, logins = Login(Identity(ADA, expires=10.0), lambda _: Identity(ADA, expires=20.0)), Logins(lambda _: True)
    with logins.watched(login, ended.append):
        login.renew("another")
        logins.sweep(19.0)
        assert ended == []
        logins.sweep(20.0)
        assert ended == [EXPIRED]
