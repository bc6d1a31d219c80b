"""The idle process of a container, which sends signals for the bridge.

The engine has no way to signal what `docker exec` started, and a second exec cannot start where a fork bomb has used
up the processes. So the process that keeps the container alive is a shell that carries out what comes on its stdin, and
built-ins are all that it needs. The bridge attaches to it when there is something to send.

It runs as the workspace's user, whose programs may lie in its name or stop it: that concerns nobody but themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from docker.errors import APIError

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.base import SLEEPS_BETWEEN_FORKS
from kernelbridge.runtimes.docker_attach import Attached, AttachStream, take_over
from kernelbridge.runtimes.docker_engine import GONE, Engine, explain, no_answer

OUTLIVED, LEADER_KILLED = 1, 3
"""Answers of the sweeps: some processes outlive it; all are gone, and it was what ended the leader. 0: all are gone."""

_MARK = b"kernelbridge-control "
_DOING = "signalling processes"
_NOISE = 1 << 20
"""Bytes that may come before an answer: anyone in the sandbox can write to the shell's stdout."""

_LOOP = r"""text=
while IFS= read -r line; do
    if [ "$line" = . ]; then eval "$text"; text=; else text="$text
$line"; fi
done
exec sleep 2147483647
"""
# What it can do is sent to it, so that a newer server gets on with older containers.
# The last line: a number, not `infinity`, because every sleep takes a number. 68 years.

IDLE = ("/bin/sh", "-c", _LOOP, "kernelbridge-idle")
"""The command of every container."""

