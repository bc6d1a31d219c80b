"""How much of what all share one user may take."""

from kernelbridge.egress.shares import Shares


def take_all(shares: Shares, user: str) -> int:
    taken = 0
    while shares.take(user):
        taken += 1
    return taken


def test_one_user_gets_half_and_others_get_theirs() -> None:
    shares = Shares(128)
    assert take_all(shares, "greedy") == 64
    assert take_all(shares, "ada") == 32
    assert take_all(shares, "bob") == 16
    assert shares.free == 16


def test_what_is_given_back_can_be_taken_by_anybody() -> None:
    shares = Shares(8)
    assert take_all(shares, "ada") == 4
    assert take_all(shares, "bob") == 2
    for _ in range(4):
        shares.give_back("ada")
    assert take_all(shares, "bob") == 2
    assert shares.free == 4
    for _ in range(4):
        shares.give_back("bob")
    assert (shares.free, take_all(shares, "ada")) == (8, 4)


def test_the_last_place_is_for_one_who_has_none() -> None:
    shares = Shares(1)
    assert shares.take("ada")
    assert not shares.take("bob")
    shares.give_back("ada")
    assert shares.take("bob")
