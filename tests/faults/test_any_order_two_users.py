"""Two users with sessions of the same names, in any order of requests: neither receives a byte of the other.

What each of the two knows or guesses of the other, it tries: names of sessions, terminals, questions, requests and
files, tokens, and versions of files. Whatever arrives is searched for what is somebody else's (`marks.py`). What is
tried at another one's session must be answered exactly as at a session that nobody has, and must leave the other's
variables and files as they are. The sessions of one user are held apart in the same way.

`KERNELBRIDGE_FAULT_STEPS=10000 pytest -s tests/faults/test_any_order_two_users.py` takes 10,000 steps, and says
how many of each kind; with `KERNELBRIDGE_FAULT_RUNTIMES="docker local"` on both runtimes.
"""

# ruff: noqa: FBT001  flags that are drawn

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.conftest import SMALL_IMAGE
from tests.faults.guarded_house import (
    Answer,
    GuardedHouse,
    Line,
    answer_of,
    masked,
    masked_answer,
    name_of,
)
from tests.faults.house import PATIENCE, Frame, inhabited
from tests.faults.marks import Border, mark
from tests.faults.test_any_order import reported

RUNTIMES = tuple(os.environ.get("KERNELBRIDGE_FAULT_RUNTIMES", "local").split())
"""What is tried here is decided before any runtime is asked; `tests/contract` holds sandboxes apart on both."""

USERS = ("ada", "bob")
SHARED = ("s1", "s2")
"""The names of two sessions of each user. The third of each is one that the other has not, and tries."""
NOWHERE = mark(1, "nobody")
"""The name of a session that nobody has, as long as those."""
NAMES = ("notes.txt", "d/notes.txt")
TERMINALS = ("t1", "t2")
STEPS = int(os.environ.get("KERNELBRIDGE_FAULT_STEPS", "100"))
AT_ONCE = 500
"""Steps of one run, after which both users begin anew."""
MANY = 2000
"""Steps among which there is each kind of step, and each kind of answer."""
WAITING = 6
"""Requests of one connection that may wait."""
EXPECTED = {
    *("unknown_terminal", "no_input_waiting", "limit_exceeded", "busy"),
    *("kernel_failed", "terminal_failed", "sandbox_failed"),  # the session was closed meanwhile
}
"""Codes of errors that a user may get for what it does in its own sessions."""
SHOWN = {
    *("execution_result", "execution_output", "terminal_output", "terminal_data", "input_request", "complete_reply"),
    *("file_content", "file_list", "file_changed", "egress_denied", "save_result"),
}
"""Messages in which a session's own secrets must have been found."""

LOOK = """if True:
    import os, re, sys
    def look(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return b''
        try:
            return os.read(descriptor, 1 << 16)
        except OSError:
            return b''
        finally:
            os.close(descriptor)
    def walk():
        for top in ('/workspace', '/run', '/tmp', '/var/tmp', '/dev/shm', '/home', '/srv', '/mnt'):
            for folder, folders, names in os.walk(top):
                for name in folders + names:
                    yield name.encode() + look(os.path.join(folder, name))
        for pid in filter(str.isdigit, os.listdir('/proc')):
            yield b' '.join(look('/proc/' + pid + '/' + name) for name in ('environ', 'cmdline', 'mountinfo'))
        yield look('/proc/net/unix') + look('/proc/mounts')
    found = {found for part in walk() for found in re.findall(rb'qz[0-9a-f]{6}x[0-9]+', part)}
    written = sys.stdout.write(f'{sorted(found)}\\n')
"""
"""Prints all that could be anybody's, from wherever a program can read."""


WRITE_X = "import sys; written = sys.stdout.write(f'{globals().get(\"x\")}\\n')"
"""In one piece, so that its events are the same each time."""


def other(user: str) -> str:
    return USERS[1 - USERS.index(user)]