_SWEEP = r"""
stopped=
stop_all() {
    if [ -z "$stopped" ]; then stopped=1; kill -STOP -1 2>/dev/null; fi
}
go_on() {
    status=$?
    if [ -n "$stopped" ]; then stopped=; kill -CONT -1 2>/dev/null; fi
    return "$status"
}
crowded() {
    for home in /sys/fs/cgroup /sys/fs/cgroup/pids; do
        { IFS= read -r most <"$home/pids.max" && IFS= read -r now <"$home/pids.current"; } 2>/dev/null || continue
        [ "$most" != max ] && [ "$((now * 10))" -ge "$((most * 9))" ]
        return
    done
    return 2
}
starves() {
    crowded || return 1
    while read -r name value; do
        if [ "$name" = SigBlk: ]; then
            case $value in *@SLEEPS@) return 0 ;; esac
        fi
    done 2>/dev/null <"/proc/$1/status"
    return 1
}
sweep() {
    sweep_session "$1"
    go_on
}
sweep_marked() {
    sweep_mark "$1" "$2"
    go_on
}
sweep_session() {
    if crowded; then stop_all; fi
    killed=0
    rounds=0
    while [ "$rounds" -lt 200 ]; do
        left=
        for file in "/proc/$1/stat" /proc/[0-9]*/stat; do
            { IFS= read -r stat <"$file"; } 2>/dev/null || continue
            pid=${stat%% *}
            set -f; set -- "$1" ${stat##*) }; set +f
            if [ "$5" = "$1" ] && [ "$2" != Z ] && [ "$2" != X ]; then
                left=1
                if kill -9 "$pid" 2>/dev/null && [ "$pid" = "$1" ]; then killed=3; fi
            fi
        done
        if [ -z "$left" ]; then return "$killed"; fi
        rounds=$((rounds + 1))
        if [ "$rounds" = 20 ]; then stop_all; fi
    done
    return 1
}
sweep_others() {
    result=0
    for origin in /proc/[0-9]*/stat; do
        { IFS= read -r stat <"$origin"; } 2>/dev/null || continue
        pid=${stat%% *}
        set -f; set -- "$1" ${stat##*) }; set +f
        if [ "$3" = 0 ] && [ "$pid" != 1 ] && [ "$pid" != "$1" ]; then
            sweep "$pid"
            if [ "$?" = 1 ]; then result=1; fi
        fi
    done
    return "$result"
}
sweep_mark() {
    if crowded; then stop_all; fi
    once=' '
    others=' '
    rounds=0
    blanks=0
    while [ "$rounds" -lt 200 ]; do
        left=
        blank=
        again=
        for file in /proc/[0-9]*/environ; do
            case $others in *" $file "*) continue ;; esac
            if [ "$file" = "/proc/$2/environ" ]; then continue; fi
            found=
            some=
            {
                while IFS= read -r part || [ -n "$part" ]; do
                    some=1
                    case $part in *"$1"*) found=1; break ;; esac
                done <"$file"
                part=
                if [ -z "$some" ]; then IFS= read -r part <"${file%environ}cmdline"; fi
                if [ -z "$found" ] && [ -n "$some$part" ]; then
                    while read -r part; do
                        case $part in *" $1 "*) found=1; break ;; esac
                    done <"${file%environ}limits"
                fi
            } 2>/dev/null
            if [ -n "$found" ]; then
                pid=${file#/proc/}
                left=1
                kill -9 "${pid%/environ}" 2>/dev/null
            elif [ -z "$some" ]; then blank=1
            else
                case $once in *" $file "*) others="$others$file " ;; *) once="$once$file "; again=1 ;; esac
            fi
        done
        if [ -z "$left$again" ]; then
            if [ -z "$blank" ] || [ "$blanks" -ge 10 ]; then return 0; fi
            blanks=$((blanks + 1))
        fi
        rounds=$((rounds + 1))
        if [ "$rounds" = 20 ] && [ -n "$left" ]; then stop_all; fi
    done
    return 1
}
.
""".replace("@SLEEPS@", SLEEPS_BETWEEN_FORKS)
# `stop_all`: what forks without end is faster than any list of it, and where hundreds want to run this shell hardly
# gets a turn. One signal to all leaves nothing out, a process that is forking included, and what stands still keeps
# the room that another could take. What a user had stopped goes on with the rest afterwards, and a shell in a terminal
# takes its program for stopped: so it is done only where it has to be, in a full sandbox or after many rounds.
# `crowded`: 0 for yes, 1 for no, 2 where there are no numbers to be had.
# `sweep`: the leader first, or it would see its children die and end in its own way. Again until nothing of the session
# is left, for a process may be forking while it is killed.
# `sweep_others`: what an exec has started has its parent outside, and so none here.
# `sweep_marked`: what has no mark cannot have children with one, so it is not read in every round; but twice, for an
# environment ends early where its process becomes another program meanwhile. Where there was nothing to read, a process
# did just that, or ended, perhaps after a fork: then it looks some times more. `read` leaves the zero bytes out. What
# has ended still has its limits, so they count only where there is an environment or a command line.


def outlived() -> SandboxError:
    """Give the error for `OUTLIVED`."""
    return SandboxError("Processes in the sandbox cannot be ended", "they start others faster; destroy the sandbox")


