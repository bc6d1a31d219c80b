"""Users, faults and restarts in any order: all is answered once, state is lost only with notice, nothing leaks.

`KERNELBRIDGE_FAULT_RUNS=500 pytest tests/faults/test_any_order.py` makes more runs than the usual few.
"""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.faults.house import ConnectionClosedError, Frame, Guest, House, inhabited, next_frame, resources

USERS = ("u", "v")
SESSIONS = ("s",)
"""One each, of the same name: what the two do meets as often as it can."""
FINAL = {
    "execution_result",
    "terminal_output",
    "save_result",
    "kernel_restarted",
    "close_session_reply",
    "session_info_reply",
    "error",
}
LOST = {"interrupted", "session_closed", "sandbox_lost", "out_of_memory"}
CAUSES = {
    "execution_result": {"kernel_died", "kernel_restarted", *LOST},
    "terminal_output": {"shell_exited", *LOST},
}
STEPS = 25
RUNS = int(os.environ.get("KERNELBRIDGE_FAULT_RUNS", "10"))
GROWTH = 6
"""Descriptors and threads that pools may take beyond what the first run needed."""

users, sessions = st.sampled_from(USERS), st.sampled_from(SESSIONS)
cells = st.sampled_from(("print", "fail", "wait", "late", "exit"))


