"""Token buckets."""

from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.rates import Bucket, Pace, Paces, Rates


def test_what_fits_into_the_bucket_waits_for_nothing() -> None:
    bucket = Bucket(10, now=0)
    assert [bucket.take(50, 0), bucket.take(50, 0), bucket.take(1, 0)] == [0, 0, 0.1]


def test_it_fills_with_time_and_never_over() -> None:
    bucket = Bucket(10, now=0)
    bucket.take(100, 0)
    assert bucket.take(10, 1) == 0
    assert bucket.take(101, 1000) == 0.1


def test_zero_is_no_limit() -> None:
    assert Bucket(0, now=0).take(1e12, 0) == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=50))
def test_who_waits_as_told_never_gets_more_than_the_rate(steps: list[tuple[float, int]]) -> None:
    bucket, now, taken = Bucket(10, now=0), 0.0, 0
    for pause, amount in steps:
        now += pause
        taken += amount
        now += bucket.take(amount, now)
        assert taken <= 100 + 10 * now + 1e-6


def test_what_the_connections_of_a_user_send_together_counts() -> None:
    for what in ("requests", "size"):
        paces = Paces(Rates(requests=10, size=10), clock=lambda: 0.0)
        waits = [paces.connection("u").wait(**{what: 50}) for _ in range(3)]
        assert waits == [0, 0, 5]
        assert paces.connection("another").wait(**{what: 50}) == 0


def test_a_connection_has_half_of_what_its_user_has_and_others_have_the_rest() -> None:
    paces = Paces(Rates(requests=10, size=1000), clock=lambda: 0.0)
    one, two, three = (paces.connection("u") for _ in range(3))
    assert one.wait(requests=50) == 0
    assert one.wait(requests=1) > 0
    assert two.wait(requests=49) == 0
    assert three.wait(requests=1) > 0
    assert paces.connection("another").wait(requests=50, size=5000) == 0


def test_a_new_connection_does_not_forget_what_its_user_has_sent() -> None:
    for what in ("requests", "size"):
        paces = Paces(Rates(requests=10, size=10), clock=lambda: 0.0)
        paces.connection("u").wait(**{what: 500})
        for number in range(2000):
            paces.connection(number)
        assert paces.connection("u").wait(**{what: 1}) > 30


def test_users_who_rest_are_forgotten() -> None:
    paces = Paces(Rates(requests=10, size=10), clock=lambda: 0.0)
    for number in range(5000):
        paces.connection(number)
    assert len(paces._users) <= 1000


def test_bytes_count_by_themselves() -> None:
    pace = Pace(Rates(requests=0, size=10), lambda: 0.0)
    assert (pace.wait(requests=1000), pace.wait(size=110)) == (0, 1)