class ControlChannel:
    """Commands to the idle process of one container, one at a time."""

    def __init__(self, container_id: str, *, engine: Engine, until_running: Callable[[], Awaitable[None]]) -> None:
        """`until_running` waits while the container is paused: nothing in it answers then."""
        self._container_id = container_id
        self._until_running = until_running
        self._engine = engine
        self._stream: AttachStream | None = None
        self._seen = b""
        self._number = 0
        self._turn = asyncio.Lock()
        self._closed = False

    async def signal_group(self, signum: int, pgid: int) -> None:
        """Send a signal to a process group; one that is not there is no error."""
        await self._ask(f"kill -{int(signum)} -{pgid} 2>/dev/null")

    async def is_alive(self, pid: int) -> bool | None:
        """Say whether a process is there; None if the container is gone."""
        answer = await self._ask(f"kill -0 {pid} 2>/dev/null")
        return None if answer is None else answer == 0

    async def sweep(self, session: int) -> int | None:
        """SIGKILL a whole session; 0, `LEADER_KILLED` or `OUTLIVED`, None if the container is gone."""
        return await self._ask(f"sweep {session}")

    async def sweep_others(self, spare: int) -> int | None:
        """SIGKILL the sessions of all execs but that of `spare`; 0 or `OUTLIVED`, None if the container is gone."""
        return await self._ask(f"sweep_others {spare}")

    async def sweep_marked(self, mark: str, spare: int) -> int | None:
        """SIGKILL whatever but `spare` has `mark`; 0 or `OUTLIVED`, None if the container is gone."""
        return await self._ask(f"sweep_marked {mark} {spare}")

    async def is_crowded(self) -> bool | None:
        """Say whether no, or hardly any, processes can be started; None if nobody knows."""
        answer = await self._ask("crowded")
        return answer == 0 if answer in {0, 1} else None

    async def starves(self, pid: int) -> bool:
        """Say whether that is so, and a bash sleeps until it tries again to start a process."""
        return await self._ask(f"starves {pid}") == 0

    async def aclose(self) -> None:
        """Release the connection, one that is being made included. Idempotent."""
        self._closed = True
        if self._stream is not None:
            await self._stream.aclose()

    async def _ask(self, command: str) -> int | None:
        await self._until_running()
        async with self._turn:
            try:
                stream = await self._attached()
                self._number += 1
                return await self._in_time(self._told(stream, command, self._number))
            except BrokenPipeError:
                return None
            except APIError as exc:
                if exc.status_code in GONE and "paused" not in explain(exc):
                    return None
                raise SandboxError("Processes in the sandbox cannot be signalled", explain(exc)) from exc

    async def _in_time(self, told: Coroutine[Any, Any, int | None]) -> int | None:
        """Wait for an answer. Raises `RuntimeUnavailable` if the engine gives none either, else `SandboxError`."""
        doing, half = _DOING, self._engine.timeout / 2
        began = time.monotonic()
        answer = asyncio.ensure_future(told)
        waiting: set[asyncio.Future[Any]] = {answer}
        try:
            await asyncio.wait({answer}, timeout=half)
            if not answer.done():
                # The stream leads through the engine: that may be frozen, which is no reason to give the sandbox up.
                pong = asyncio.ensure_future(self._engine.call(lambda api: api.ping(), doing=doing))
                waiting.add(pong)
                await asyncio.wait({answer}, timeout=half)
                if not answer.done():
                    if not pong.done():
                        self._engine.missed(began)
                        raise no_answer(doing, self._engine.timeout)
                    pong.result()
                    raise SandboxError(
                        "Processes in the sandbox cannot be signalled",
                        f"its idle process gave no answer within {self._engine.timeout:g} s; destroy the sandbox",
                    )
            return answer.result()
        finally:
            for future in waiting:
                future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _told(self, stream: AttachStream, command: str, number: int) -> int | None:
        await stream.write(f'{command}\necho "kernelbridge-control {number} $?"\n.\n'.encode())
        return await self._answer(stream, b"%d " % number)

    async def _attached(self) -> AttachStream:
        if self._stream is None or self._stream.ended:

            def attach(api: Any) -> Attached:  # untyped: the stubs leave the parameters open
                wanted = {"stdin": 1, "stdout": 1, "stderr": 0, "stream": 1}
                return take_over(api.attach_socket(self._container_id, params=wanted))

            attached = await self._engine.call(
                attach, doing="attaching to a container", discard=lambda made: made.close()
            )
            self._seen = b""
            stream = AttachStream(framed=True)
            await stream.connect(attached)
            if self._closed:  # meanwhile; nobody else would hang up
                await stream.aclose()
            await stream.write(_SWEEP.encode())
            self._stream = stream
        else:
            # Else what is said on it costs another time-out, and is done when nobody wants it any more.
            await self._engine.awake(_DOING)
        return self._stream

    async def _answer(self, stream: AttachStream, number: bytes) -> int | None:
        while True:
            line, newline, rest = self._seen.partition(b"\n")
            if newline:
                self._seen = rest
                said = line.rpartition(_MARK)[2]
                if line.startswith(_MARK) and said.startswith(number) and said[len(number) :].isdigit():
                    return int(said[len(number) :])
                continue
            data = await stream.read()
            if not data:
                return None
            self._seen = (self._seen + data)[-_NOISE:]
