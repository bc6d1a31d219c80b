"""The agent as a process of this machine, without isolation: what it keeps, ends and survives."""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.guest import agent as guest
from kernelbridge.runtimes.agent import directory
from kernelbridge.runtimes.agent.stream import is_pipe_or_terminal
from kernelbridge.runtimes.contract import ExitStatus
from tests.contract.driving import PATIENCE, read_all, read_until
from tests.unit.runtimes.agent_house import FACTS, House, agent_house, alive, until, until_alive


def of(pid: int, name: str) -> str:
    """One line of a process's status."""
    [line] = re.findall(rf"^{name}:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return str(line)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with agent_house(tmp_path) as opened:
        yield opened


# -- what programs leave -----------------------------------------------------------


DAEMONS = {
    "a background job": "{sleep} 999 &",
    "a job of its own session": "setsid {sleep} 999 &",
    "a daemon without an environment": "env -i setsid -f {sleep} 999",
    "a double fork": "(setsid sh -c '{sleep} 999 & exit' &) ; :",
    "an empty environment": """{python} -c 'import os; os.fork() or (os.setsid(), os.fork() and os._exit(0), \
os.execve("{sleep}", ["{sleep}", "999"], {{}}))'""",
    "a subreaper of its own": """{python} -c 'import ctypes, os; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); \
os.fork() or (os.setsid(), os.fork() and os._exit(0), os.execv("{sleep}", ["{sleep}", "999"])); \
import time; time.sleep(999)' &""",
}


@pytest.mark.parametrize("kind", DAEMONS)
async def test_kill_ends_whatever_a_program_started_and_nothing_else(house: House, kind: str) -> None:
    client = await house.connect()
    victim, neighbour = house.link("victim"), house.link("neighbour")
    for path in (victim, neighbour):
        script = DAEMONS[kind].format(sleep=path, python=sys.executable)
        process = await house.start(client, f"{script}\n echo up; sleep 999")
        await read_until(process, b"up")
        await until_alive(path)
        if path is victim:
            doomed = process
    await doomed.kill()
    assert alive(victim) == []
    assert (await doomed.wait()).signal == signal.SIGKILL
    assert len(alive(neighbour)) == 1
    await process.kill()
    assert alive(neighbour) == []


async def test_kill_ends_what_outlived_its_program(house: House) -> None:
    client = await house.connect()
    path = house.link("left")
    process = await house.start(client, DAEMONS["an empty environment"].format(sleep=path, python=sys.executable))
    assert (await process.wait()).code == 0
    await until_alive(path)
    await process.kill()
    assert alive(path) == []


async def test_prune_spares_the_program(house: House) -> None:
    client = await house.connect()
    path = house.link("job")
    process = await house.start(
        client, f"{DAEMONS['a double fork'].format(sleep=path)}\n echo up; read x; echo $x", tty=True
    )
    await read_until(process, b"up")
    await until_alive(path)
    await process.prune()
    assert alive(path) == []
    await process.write(b"lives\n")
    assert b"lives\r\nlives" in await read_all(process)


async def test_prune_since_ends_one_command_and_spares_earlier_jobs(house: House) -> None:
    client = await house.connect()
    early, late = house.link("early"), house.link("late")
    script = f"setsid -f sh -c '{early} 999 & wait' & read x; setsid -f {late} 999; {late} 999 & echo up; read x"
    process = await house.start(client, script, tty=True)
    await until_alive(early)
    since = await process.moment()
    await process.write(b"\n")
    await read_until(process, b"up")
    await until_alive(late, 2)
    await process.prune(since)
    assert alive(late) == []
    assert len(alive(early)) == 1
    await process.prune()
    assert alive(early) == []
    await process.write(b"\n")
    assert (await process.wait()).code == 0


def ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


async def test_prune_since_tells_processes_of_the_same_hundredth_apart(house: House) -> None:
    client = await house.connect()
    path = house.link("job")
    process = await house.start(client, f"while read x; do {path} 999 & echo up $!.; done", tty=True)

    async def job() -> int:
        await process.write(b"\n")
        found = re.search(rb"up ([0-9]+)\.", await read_until(process, b".\r\n"))
        assert found is not None
        return int(found[1])

    async with asyncio.timeout(PATIENCE):
        while True:
            before, since, after = await job(), await process.moment(), await job()
            if ticks(before) == since.ticks == ticks(after):
                break
            await process.prune()
    await until_alive(path, 2)
    await process.prune(since)
    assert alive(path) == [before]


def test_the_order_of_pids_where_they_begin_anew() -> None:
    last = guest.PIDS - 3
    began_since = cast("Callable[[int, int, tuple[int, int]], bool]", guest.began_since)
    assert began_since(301, 7, (7, last))
    assert began_since(last + 1, 7, (7, last))
    assert not began_since(last, 7, (7, last))
    assert not began_since(last, 7, (7, 301))


def test_only_two_empty_lists_in_a_row_say_that_all_have_ended() -> None:
    """What was forked while the first one was made is in the second."""
    lists: Iterator[tuple[list[int], bool]] = iter(
        [([], True), ([], False), ([], True), ([], False), ([], False), ([], False)]
    )
    agent = cast("guest.Agent", SimpleNamespace(turn=lambda _seconds: None))
    rounds = cast("Callable[..., bool]", guest.Agent.rounds)
    assert rounds(agent, lambda: next(lists), 60)
    assert len(list(lists)) == 1


async def test_a_program_that_cannot_be_started_is_refused_once_and_forgotten(house: House) -> None:
    client = await house.connect()
    with pytest.raises(SandboxError):
        await client.spawn(["sh"], env={}, cwd="/absent")
    assert await read_all(await house.start(client, "echo up")) == b"up\n"
    assert not client.closed
    assert len(await client.known()) == 1


async def test_a_program_on_a_terminal_that_the_bridge_holds_has_no_controlling_one(house: House) -> None:
    client = await house.connect()
    terminal = client.open_terminal(24, 80)
    script = f"tty; read x; echo got $x; exec 3<>{terminal.path}; (: </dev/tty) 2>&1; exec sleep 999"
    process = await client.spawn(["sh", "-c", script], env=FACTS.env, cwd="/", terminal=terminal)
    await terminal.write(b"typed\n")
    said = b""
    async with asyncio.timeout(PATIENCE):
        while b"/dev/tty" not in said or not said.endswith(b"\n"):
            said += await terminal.read()
    assert said.split(b"\r\n")[:2] == [terminal.path.encode(), b"got typed"]
    assert b"No such device or address" in said
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    assert (int(fields[2]), int(fields[3]), int(fields[4])) == (process.pid, int(fields[1]), 0)  # group, session, tty
    terminal.only_for_writing()
    assert os.fstat(terminal.slave).st_mode & 0o777 in {0o200, 0o220}
    await process.kill()
    terminal.release()
    async with asyncio.timeout(PATIENCE):
        assert await terminal.read() == b""
    terminal.close()


async def test_the_end_of_a_keeper_is_the_end_of_its_program_alone(house: House) -> None:
    client = await house.connect()
    victim, neighbour = house.link("victim"), house.link("neighbour")
    script = "setsid -f {0} 999; echo up; sleep 999"
    process = await house.start(client, script.format(victim))
    other = await house.start(client, script.format(neighbour))
    await read_until(process, b"up")
    await read_until(other, b"up")
    await until_alive(victim)
    os.kill(int(of(process.pid, "PPid")), signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        assert (await process.wait()).signal == signal.SIGKILL
    await process.kill()
    assert alive(victim) == []
    assert len(alive(neighbour)) == 1
    assert of(other.pid, "State").startswith("S")


async def test_a_keeper_holds_nothing_and_ignores_what_ends_programs(house: House) -> None:
    client = await house.connect()
    process = await house.start(client, "trap '' TERM HUP INT; echo up; read x; exit 7", tty=True)
    await read_until(process, b"up")
    keeper = int(of(process.pid, "PPid"))
    assert of(keeper, "Name") == "kb-keeper"
    assert of(int(of(keeper, "PPid")), "Name") == "kb-agent"
    if os.geteuid() == 0:  # the agent's memory and descriptors are closed to others of its user
        held = sorted(str(fd.readlink()) for fd in Path(f"/proc/{keeper}/fd").iterdir())
        assert held[:3] == ["/dev/null"] * 3
        assert len(held) == 4
        assert held[3].startswith("socket:")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTSTP, signal.SIGUSR1, signal.SIGALRM):
        os.kill(keeper, number)
    assert of(keeper, "State")[0] in "RS"  # neither stopped nor dead
    await process.write(b"\n")
    assert (await process.wait()).code == 7


SUCCESSOR = """if 1:
    import ctypes, os, struct, sys
    main = os.getpid()
    print(os.getppid(), flush=True)
    if os.fork():
        os._exit(3)
    os.setsid()  # the number is in use as long as a group or session has it
    number = (ctypes.c_int * 1)(main)
    # clone3 with `set_tid`: it fails until the number is free. The signal is SIGCHLD.
    wanted = struct.pack('11Q', 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(number), 1, 0)
    orphan = os.getpid()
    while (pid := ctypes.CDLL(None).syscall(435, wanted, len(wanted))) < 0:
        pass
    if pid == 0:
        while os.getppid() == orphan:
            pass
        os.kill(os.getpid(), 9)
"""
"""Ends with 3, and leaves a process that gets the number of the one that has ended, and is killed."""


async def test_a_descendant_with_the_number_of_its_program_does_not_end_for_it(house: House) -> None:
    client = await house.connect()
    process = await client.spawn([sys.executable, "-c", SUCCESSOR], env=FACTS.env, cwd="/")
    keeper = int(await read_until(process, b"\n"))
    assert (await process.wait()).code == 3
    await until(lambda: not Path(f"/proc/{keeper}").exists())
    [known] = await client.known()
    assert (known.code, known.signal) == (3, None)
    async with asyncio.timeout(PATIENCE):
        await process.kill()
    assert house.lost == []


SPY = """if 1:
    import os, sys
    agent, held = sys.argv[1], []

    def children(pid):
        try:
            with open(f'/proc/{pid}/task/{pid}/children') as stream:
                return stream.read().split()
        except OSError:
            return []

    known = set(children(agent))
    print('up', flush=True)
    while True:
        new = [pid for pid in children(agent) if pid not in known]
        starting = [child for pid in new for child in children(pid)]
        if not starting:
            continue
        known.update(new)
        home = f'/proc/{starting[0]}/fd/'
        for name in os.listdir(home):
            try:
                held.append(os.open(home + name, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                pass
        print('looked at', os.readlink(f'/proc/{starting[0]}/exe'), flush=True)
"""
"""Opens all that it can of what new programs of the agent have open before their exec."""


async def test_who_holds_descriptors_of_a_program_that_starts_does_not_hold_up_its_start(house: House) -> None:
    client = await house.connect()
    spy = await client.spawn([sys.executable, "-c", SPY, str(house.agent.pid)], env=FACTS.env, cwd="/")
    await read_until(spy, b"up\n")
    # To find the program takes so long that the spy can look at what will become it.
    slow = {"PATH": "/x:" * 4_000 + FACTS.env["PATH"]}
    seen = b""
    while b"python" not in seen:
        process = await client.spawn(["sleep", "1000"], env=slow, cwd="/")
        seen = await read_until(spy, b"\n")
        await process.kill()
    await spy.kill()


@contextlib.contextmanager
def not_an_administrator() -> Iterator[None]:
    """Take CAP_SYS_ADMIN from this thread, which most servers do not have."""
    libc, version = ctypes.CDLL(None, use_errno=True), struct.pack("Ii", 0x20080522, 0)
    before = ctypes.create_string_buffer(24)
    assert libc.capget(version, before) == 0
    effective, *others = struct.unpack("6I", before)
    assert libc.capset(version, struct.pack("6I", effective & ~(1 << 21), *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(version, before) == 0


async def test_a_terminal_that_a_program_has_made_exclusive_is_refused_and_ends_nothing(house: House) -> None:
    first = await house.connect()
    terminal = first.open_terminal(24, 80)
    program = (
        "import fcntl, termios, time; fcntl.ioctl(0, termios.TIOCEXCL); print('mine', flush=True); time.sleep(999)"
    )
    process = await first.spawn([sys.executable, "-c", program], env=FACTS.env, cwd="/", terminal=terminal)
    async with asyncio.timeout(PATIENCE):
        assert b"mine" in await terminal.read()
    terminal.leave()
    first.leave()
    second = await house.connect(again=True)
    with not_an_administrator(), pytest.raises(SandboxError, match="cannot be opened"):
        await second.take_terminal(terminal.path)
    assert house.lost == []
    [known] = await second.known()
    assert (known.pid, known.running) == (process.pid, True)
    await (await second.attach(known)).kill()


async def test_an_agent_cannot_be_dumped(house: House) -> None:
    client = await house.connect()
    process = await house.start(client, "sleep 999")
    keeper = int(of(process.pid, "PPid"))
    for pid in (keeper, int(of(keeper, "PPid"))):
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "500"


async def test_programs_that_start_others_all_the_time_can_be_paused(house: House) -> None:
    """A shell waits in the kernel until the child of a vfork has called exec, which that cannot while it is stopped."""
    client = await house.connect()
    process = await client.spawn(["/bin/sh", "-c", "echo up; while :; do /bin/true; done"], env=FACTS.env, cwd="/")
    await read_until(process, b"up")
    for _ in range(30):
        await client.pause()
        assert of(process.pid, "State")[0] in "TD"
        await client.resume()
    await process.kill()


async def test_a_program_that_wakes_itself_during_a_pause_is_stopped_again(house: House) -> None:
    client = await house.connect()
    process = await client.spawn(["/bin/sleep", "1000"], env=FACTS.env, cwd="/")
    await client.pause()
    os.kill(process.pid, signal.SIGCONT)
    await until(lambda: of(process.pid, "State")[0] == "T")
    await client.resume()
    await until(lambda: of(process.pid, "State")[0] == "S")
    await process.kill()


async def test_an_earlier_agent_that_accepts_no_connection_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "CONNECT_SECONDS", 0.1)
    (tmp_path / "agent").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf, contextlib.ExitStack() as waiting:
        deaf.bind(str(tmp_path / "agent/socket"))
        deaf.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                client.settimeout(0)
                client.connect(str(tmp_path / "agent/socket"))
        earlier = directory.AgentDirectory(tmp_path)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(SandboxError, match="accepts no connection"):
                await earlier.reopen()
        earlier.close()


@pytest.mark.parametrize("kind", ["zero", "socket", "file"])
def test_what_never_ends_or_blocks_is_no_stream(tmp_path: Path, kind: str) -> None:
    with contextlib.ExitStack() as opened:
        match kind:
            case "zero":
                fd = opened.enter_context(Path("/dev/zero").open("rb")).fileno()
            case "socket":
                fd = opened.enter_context(socket.socket()).fileno()
            case _:
                fd = opened.enter_context((tmp_path / "f").open("wb")).fileno()
        assert not is_pipe_or_terminal(fd)


def test_pipes_and_terminals_are_streams() -> None:
    for ends in (os.pipe(), os.openpty()):
        assert all(map(is_pipe_or_terminal, ends))
        for fd in ends:
            os.close(fd)


# -- another bridge ------------------------------------------------------------------


@pytest.mark.parametrize("tty", [False, True])
async def test_another_bridge_goes_on_with_what_runs(house: House, tty: bool) -> None:  # noqa: FBT001 - a parameter
    first = await house.connect()
    script = "echo one; sleep 0.1; echo two; read x; echo got $x; exit 3" if tty else "echo one; sleep 0.1; echo two"
    process = await house.start(first, script, tty=tty)
    await read_until(process, b"one")
    first.leave()
    assert await process.read() == b""
    second = await house.connect(again=True)
    [known] = await second.known()
    assert (known.name, known.pid, known.tty) == ("sh", process.pid, tty)
    again = await second.attach(known)
    assert await second.attach(known) is again
    assert b"two" in await read_until(again, b"two")
    if tty:
        again.resize(7, 9)
        await again.write(b"hello\n")
        assert b"got hello" in await read_until(again, b"got hello")
    assert (await again.wait()).code == (3 if tty else 0)
    assert await read_all(again) in {b"", b"\r\n", b"\n"}
    await again.aclose()
    assert await second.known() == []


async def test_what_is_written_while_no_bridge_reads_waits(house: House) -> None:
    first = await house.connect()
    process = await house.start(first, "echo up; head -c 300000 /dev/zero | tr '\\0' x; echo; echo last")
    begun = await read_until(process, b"up")
    first.leave()
    second = await house.connect(again=True)
    [known] = await second.known()
    assert known.running, "it waits for a reader"
    again = await second.attach(known)
    assert (begun + await read_all(again)).replace(b"x", b"") == b"up\n\nlast\n"
    assert (await again.wait()).code == 0
    await again.aclose()


async def test_an_end_that_nobody_was_told_of_is_told_later(house: House) -> None:
    first = await house.connect()
    process = await house.start(first, "read x; echo bye; exit 9", tty=True)
    await process.write(b"\n")
    first.leave()
    second = await house.connect(again=True)
    await until(lambda: not Path(f"/proc/{process.pid}").exists())
    async with asyncio.timeout(PATIENCE):
        while (known := (await second.known())[0]).running:
            pass  # the agent has not read yet what the program's keeper reports
    assert (known.name, known.code, known.signal) == ("sh", 9, None)
    again = await second.attach(known)
    assert b"bye" in await read_all(again)
    assert await again.wait() == ExitStatus(code=9)
    await again.aclose()
    assert await second.known() == []


async def test_a_new_bridge_replaces_the_old_one(house: House) -> None:
    first = await house.connect()
    process = await house.start(first, "echo up; sleep 999")
    await read_until(process, b"up")
    second = await house.connect(again=True)
    await until(lambda: first.closed)
    assert house.lost == ["the sandbox's agent is gone"]
    assert [known.pid for known in await second.known()] == [process.pid]
    with pytest.raises(SandboxError, match="gone"):
        await house.start(first, "true")
    fresh = await house.start(second, "echo fresh")
    assert await read_all(fresh) == b"fresh\n"


async def test_what_was_never_said_to_have_started_is_undone(house: House) -> None:
    """A bridge that dies at that moment leaves nothing that nobody knows of."""
    path = house.link("undone")
    first = await house.connect()
    starting = asyncio.create_task(house.start(first, f"exec {path} 999"))
    await asyncio.sleep(0)
    first.leave()
    with pytest.raises(SandboxError):
        await starting
    second = await house.connect(again=True)
    known = await second.known()
    assert len(alive(path)) == len(known)  # it was told, or undone


# -- its end -----------------------------------------------------------------------------


async def test_without_a_bridge_it_ends_everything(house: House) -> None:
    client = await house.connect(outlive=0.3)
    path = house.link("orphan")
    process = await house.start(client, f"env -i setsid -f {path} 999; echo up; sleep 999")
    await read_until(process, b"up")
    await until_alive(path)
    began = time.monotonic()
    client.leave()
    await house.ended()
    assert time.monotonic() - began >= 0.3
    assert alive(path) == []


async def test_a_bridge_that_comes_in_time_stops_that(house: House) -> None:
    client = await house.connect(outlive=1)
    path = house.link("kept")
    await house.start(client, f"exec {path} 999")
    client.leave()
    again = await house.connect(again=True, outlive=1)
    await asyncio.sleep(1.3)  # longer than it would have gone on
    assert len(alive(path)) == 1
    assert len(await again.known()) == 1


async def test_an_agent_that_nobody_comes_to_ends(tmp_path: Path) -> None:
    async with agent_house(tmp_path, start=0.2) as house:
        await house.ended()


async def test_it_ends_when_it_is_told_to(house: House) -> None:
    client = await house.connect()
    path = house.link("told")
    await house.start(client, f"exec {path} 999")
    client.end()
    await house.ended()
    assert alive(path) == []


@pytest.mark.parametrize("packet", [b"{", b"\xff", b"[]", b'{"op":"none"}', b'{"op":"spawn","id":1}', b'{"op":"kill"}'])
async def test_a_malformed_packet_ends_this_sandbox(house: House, packet: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        async with asyncio.timeout(PATIENCE):
            (await house.directory.connect()).close()
        stranger.connect(str(house.sockets / "agent/socket"))
        assert json.loads(stranger.recv(4096)) == {"op": "ready", "relay": False}
        stranger.send(packet)
        await house.ended()


NO_DESCRIPTORS_OUT = b"""
import socket
sent = socket.socket.sendmsg
def sendmsg(self, data, rights=()):
    if rights:
        raise OSError(22, "Invalid argument")
    return sent(self, data)
socket.socket.sendmsg = sendmsg
"""
"""gVisor passes descriptors into a sandbox, and none out of it."""


async def test_programs_run_where_no_descriptors_can_be_sent_to_the_bridge(tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    async with agent_house(tmp_path, fault=NO_DESCRIPTORS_OUT, proxy=port) as house:
        client = await house.connect()
        with pytest.raises(ConnectionRefusedError):  # and not a connection that nobody ever accepts
            await asyncio.open_connection("127.0.0.1", port)
        process = await house.start(client, "echo up; exit 3")
        assert await read_all(process) == b"up\n"
        assert (await process.wait()).code == 3
        with pytest.raises(SandboxError, match="always under gVisor"):
            client.open_terminal(24, 80)
        client.leave()
        again = await house.connect(again=True)
        (known,) = await again.known()
        with pytest.raises(SandboxError, match="cannot be found again"):
            await again.attach(known)
