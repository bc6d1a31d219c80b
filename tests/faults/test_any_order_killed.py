"""As `test_any_order`, with a server that may be killed at any time: what it left is found again, or said to be lost.

`KERNELBRIDGE_FAULT_RUNS=500 pytest tests/faults/test_any_order_killed.py` makes more runs than the usual few.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.faults.house import Frame, Guest, inhabited, next_frame
from tests.faults.served_house import ServedHouse
from tests.faults.test_any_order import FINAL, USERS, Life, reported, run


class KilledLife(Life):
    """A request of a killed server has its answer, or never: nobody holds what waited in it."""

    house: ServedHouse

    def __init__(self, house: ServedHouse) -> None:
        super().__init__(house)
        self.perhaps: set[str] = set()
        """Requests that may still be answered, once."""

    def take(self, guest: Guest, frame: Frame) -> None:
        """Hold a frame against what was asked, of this server or of one before."""
        request_id = frame.get("requestId")
        if request_id in self.perhaps and (frame["type"] in FINAL or frame.get("done")):
            self.perhaps.remove(request_id)
            guest.pending[request_id] = (frame["sessionId"], "")
        super().take(guest, frame)

    @rule(really=st.sampled_from((True, False)))
    def kill_server(self, really: bool) -> None:  # noqa: FBT001  drawn
        """Kill it, and start another on the same data."""
        if not really:
            return
        self.house.do(self.house.kill_server())
        touched = set()
        for user, session, request_id in self.unanswered():
            touched.add((user, session))
            self.perhaps.add(request_id)
            if "cause" in self.expected[request_id]:  # it ends the interpreter, now or never
                self.known.pop((user, session), None)
        for guest in (guest for guests in self.guests.values() for guest in guests):
            self.house.do(guest.ws.close())
        self.guests = {user: [] for user in USERS}
        self.left.clear()
        self.house.do(self.house.start())
        for user, session in sorted(touched):
            self.house.do(self.ask_for(self.guest(user), session))

    def unanswered(self) -> Iterator[tuple[str, str, str]]:
        """Give the user, session and requestId of everything that waits for an answer."""
        for guest in (guest for guests in self.guests.values() for guest in guests):
            for request_id, (session, _) in guest.pending.items():
                yield guest.user, session, request_id
        for (user, session), request_ids in self.left.items():
            for request_id in request_ids:
                yield user, session, request_id

    async def ask_for(self, guest: Guest, session: str) -> None:
        """Resume a session, if it is still there; what was left of it comes when it comes."""
        await guest.ws.send_json({"type": "resume", "sessionId": session})
        frame = await next_frame(guest)
        if frame["type"] == "resumed":
            guest.follows.add(session)
        else:
            assert frame["code"] == "unknown_session", frame


@pytest.fixture
def house(runtime_name: str, workspace_image: str, tmp_path: Path) -> Iterator[ServedHouse]:
    house = ServedHouse(runtime_name, workspace_image, tmp_path / "data", linger="10m", idle_timeout="200ms")
    with inhabited(house):
        yield house


@pytest.mark.timeout(36_000)
def test_any_order_of_requests_and_faults_and_killed_servers(house: ServedHouse) -> None:
    class Counted(KilledLife):
        def __init__(self) -> None:
            super().__init__(house)

    with reported(house):
        run(Counted)