def own_name(user: str) -> str:
    """Return the name of the session that only this user has."""
    return mark(1, user)


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of step: what it does, and what is drawn for it."""

    work: Callable[..., Coroutine[Any, Any, None]]
    drawn: dict[str, st.SearchStrategy[Any]]

    @property
    def name(self) -> str:
        return self.work.__name__

    def __repr__(self) -> str:
        return self.name


def step(**drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Kind]:
    return lambda work: Kind(work, {"user": st.sampled_from(USERS), **drawn})


which = st.integers(0, 2)
indices = st.integers(0, 1)
numbers = st.integers(0, 7)
sometimes = st.sampled_from((True, False, False))
either = st.booleans()


class Neighbours:
    """One run. What is known of each session's variable `x` and files is held against what its owner finds there."""

    def __init__(self, house: GuardedHouse) -> None:
        house.forget()
        self.house, self.border = house, house.border
        self.numbers = itertools.count(10)
        self.lines: dict[str, list[Line]] = {user: [] for user in USERS}
        self.variables: dict[tuple[str, str], str] = {}
        """The value of `x`; absent if it is lost."""
        self.files: dict[tuple[str, str], dict[str, str]] = {}
        self.versions: dict[tuple[str, str], list[str]] = {}
        """The ETags and hashes of files."""
        for user in USERS:
            for session in self.names(user):
                self.files[user, session] = {}
                self.versions[user, session] = []
                self.border.keep(user, house.workspace_id(user, session))

    # -- who and what ------------------------------------------------------------

    def names(self, user: str) -> tuple[str, ...]:
        return (*SHARED, own_name(user))

    def secret(self, user: str, session: str | None = None) -> str:
        """Return a new secret of a user or a session."""
        return mark(next(self.numbers), user, session)

    def guess(self, user: str, text: str) -> str:
        """Return what a user knows of the other one, to be sent by it."""
        self.border.guess(user, text)
        return text

    async def line(self, user: str, line: int = 0) -> Line:
        """Return one of a user's connections, a new one if there is none."""
        mine = self.lines[user]
        if not mine:
            mine.append(await self.house.line(user))
        found = mine[line % len(mine)]
        while len(found.waiting) >= WAITING:
            await asyncio.wait([future for _, _, future in found.waiting.values()], return_when="FIRST_COMPLETED")
        return found

    async def ask(self, user: str, session: str | None, line: int = 0, **message: Any) -> Frame:
        """Send a request and return its answer, which must be one that such a request may have."""
        frame = await answer_of(await self.send(user, session, line, **message))
        assert frame["type"] != "error" or frame["code"] in EXPECTED, (message, frame)
        return frame

    async def send(self, user: str, session: str | None, line: int = 0, **message: Any) -> asyncio.Future[Frame]:
        at = {} if session is None else {"sessionId": session}
        message = {"requestId": self.secret(user), **at, **message}
        return await (await self.line(user, line)).begin(**message)

    async def settle(self, user: str, session: str) -> None:
        """Wait until nothing of a session is under way."""
        for line in self.lines[user]:
            await line.settled(session)

    async def live(self, user: str, drawn: list[tuple[Kind, dict[str, Any]]], spent: dict[str, list[float]]) -> None:
        """Take the steps of one user, in order; note how many seconds each took."""
        for kind, values in drawn:
            if values["user"] == user:
                began = time.monotonic()
                try:
                    async with asyncio.timeout(PATIENCE):
                        await kind.work(self, **values)
                finally:
                    self.house.check()
                spent[kind.name].append(time.monotonic() - began)

    # -- connections -------------------------------------------------------------

    @step(streams=either)
    async def connect(self, user: str, streams: bool) -> None:
        if len(self.lines[user]) < 2:
            self.lines[user].append(await self.house.line(user, "stream=true" if streams else ""))

    @step(politely=either)
    async def vanish(self, user: str, politely: bool) -> None:
        """Lose a connection. Cells and commands that run go on, and their answers wait for whoever resumes."""
        if self.lines[user]:
            line = self.lines[user].pop()
            await line.settled(None, "restart_kernel", "interrupt", "close_session")
            await line.close(politely=politely)

    @step(session=which, line=indices, after=st.integers(0, 40))
    async def resume(self, user: str, session: int, line: int, after: int) -> None:
        """Follow a session, the streams of its other connections included."""
        future = await self.send(user, self.names(user)[session], line, type="resume", after=after)
        frame = await answer_of(future)
        assert frame["type"] == "resumed" or frame["code"] == "unknown_session", frame

    @step(right=either, named=either)
    async def authenticate(self, user: str, right: bool, named: bool) -> None:
        """Log in by the first message: with its own token, as itself or as the other one, or with a wrong one."""
        if right and not named:
            line = await self.house.line(user, headers={})
            assert (await line.ask(type="authenticate", requestId="a", token=self.house.tokens[user]))["userId"]
            await line.close()
            return
        token = self.house.tokens[user] if right else "kb_" + "A" * 43
        heard = []
        for name in (name_of(other(user)), name_of("nobody")):
            line = await self.house.line(user, f"user_id={self.guess(user, name)}", headers={})
            await line.ws.send_json({"type": "authenticate", "token": token, "requestId": "a"})
            await line.closed()
            heard.append([masked(text, name) for text in line.heard])
        assert heard[0] == heard[1], heard
        assert len(heard[0]) == 1, heard

    @step(right=either)
    async def present_token(self, user: str, right: bool) -> None:
        """Ask with the own token under the other one's name, or with a token that nobody has."""
        token = None if right else "kb_" + "A" * 43
        answers = []
        for name in (name_of(other(user)), name_of("nobody")):
            path = f"/api/sessions/s1/files/notes.txt?user_id={self.guess(user, name)}"
            answers.append(masked_answer(await self.house.http(user, "GET", path, token=token), name))
        statuses = {status for status, _, _ in answers}
        assert statuses <= ({403} if right else {401, 429}), answers
        assert answers[0] == answers[1] or len(statuses) > 1, answers  # 429 from some failure on

    # -- programs ----------------------------------------------------------------

    @step(session=which, line=indices, stream=either)
    async def cell(self, user: str, session: int, line: int, stream: bool) -> None:
        name = self.names(user)[session]
        secret = self.secret(user, name)
        code = f"{secret} = '{secret}'; print({secret}); 1/{session}"
        await self.send(user, name, line, type="execute_code", code=code, stream=stream)

    @step(session=which, line=indices)
    async def remember(self, user: str, session: int, line: int) -> None:
        """Find `x` as it was left, and set it anew, while nothing else of the session is under way."""
        name = self.names(user)[session]
        await self.settle(user, name)
        found = await self.ask(user, name, line, type="execute_code", code="print(globals().get('x'))")
        secret = self.secret(user, name)
        if (known := self.variables.get((user, name))) is not None:
            assert found["output"] == f"{known}\n", (found, known)
        self.variables.pop((user, name), None)
        if (await self.ask(user, name, line, type="execute_code", code=f"x = '{secret}'"))["success"]:
            self.variables[user, name] = secret

    @step(session=which, line=indices)
    async def look_around(self, user: str, session: int, line: int) -> None:
        """Print all that could be anybody's, from wherever a cell can read."""
        await self.send(user, self.names(user)[session], line, type="execute_code", code=LOOK)

    @step(session=which, line=indices)
    async def be_asked(self, user: str, session: int, line: int) -> None:
        """Run a cell that asks a question. It is answered by whichever connection gets it."""
        name = self.names(user)[session]
        code = f"print(input('{self.secret(user, name)}? '))"
        await self.settle(user, name)
        await self.ask(user, name, line, type="execute_code", code=code, allowStdin=True)

    @step(session=which, line=indices, what=st.sampled_from(("complete", "inspect", "is_complete")))
    async def help(self, user: str, session: int, line: int, what: str) -> None:
        await self.send(user, self.names(user)[session], line, type=what, code="qz")

    @step(session=which, line=indices, stream=either)
    async def command(self, user: str, session: int, line: int, stream: bool) -> None:
        name = self.names(user)[session]
        command = f"V={self.secret(user, name)}; echo $V; tail -qn 2 ~/*.txt 2>&1"
        await self.send(user, name, line, type="terminal_command", command=command, stream=stream)

    @step(session=which, line=indices)
    async def reach_out(self, user: str, session: int, line: int) -> None:
        """Have a program refused a host, of which the session's clients are told."""
        name = self.names(user)[session]
        command = f"curl -sS --max-time 20 https://{self.secret(user, name)}.example.invalid 2>&1"
        await self.send(user, name, line, type="terminal_command", command=command)

    @step(session=which, line=indices, what=st.sampled_from(("execution", "terminal")), queued=either)
    async def interrupt(self, user: str, session: int, line: int, what: str, queued: bool) -> None:
        name = self.names(user)[session]
        await self.send(user, name, line, type="interrupt", target=what, queued=queued)

    @step(session=which, line=indices)
    async def restart_kernel(self, user: str, session: int, line: int) -> None:
        name = self.names(user)[session]
        self.variables.pop((user, name), None)
        await self.send(user, name, line, type="restart_kernel")

    # -- terminals ---------------------------------------------------------------

    def terminal(self, user: str, number: int) -> str:
        """Return the name of a terminal: one that both users have, or one that the other would have to guess."""
        return (*TERMINALS, mark(2, user), mark(3, user))[number % 4]

    @step(session=which, line=indices, terminal=numbers)
    async def open_terminal(self, user: str, session: int, line: int, terminal: int) -> None:
        """Open a terminal, attach to one, or have one named by the server."""
        named = {"terminalId": self.terminal(user, terminal)} if terminal < 7 else {}
        name = self.names(user)[session]
        frame = await self.ask(user, name, line, type="open_terminal", **named)
        if frame["type"] != "terminal_opened":
            return
        typed = {"type": "terminal_input", "data": f"echo {self.secret(user, name)}\n"}
        await self.send(user, name, line, terminalId=frame["terminalId"], **typed)
        if not named:
            await self.ask(user, name, line, type="close_terminal", terminalId=frame["terminalId"])

    @step(session=which, line=indices, terminal=numbers)
    async def type_into_terminal(self, user: str, session: int, line: int, terminal: int) -> None:
        name = self.names(user)[session]
        data = f"echo {self.secret(user, name)}\n"
        shown = self.terminal(user, terminal)
        await self.send(user, name, line, type="terminal_input", terminalId=shown, data=data)

    @step(session=which, line=indices, terminal=numbers, rows=st.integers(2, 60))
    async def resize_terminal(self, user: str, session: int, line: int, terminal: int, rows: int) -> None:
        size = {"rows": rows, "cols": 2 * rows}
        shown = self.terminal(user, terminal)
        await self.send(user, self.names(user)[session], line, type="terminal_resize", terminalId=shown, **size)

    @step(session=which, line=indices, terminal=numbers)
    async def close_terminal(self, user: str, session: int, line: int, terminal: int) -> None:
        shown = self.terminal(user, terminal)
        await self.send(user, self.names(user)[session], line, type="close_terminal", terminalId=shown)

    # -- files -------------------------------------------------------------------

    def file(self, user: str, session: str, number: int) -> str:
        """Return the name of a file: one that both users have, or one with a secret of its session."""
        return (*NAMES, f"{mark(2, user, session)}.txt")[number % 3]

    def content(self, user: str, session: str) -> str:
        return f"{self.secret(user, session)}\n" * 5

    @step(session=which, line=indices, number=numbers)
    async def save_file(self, user: str, session: int, line: int, number: int) -> None:
        name = self.names(user)[session]
        filename, content = self.file(user, name, number), self.content(user, name)
        saved = await self.ask(user, name, line, type="save_file", filename=filename, content=content)
        assert saved["success"], saved
        self.files[user, name][filename] = content
        self.versions[user, name].append(saved["sha256"])

    @step(session=which, line=indices, number=numbers, raw=either)
    async def read_file(self, user: str, session: int, line: int, number: int, raw: bool) -> None:
        name = self.names(user)[session]
        filename, encoding = self.file(user, name, number), "base64" if raw else "utf-8"
        found = await self.ask(user, name, line, type="read_file", filename=filename, encoding=encoding)
        expected = self.files[user, name].get(filename)
        if expected is None:
            assert found["code"] == "not_found", found
        else:
            assert found["content"] == expected or raw, (found, expected)

    @step(session=which, line=indices, watch=either)
    async def list_files(self, user: str, session: int, line: int, watch: bool) -> None:
        name = self.names(user)[session]
        found = await self.ask(user, name, line, type="list_files", recursive=True, watch=watch)
        names = {entry["path"] for entry in found["files"] if entry["kind"] == "file"}
        assert names == set(self.files[user, name]), (found, self.files)

    @step(session=which, line=indices, number=numbers)
    async def delete_file(self, user: str, session: int, line: int, number: int) -> None:
        name = self.names(user)[session]
        filename = self.file(user, name, number)
        done = await self.ask(user, name, line, type="delete_file", filename=filename)
        assert done["success"] == (self.files[user, name].pop(filename, None) is not None), done

    @step(session=which, line=indices, number=numbers)
    async def rename_file(self, user: str, session: int, line: int, number: int) -> None:
        name = self.names(user)[session]
        old, new = self.file(user, name, number), self.file(user, name, number + 1)
        request = {"type": "rename_file", "filename": old, "newFilename": new, "overwrite": True}
        done = await self.ask(user, name, line, **request)
        assert done["success"] == (old in self.files[user, name]), done
        if done["success"]:
            self.files[user, name][new] = self.files[user, name].pop(old)

    def path(self, session: str, filename: str) -> str:
        return f"/api/sessions/{session}/files/{filename}"

    @step(session=which, number=numbers)
    async def put_file(self, user: str, session: int, number: int) -> None:
        name = self.names(user)[session]
        filename, content = self.file(user, name, number), self.content(user, name)
        answer = await self.house.http(user, "PUT", self.path(name, filename), session=name, data=content)
        assert answer.status in {200, 201}, answer
        self.files[user, name][filename] = content
        self.versions[user, name].append(answer.headers["ETag"])

    @step(session=which, number=numbers, start=st.integers(0, 40), method=st.sampled_from(("GET", "GET", "HEAD")))
    async def get_file(self, user: str, session: int, number: int, start: int, method: str) -> None:
        """Get a file, or a part of it that is long enough to have a whole secret in it."""
        name = self.names(user)[session]
        filename = self.file(user, name, number)
        headers = {"Range": f"bytes={start}-{start + 30}"} if start else {}
        answer = await self.house.http(user, method, self.path(name, filename), session=name, headers=headers)
        expected = self.files[user, name].get(filename)
        assert answer.status == (404 if expected is None else 206 if start else 200), (answer, expected)
        if expected is not None and method == "GET":
            assert answer.body.decode() == (expected[start : start + 31] if start else expected), answer

    # -- sessions ----------------------------------------------------------------

    @step(session=which, line=indices)
    async def open_session(self, user: str, session: int, line: int) -> None:
        await self.send(user, self.names(user)[session], line, type="open_session")

    @step(line=indices)
    async def list_sessions(self, user: str, line: int) -> None:
        found = await self.ask(user, None, line, type="list_sessions")
        assert {entry["sessionId"] for entry in found["sessions"]} <= set(self.names(user)), found

    @step(session=which, line=indices)
    async def session_info(self, user: str, session: int, line: int) -> None:
        await self.ask(user, self.names(user)[session], line, type="session_info")

    @step(session=which, line=indices, delete=either, really=sometimes)
    async def close_session(self, user: str, session: int, line: int, delete: bool, really: bool) -> None:
        """Close a session with all that runs in it, or one that was never open."""
        name = self.names(user)[session] if really else self.guess(user, NOWHERE)
        if really:
            self.variables.pop((user, name), None)
        frame = await self.ask(user, name, line, type="close_session", deleteFiles=delete)
        assert frame["type"] == "close_session_reply", frame
        if really and delete:
            self.files[user, name].clear()

    # -- attacks -----------------------------------------------------------------

    async def same_as_nowhere(self, user: str, *messages: Frame, streams: bool) -> None:
        """Send messages about the other one's session, and about one that nobody has: the same must come back."""
        tried = (self.guess(user, own_name(other(user))), self.guess(user, NOWHERE))
        begun = (self.house.conversation(user, session, messages, streams=streams) for session in tried)
        theirs, nowhere = await asyncio.gather(*begun)
        assert theirs == nowhere, (theirs, nowhere)

    def request_of(self, user: str) -> str:
        """Return the id of a request of the other one, if possible of one that waits for its answer."""
        waiting = [request for line in self.lines[other(user)] for request in line.waiting]
        return self.guess(user, waiting[0] if waiting else mark(11, other(user)))

    @step(info=st.sampled_from(("session_info", "resume", "close_session")), after=st.integers(0, 40), streams=either)
    async def attack_session(self, user: str, info: str, after: int, streams: bool) -> None:
        """Ask for another one's session, follow it, or close it."""
        more = {"after": after} if info == "resume" else {}
        message = {"type": info, "requestId": self.request_of(user), **more}
        await self.same_as_nowhere(user, message, streams=streams)

    @step(what=numbers, number=numbers, streams=either)
    async def attack_files(self, user: str, what: int, number: int, streams: bool) -> None:
        """Read, change and watch files by messages, under the names and versions that the other one's have."""
        theirs, victim = own_name(other(user)), other(user)
        filename = self.guess(user, self.file(victim, theirs, number))
        known = [version for version in self.versions[victim, theirs] if len(version) == 64]
        messages: tuple[Frame, ...] = (
            {"type": "read_file", "filename": filename},
            {"type": "read_file", "filename": filename, "encoding": "base64", "offset": 1},
            {"type": "list_files", "recursive": True, "hidden": True},
            {"type": "list_files", "watch": True},
            {"type": "delete_file", "filename": filename},
            {"type": "rename_file", "filename": filename, "newFilename": "mine.txt"},
            {"type": "save_file", "filename": filename, "content": "", "ifMatch": (known or ["0" * 64])[-1]},
            {"type": "save_file", "filename": filename, "content": "x", "mode": "create"},
        )
        message = {**messages[what], "requestId": self.request_of(user)}
        await self.same_as_nowhere(user, message, {"type": "session_info", "requestId": "i"}, streams=streams)

    @step(what=st.integers(0, 11), really=sometimes, streams=either)
    async def attack_programs(self, user: str, what: int, really: bool, streams: bool) -> None:
        """Run code, type, answer questions, interrupt and end what runs, with the ids that the other one uses."""
        victim = other(user)
        terminal = {"terminalId": self.guess(user, mark(2 + what % 2, victim))}
        made = sorted(self.border.made_for(victim))
        made_id = self.guess(user, made[what % len(made)])
        light: tuple[Frame, ...] = (
            {"type": "terminal_input", **terminal, "data": "echo $V\n"},
            {"type": "terminal_resize", **terminal, "rows": 3, "cols": 3},
            {"type": "close_terminal", **terminal},
            {"type": "input_reply", "value": "x", "inputId": made_id},
            {"type": "input_reply", "value": "x"},
            {"type": "interrupt", "queued": True},
            {"type": "interrupt", "target": "terminal", "queued": True, "jobs": True},
        )
        heavy: tuple[Frame, ...] = (
            {"type": "execute_code", "code": WRITE_X, "contextId": made_id},
            {"type": "execute_code", "code": LOOK},
            {"type": "terminal_command", "command": "echo $V; ls"},
            {"type": "restart_kernel"},
        )
        message = heavy[what % len(heavy)] if really else light[what % len(light)]
        message = {**message, "requestId": self.request_of(user), "refused": True}
        # The output of a command comes in pieces, which are not the same each time.
        await self.same_as_nowhere(user, message, streams=streams and message["type"] != "terminal_command")

    @step(method=st.sampled_from(("GET", "HEAD", "PUT", "DELETE", "OPTIONS")), number=numbers)
    async def attack_http(self, user: str, method: str, number: int) -> None:
        """Get and replace files by HTTP, with the versions that the other one's files have."""
        victim, theirs = other(user), self.guess(user, own_name(other(user)))
        filename = self.guess(user, self.file(victim, theirs, number))
        etag = (self.versions[victim, theirs] or ["0" * 64])[-1].strip('"')
        conditions: tuple[dict[str, str], ...] = (
            {},
            {"If-Match": f'"{etag}"'},
            {"If-None-Match": "*"},
            {"Range": "bytes=1-40"},
        )
        answers = []
        for session in (theirs, self.guess(user, NOWHERE)):
            path, data = self.path(session, filename), "x" if method == "PUT" else None
            answer = await self.house.http(user, method, path, headers=conditions[number % 4], data=data)
            answers.append(masked_answer(answer, session))
            await self.house.conversation(user, session, (), streams=False)
        assert answers[0] == answers[1], answers

    @step(method=st.sampled_from(("GET", "DELETE")), session=which)
    async def attack_administration(self, user: str, method: str, session: int) -> None:
        """Ask for what only administrators get, about the other one's session and about none."""
        answers = []
        theirs = self.house.workspace_id(other(user), self.names(other(user))[session])
        for number in (theirs, "0" * 24):
            path = f"/api/workspaces/{self.guess(user, number)}" + ("/events?last=5" if method == "GET" else "")
            answers.append(masked_answer(await self.house.http(user, method, path), number))
        assert answers[0] == answers[1], answers
        assert answers[0][0] == 403
        assert (await self.house.http(user, "GET", "/api/sessions")).status == 403

    @step(session=st.integers(0, 1), line=indices, what=numbers)
    async def guess_within(self, user: str, session: int, line: int, what: int) -> None:
        """Use the other one's ids in a session of one's own that has the same name."""
        name, victim = SHARED[session], other(user)
        await self.settle(user, name)
        made = sorted(self.border.made_for(victim))
        tries = ((mark(2, victim), mark(2, "nobody")), (made[what % len(made)], "0" * len(made[what % len(made)])))
        request = self.request_of(user)
        answers = []
        for text in tries[what % 2]:
            self.guess(user, text)
            messages: tuple[Frame, ...] = (
                {"type": "terminal_input", "terminalId": text, "data": "x"},
                {"type": "close_terminal", "terminalId": text},
                {"type": "input_reply", "inputId": text, "value": "x"},
                {"type": "terminal_resize", "terminalId": text, "rows": 3, "cols": 3},
            )
            message = {**messages[what // 2], "requestId": request, "refused": True}
            frame = await answer_of(await self.send(user, name, line, **message))
            assert frame["code"] in {"unknown_terminal", "no_input_waiting"}, frame
            answers.append(masked(str({**frame, "seq": 0}), text))
        assert answers[0] == answers[1], answers

    @step(path=st.sampled_from(("/healthz", "/readyz", "/api/schema", "/metrics", "/api/sessions/s1/files/")))
    async def ask_server(self, user: str, path: str) -> None:
        """Ask for what is everybody's: nothing of anybody is in it."""
        answer: Answer = await self.house.http(user, "GET", path)
        assert answer.status < 500, answer

    # -- the end -----------------------------------------------------------------

    async def everything_closed(self) -> None:
        for user in USERS:
            for line in self.lines[user]:
                await line.settled()
            last = await self.house.line(user)
            for session in self.names(user):
                request = {"type": "close_session", "sessionId": session, "deleteFiles": True}
                frame = await last.ask(**request, requestId=self.secret(user))
                assert frame["type"] == "close_session_reply", frame
            for line in (*self.lines[user], last):
                await line.close()


def kinds() -> list[Kind]:
    return [kind for kind in vars(Neighbours).values() if isinstance(kind, Kind)]


def steps() -> st.SearchStrategy[tuple[Kind, dict[str, Any]]]:
    return st.one_of([st.tuples(st.just(kind), st.fixed_dictionaries(kind.drawn)) for kind in kinds()])


@pytest.fixture
def house(runtime_name: str, tmp_path: Path) -> Iterator[GuardedHouse]:
    with inhabited(GuardedHouse(USERS, runtime_name, SMALL_IMAGE, tmp_path / "data", linger="10m")) as made:
        yield made


@pytest.mark.timeout(36_000)
def test_two_users_exchange_no_byte(house: GuardedHouse) -> None:
    spent: dict[str, list[float]] = {kind.name: [] for kind in kinds()}
    seen: Counter[str] = Counter()

    @settings(
        max_examples=max(1, STEPS // AT_ONCE),
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps(), min_size=(size := min(STEPS, AT_ONCE)), max_size=size))
    def run(drawn: list[tuple[Kind, dict[str, Any]]]) -> None:
        assume(len({kind for kind, _ in drawn}) > 20)  # the simplest examples are one step again and again
        both = Neighbours(house)
        house.do_both(*(both.live(user, drawn, spent) for user in USERS))
        house.do(both.everything_closed())
        house.do(house.nothing_left())
        seen.update(both.border.seen)

    with reported(house):
        run()
    for name, each in sorted(spent.items(), key=lambda item: -len(item[1])):
        print(f"{len(each):6} {name:24} {sum(each):8.1f} s")
    print(f"{STEPS:6} in all, {sum(map(sum, spent.values())):.0f} s of both users; secrets in {dict(seen)}")
    assert sum(map(len, spent.values())) == STEPS
    if STEPS >= MANY:
        assert all(spent.values())
        assert set(seen) >= SHOWN


def test_what_is_somebody_elses_is_found() -> None:
    """The search of the test above, where there is something to find."""
    border = Border()
    border.keep("bob", "0123456789abcdef")
    border.keep_token("ada", "kb_secret")
    own, shared = mark(1, "ada", "s1"), mark(2, "ada")
    border.search("ada", "s1", f"{own} {shared} 0123456789abcdee", "frame")
    encoded = base64.b64encode(mark(1, "bob").encode()).decode()
    for session, text in (
        ("s1", mark(1, "bob", "s1")),
        ("s1", mark(1, "bob")),
        ("s1", mark(1, "ada", "s2")),
        (None, own),
        ("s1", "the connection 0123456789abcdef"),
        ("s1", "Bearer kb_secret"),
    ):
        with pytest.raises(AssertionError, match="somebody else"):
            border.search("ada", session, text, "frame")
    frame = {"type": "file_content", "sessionId": "s1", "encoding": "base64", "content": encoded}
    with pytest.raises(AssertionError, match="somebody else"):
        border.frame("ada", json.dumps(frame))
    border.guess("ada", mark(1, "bob"))
    border.frame("ada", json.dumps(frame))
    assert border.seen == {"frame": 1}
