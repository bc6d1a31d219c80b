import itertools

from kernelbridge.server.websocket.heartbeat import Patience


def asked_for(patience: Patience, silent: float) -> float | None:
    """Return the seconds since it was first asked, if that was done as soon as it was due."""
    return silent - patience.ping if silent >= patience.ping else None


def test_a_silent_client_is_asked_every_30_seconds_and_dropped_after_90() -> None:
    patience, silent = Patience(), 0.0
    looks = []
    while silent < patience.drop:
        silent += patience.next_check(silent, asked_for(patience, silent))
        looks.append(round(silent))
    assert looks == [30, 60, 90]


def test_a_look_never_comes_early_nor_turns_in_circles() -> None:
    for ping, drop in itertools.product((0.2, 1.0, 30.0), (0.6, 7.0, 90.0)):
        patience = Patience(ping, drop)
        silent, looks = 0.0, 0
        while silent < drop:
            wait = patience.next_check(silent, asked_for(patience, silent))
            assert wait > 0
            silent, looks = silent + wait, looks + 1
        assert looks <= drop / ping + 1
        assert silent <= drop + 0.02


def test_a_client_that_was_asked_late_has_its_full_time_to_answer() -> None:
    patience = Patience(ping=30, drop=90)
    assert patience.remaining(silent=3600, asked=None) == 60
    assert patience.remaining(silent=3600, asked=0.0) == 60
    assert patience.remaining(silent=3650, asked=50.0) == 10
    assert patience.remaining(silent=89, asked=59.0) == 1
