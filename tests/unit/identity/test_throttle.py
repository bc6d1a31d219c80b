"""Failures are counted for each address and in all, in bounded memory."""

from kernelbridge.identity.throttle import Rate, Throttle


def test_failures_beyond_the_rate_wait_and_are_counted() -> None:
    throttle = Throttle(Rate(3, 0.5), Rate(100, 100))
    assert [throttle.failed("a", 0) for _ in range(3)] == [0, 0, 0]
    assert throttle.failed("a", 0) == 2
    assert throttle.failed("a", 1) == 1
    assert throttle.failed("b", 1) == 0
    assert throttle.failed("a", 2) == 0
    assert throttle.take_suppressed() == 2
    assert throttle.take_suppressed() == 0


def test_many_addresses_share_a_rate() -> None:
    throttle = Throttle(Rate(3, 1), Rate(10, 1))
    assert sum(throttle.failed(str(number), 0) == 0 for number in range(1000)) == 10
    assert throttle.failed("new", 1) == 0


def test_it_never_gives_more_than_the_burst() -> None:
    throttle = Throttle(Rate(2, 1), Rate(100, 100))
    assert throttle.failed("a", 0) == 0
    assert [throttle.failed("a", 1e6) == 0 for _ in range(3)] == [True, True, False]


def test_addresses_are_forgotten() -> None:
    throttle = Throttle(Rate(1, 1e-9), Rate(1e9, 1e9), addresses=100)
    for number in range(1000):
        assert throttle.failed(str(number), 0) == 0
    assert throttle.failed("999", 0) > 0
    assert throttle.failed("0", 0) == 0
    assert len(throttle._each) == 100