class Life(RuleBasedStateMachine):
    """One run. What is known of a session's variable `x` is held against what its interpreter says."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        self.numbers = itertools.count(1)
        self.guests: dict[str, list[Guest]] = {user: [] for user in USERS}
        self.expected: dict[str, dict[str, Any]] = {}
        """What the answer to a request has to be, unless it has a cause, by requestId."""
        self.left: dict[tuple[str, str], set[str]] = {}
        """Requests of connections that are gone, which nobody has got the answers of."""
        self.saved: dict[str, Path] = {}
        """Where the file of a request is, if it was saved."""
        self.known: dict[tuple[str, str], int | None] = {}
        """The value of `x`; absent when it may or may not be lost."""

    # -- requests ----------------------------------------------------------------

    def guest(self, user: str) -> Guest:
        """Give a user's connection, a new one if there is none."""
        if not self.guests[user]:
            self.guests[user].append(self.house.do(self.house.connect(user)))
        return self.guests[user][-1]

    def send(self, guest: Guest, session: str, expected: dict[str, Any], **message: object) -> str:
        request_id = f"r{next(self.numbers)}"
        self.expected[request_id] = expected
        guest.pending[request_id] = (session, str(message["type"]))
        self.house.do(guest.ws.send_json({"sessionId": session, "requestId": request_id, **message}))
        return request_id

    def take(self, guest: Guest, frame: Frame) -> None:
        """Hold a frame against what was asked."""
        if frame["type"] not in FINAL and not frame.get("done"):
            return
        request_id = frame.get("requestId")
        assert request_id is not None, frame
        session, _ = guest.pending.pop(request_id, (None, ""))
        if session is None:
            left = self.left.get((guest.user, frame["sessionId"]), set())
            if request_id not in left:
                assert frame["sessionId"] in guest.follows, f"nobody waits for this answer: {frame}"
                return  # another connection's, which it follows
            left.remove(request_id)
            session = frame["sessionId"]
        assert frame["sessionId"] == session
        self.learn(guest.user, session, frame)
        if "cause" in frame and frame["type"] in CAUSES:
            assert frame["cause"] in CAUSES[frame["type"]], frame
        elif frame["type"] == "error":
            assert frame["code"] in {"kernel_failed", "sandbox_failed", "unknown_session"} or frame["retryable"], frame
        else:
            expected = self.expected[request_id]
            assert {key: frame.get(key) for key in expected} == expected, frame

    def learn(self, user: str, session: str, frame: Frame) -> None:
        """Note whether the variables are lost. A shell has a state of its own, which it may lose alone."""
        alone = frame["type"] == "terminal_output" and frame.get("cause") != "sandbox_lost"
        lost = frame.get("statePreserved") is False and not alone
        if lost or frame["type"] in {"kernel_restarted", "close_session_reply"}:
            self.known[user, session] = None

    async def answers(self, guest: Guest) -> None:
        """Wait for a connection's answers."""
        while guest.pending:
            self.take(guest, await next_frame(guest))

    # -- what users do -----------------------------------------------------------

    @rule(user=users)
    def connect(self, user: str) -> None:
        if len(self.guests[user]) < 3:
            self.guests[user].append(self.house.do(self.house.connect(user)))

    @rule(user=users, session=sessions, kind=cells)
    def execute(self, user: str, session: str, kind: str) -> None:
        guest = self.guest(user)
        n = next(self.numbers)
        programs: dict[str, tuple[str, dict[str, Any]]] = {
            "print": (f"print({n})", {"success": True, "output": f"{n}\n"}),
            "fail": ("1/0", {"success": False, "error": "ZeroDivisionError: division by zero"}),
            "wait": (f"import time; time.sleep(0.2); print({n})", {"success": True, "output": f"{n}\n"}),
            "late": (
                f"import threading; threading.Timer(0.05, print, ['late']).start(); print({n})",
                {"success": True, "error": None},
            ),
            "exit": ("import os; os._exit(7)", {"cause": "kernel_died"}),
        }
        code, expected = programs[kind]
        self.send(guest, session, expected, type="execute_code", code=code)

    @rule(user=users, session=sessions)
    def command(self, user: str, session: str) -> None:
        n = next(self.numbers)
        expected = {"output": f"{n}\n", "exitCode": 0}
        self.send(self.guest(user), session, expected, type="terminal_command", command=f"sleep 0.05; echo {n}")

    @rule(user=users, session=sessions)
    def save(self, user: str, session: str) -> None:
        name = f"f{next(self.numbers)}"
        request_id = self.send(
            self.guest(user), session, {"success": True}, type="save_file", filename=name, content="x" * 100_000
        )
        self.saved[request_id] = self.house.files(user, session) / name

    @rule(user=users, session=sessions)
    def restart_kernel(self, user: str, session: str) -> None:
        self.send(self.guest(user), session, {"cause": "requested"}, type="restart_kernel")

    @rule(user=users, session=sessions)
    def interrupt(self, user: str, session: str) -> None:
        self.send(self.guest(user), session, {}, type="interrupt")

    @rule(user=users, session=sessions, really=st.sampled_from((True, False, False)))
    def close_session(self, user: str, session: str, really: bool) -> None:  # noqa: FBT001  drawn
        if not really:
            return
        guest = self.guest(user)
        for other in self.guests[user]:
            other.follows.discard(session)
        self.send(guest, session, {}, type="close_session")
        self.house.do(self.answers(guest))
        # Answers are kept as long as the session is.
        self.left.pop((user, session), None)

    @rule(user=users, session=sessions)
    def know(self, user: str, session: str) -> None:
        """Set `x`, when nothing else is under way, and find it; what was known before must still hold."""
        guest = self.guest(user)
        for other in self.guests[user]:
            self.house.do(self.answers(other))
        key = (user, session)
        self.send(guest, session, {}, type="execute_code", code="print(globals().get('x'))")
        found = self.house.do(self.last_result(guest))
        if found.get("success") and key in self.known and not self.left.get(key):
            assert found["output"] == f"{self.known[key]}\n", (found, self.known)
        n = next(self.numbers)
        self.send(guest, session, {"success": True}, type="execute_code", code=f"x = {n}")
        if self.house.do(self.last_result(guest)).get("success"):
            self.known[key] = n

    async def last_result(self, guest: Guest) -> Frame:
        frame: Frame = {}
        while guest.pending:
            frame = await next_frame(guest)
            self.take(guest, frame)
        return frame

    @rule(user=users, session=sessions)
    def doze(self, user: str, session: str) -> None:
        """Leave a session alone until it is paused, or turns out not to be there."""
        guest = self.guest(user)
        self.settle(user)
        self.house.do(self.paused(guest, session))

    async def paused(self, guest: Guest, session: str) -> None:
        state = "active"
        while state not in {"paused", "absent", "unknown_session"}:
            await guest.ws.send_json({"type": "session_info", "sessionId": session, "requestId": "info"})
            while (frame := await next_frame(guest)).get("requestId") != "info":
                self.take(guest, frame)
            state = str(frame.get("state") or frame["code"])

    # -- what goes wrong ---------------------------------------------------------

    @rule(user=users)
    def vanish(self, user: str) -> None:
        """Lose a connection, answers under way included."""
        if self.guests[user]:
            guest = self.guests[user].pop()
            for request_id, (session, _) in guest.pending.items():
                self.left.setdefault((user, session), set()).add(request_id)
            self.house.do(guest.ws.close())

    @precondition(lambda self: any(self.left.values()))
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """Resume a session, and get what nobody got."""
        user, session = data.draw(st.sampled_from(sorted(key for key, left in self.left.items() if left)))
        guest = self.house.do(self.house.connect(user))
        self.guests[user].append(guest)
        self.house.do(self.resume(guest, session))

    async def resume(self, guest: Guest, session: str) -> None:
        left = self.left[guest.user, session]
        guest.follows.add(session)
        await guest.ws.send_json({"type": "resume", "sessionId": session})
        frame = await next_frame(guest)
        assert frame["type"] == "resumed", frame
        while left:
            self.take(guest, await next_frame(guest))

    @rule(user=users)
    def settle(self, user: str) -> None:
        """Wait until everything of a user is answered."""
        for guest in self.guests[user]:
            self.house.do(self.answers(guest))

    @rule(user=users, session=sessions, what=st.sampled_from(("ipykernel", "bash", "")))
    def kill(self, user: str, session: str, what: str) -> None:
        """Kill the kernel, the shell or everything, the sandbox's first process included."""
        if not list(self.house.processes(user, session)):
            self.execute(user, session, "print")
            self.command(user, session)
            self.settle(user)
        if self.house.kill(user, session, what) and what != "bash":
            self.known.pop((user, session), None)

    @rule(how=st.sampled_from(("when all is read", "at once", "not", "not")))
    def restart_server(self, how: str) -> None:
        """Stop in order: what has been read is answered first, and what has not is not carried out."""
        if how != "not":
            self.house.do(self.stopped(read=how == "when all is read"))
            self.house.do(self.house.start())

    async def stopped(self, *, read: bool) -> None:
        everybody = [guest for guests in self.guests.values() for guest in guests]
        if read:
            for guest in everybody:
                await guest.ws.send_json({"type": "ping"})
                while (frame := await next_frame(guest))["type"] != "pong":
                    self.take(guest, frame)
        stopping = asyncio.create_task(self.house.stop_server())
        await asyncio.gather(*(self.last_answers(guest) for guest in everybody))
        await stopping
        for guest in everybody:
            assert not read or not guest.pending, guest.pending
            assert not [name for name in guest.pending if name in self.saved and self.saved[name].exists()]
        self.guests = {user: [] for user in USERS}
        self.left.clear()
        self.known.clear()

    async def last_answers(self, guest: Guest) -> None:
        with contextlib.suppress(ConnectionClosedError):
            while True:
                self.take(guest, await next_frame(guest))
        await guest.ws.close()

    # -- the end -----------------------------------------------------------------

    def teardown(self) -> None:
        self.house.do(self.everything_answered())
        self.house.do(self.house.nothing_left())

    async def everything_answered(self) -> None:
        for user, session in sorted(key for key, left in self.left.items() if left):
            guest = await self.house.connect(user)
            self.guests[user].append(guest)
            await self.resume(guest, session)
        for user, guests in self.guests.items():
            for guest in guests:
                await self.answers(guest)
                await guest.ws.close()
            last = await self.house.connect(user)
            for session in SESSIONS:
                closing = {"type": "close_session", "sessionId": session, "deleteFiles": True, "requestId": session}
                await last.ws.send_json(closing)
                while (frame := await next_frame(last)).get("requestId") != session:
                    pass
                assert frame["type"] == "close_session_reply", frame
            await last.ws.close()


@pytest.fixture
def house(runtime_name: str, workspace_image: str, tmp_path: Path) -> Iterator[House]:
    with inhabited(House(runtime_name, workspace_image, tmp_path / "data", linger="10m", idle_timeout="200ms")) as made:
        yield made


@pytest.mark.timeout(36_000)
def test_any_order_of_requests_and_faults(house: House) -> None:
    used: list[tuple[int, int]] = []

    class Counted(Life):
        def __init__(self) -> None:
            super().__init__(house)

        def teardown(self) -> None:
            super().teardown()
            used.append(resources())

    with reported(house):
        run(Counted)
    (descriptors, threads), (last_descriptors, last_threads) = used[0], used[-1]
    assert last_descriptors <= descriptors + GROWTH, used
    assert last_threads <= threads + GROWTH, used


@contextlib.contextmanager
def reported(house: House) -> Iterator[None]:
    """Report the first failure: a run that is repeated to confirm it need not go the same way."""
    try:
        yield
    except BaseException as exc:
        if house.failure is not None:
            raise house.failure from exc
        raise


def run(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
