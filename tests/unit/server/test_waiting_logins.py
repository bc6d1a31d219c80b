"""Which WebSockets without a login may wait, and which one makes room."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

from kernelbridge.errors import KernelBridgeError
from kernelbridge.server.waiting_logins import SILENT, WAITING, WaitingLogins


class Places:
    """Places that are asked for at a time of the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ended: list[str] = []
        self.waiting = WaitingLogins(lambda: self.now)

    def of(self, address: str, name: str = "") -> AbstractContextManager[bool]:
        def end(error: KernelBridgeError) -> None:
            assert "connect again" in (error.reason or "")
            self.ended.append(name or address)

        return self.waiting.of(address, end)


def test_an_address_with_many_waiting_loses_the_oldest() -> None:
    places = Places()
    with ExitStack() as held:
        for number in range(WAITING):
            assert held.enter_context(places.of("greedy", str(number)))
        assert not held.enter_context(places.of("greedy"))
        for _ in range(WAITING // 2):
            assert held.enter_context(places.of("other"))
        assert not held.enter_context(places.of("other"))
        assert places.ended == [str(number) for number in range(WAITING // 2)]
    with ExitStack() as held:  # all places are free again
        for number in range(WAITING):
            assert held.enter_context(places.of(f"address {number}"))
    assert len(places.ended) == WAITING // 2


def test_addresses_with_as_many_waiting_do_not_take_places_from_each_other() -> None:
    places = Places()
    with ExitStack() as held:
        for number in range(WAITING):  # one has one more than the two others
            assert held.enter_context(places.of(f"address {number % 3}"))
        for number in range(3):
            assert not held.enter_context(places.of(f"address {number}"))
    assert places.ended == []


def test_who_has_been_silent_makes_room_for_another_one_of_its_address() -> None:
    places = Places()
    with ExitStack() as held:
        for number in range(WAITING):
            held.enter_context(places.of("proxy", str(number)))
            places.now += 0.001
        places.now = SILENT - 0.001
        assert not held.enter_context(places.of("proxy"))
        places.now = SILENT
        assert held.enter_context(places.of("proxy"))
    assert places.ended == ["0"]
