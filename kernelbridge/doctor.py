"""Checks whether `kernelbridge serve` would work here, and what to do if not.

Each check examines one thing, leaves nothing behind, and returns one `Row`; an exception becomes a `Row` too. A row is
`ok`, `warning` (the server would work, but with less than it could) or `problem` (it would not work).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

import msgspec

from kernelbridge.errors import KernelBridgeError
from kernelbridge.identity.sources import open_source
from kernelbridge.images import build
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.engine import EngineInfo, probe_engine
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.local.bubblewrap import find_bubblewrap
from kernelbridge.runtimes.local.host import read_host
from kernelbridge.settings.quantities import format_size, human_size
from kernelbridge.settings.settings import Settings
from kernelbridge.workspace.files.data_directory import EXHAUSTED

SANDBOX_UID = 1000
"""The user in a container whose image names none."""
SCARCE = 2 << 30
"""A file system with fewer free bytes gets a warning."""


class Status(StrEnum):
    """The result of a check, in one word."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Row(msgspec.Struct, frozen=True):
    """The result of one check."""

    check: str
    status: Status
    found: str
    fix: str = ""
    """What to do, with a command if there is one; empty if the check found nothing wrong."""


async def examine(settings: Settings) -> list[Row]:
    """Make all checks that matter for a server with these settings.

    Takes some seconds, or half a minute if an engine, a registry or an image does not answer.
    """
    rows: list[Row] = []
    engine = None
    if settings.runtime != "local":
        engine = await _ask_engine()
        rows.append(judge_engine(engine, needed=settings.runtime == "docker", host=os.environ.get("DOCKER_HOST")))
    docker = engine is not None and (engine.available or settings.runtime == "docker")
    if engine is not None and engine.available:
        rows.append(await _guarded("image", check_image(settings.image, settings.data_dir)))
        rows.append(judge_limits(settings.memory, settings.cpus, engine))
    if docker or settings.isolation:
        rows.append(judge_user(os.geteuid(), settings.uid_range))
        rows.append(judge_terminals(settings.ptys, settings.max_sessions))
    if docker:
        rows += [Row(check, Status.OK, "not needed: docker is used") for check in ("bubblewrap", "python")]
    else:
        isolated = settings.isolation
        rows.append(await _guarded("bubblewrap", asyncio.to_thread(check_bubblewrap, isolation=isolated)))
        rows.append(await _guarded("python", asyncio.to_thread(check_python)))
    rows.append(await _guarded("data", asyncio.to_thread(check_data_directory, settings.data_dir)))
    rows.append(await _guarded("disk", asyncio.to_thread(check_disk, settings.data_dir)))
    if settings.listen is None:
        rows.append(await _guarded("port", asyncio.to_thread(check_port, settings.host, settings.port)))
    rows.append(await _guarded("login", asyncio.to_thread(check_login, settings)))
    return rows


def serves(rows: Iterable[Row]) -> bool:
    """Return whether `kernelbridge serve` would work: no row is a problem."""
    return all(row.status is not Status.PROBLEM for row in rows)


async def _guarded(name: str, check: Awaitable[Row]) -> Row:
    """Make a check. If the check itself fails, that is a problem too, and the other checks go on."""
    try:
        return await check
    except KernelBridgeError as exc:
        return Row(name, Status.PROBLEM, exc.message, exc.reason)
    except Exception as exc:  # noqa: BLE001 - the doctor reports everything that is wrong
        return Row(name, Status.PROBLEM, f"the check failed: {type(exc).__name__}: {exc}", "report this as a bug")


async def _ask_engine() -> EngineInfo:
    try:
        return await probe_engine()
    except Exception as exc:  # noqa: BLE001 - as above
        return EngineInfo(available=False, reason=f"asking it failed: {type(exc).__name__}: {exc}")


def judge_engine(engine: EngineInfo, *, needed: bool, host: str | None = None) -> Row:
    """Judge what the probe found. `needed`: the local runtime cannot be used instead. `host`: DOCKER_HOST."""
    where = f" at {host} (from DOCKER_HOST)" if host else ""
    if not engine.available and needed:
        return Row("engine", Status.PROBLEM, f"the Docker engine{where} does not answer", engine.reason)
    if not engine.available:
        found = f"no Docker engine answers{where}: the local runtime is used"
        return Row("engine", Status.WARNING, found, f"for docker: {engine.reason}")
    if "seccomp" not in engine.security:
        found = f"{engine} runs without seccomp: sandboxes can use all system calls of the kernel"
        return Row("engine", Status.WARNING, found, "enable seccomp in the engine and the kernel")
    return Row("engine", Status.OK, str(engine))


def judge_limits(memory: int, cpus: float, engine: EngineInfo) -> Row:
    """Compare the limits of one workspace with the engine's machine."""
    asked = f"--cpus {cpus:g} --memory {format_size(memory)} for each workspace"
    found = f"{asked}; the engine's machine has {engine.cpus} processors and {human_size(engine.memory)}"
    if cpus > engine.cpus:
        return Row("limits", Status.WARNING, found, f"use --cpus {engine.cpus} or less: this limit has no effect")
    if memory > engine.memory:
        return Row("limits", Status.WARNING, found, "use less --memory: this limit does not protect the machine")
    return Row("limits", Status.OK, found)


def judge_user(uid: int, uid_range: tuple[int, int] | None) -> Row:
    """Report the user of the sandboxes, and what sessions share if they have the same one."""
    shared = "sessions share the kernel's limits for one user (inotify instances, queued signals, pipe buffers)"
    if uid:
        return Row("user", Status.OK, f"sandboxes run as uid {uid}, as this server does: {shared}")
    if uid_range is None:
        return Row(
            "user",
            Status.WARNING,
            f"root: sandboxes run as their image's user, uid {SANDBOX_UID} if it names none: {shared}",
            "remove --uid-range off, unless an image needs its own user",
        )
    first, last = uid_range
    return Row("user", Status.OK, f"root: each session has its own user id, from {first} to {last}")


def judge_terminals(ptys: int, sessions: int, settings: Path = Path("/proc/sys/kernel/pty")) -> Row:
    """Compare the terminals of all sessions with those of the machine; `settings` has the machine's numbers."""
    try:
        most, kept = (int((settings / name).read_text(encoding="ascii")) for name in ("max", "reserve"))
    except (OSError, ValueError) as exc:
        return Row("terminals", Status.WARNING, f"it is unknown how many the machine has: {exc}")
    found = f"--ptys {ptys}, at most {sessions} sessions; the machine has {most}, {kept} of them in reserve"
    if ptys * sessions > most - kept:
        remedy = f"`sysctl -w kernel.pty.max={ptys * sessions + kept}`, or use less --ptys or --max-sessions"
        return Row("terminals", Status.WARNING, found, remedy)
    return Row("terminals", Status.OK, found)


async def check_image(reference: str, data_dir: Path) -> Row:
    """Check whether the image is usable, as `serve` does. Raises `KernelBridgeError`."""
    if await asyncio.to_thread(build.image_exists, reference):
        # No server has this name, so no other containers are touched.
        instance = f"doctor-{secrets.token_hex(4)}"
        runtime = await DockerRuntime.open(image=reference, instance=instance, directories=HostDirectories(data_dir))
        try:
            facts = await runtime.prepare()
        finally:
            await runtime.aclose()
        version = ".".join(map(str, facts.python.version))
        return Row("image", Status.OK, f"{reference}: python {version} with a kernel, user {facts.uid}:{facts.gid}")
    known = build.known_image(reference)
    if known is not None:
        found = f"{reference} is absent: it will be built at the first start"
        return Row("image", Status.WARNING, found, f"`kernelbridge images build {known.name}`, to build it now")
    await asyncio.to_thread(build.check_registry, reference)
    found = f"{reference} is absent: it will be pulled at the first start"
    return Row("image", Status.WARNING, found, f"`docker pull {reference}`, to check now whether it is usable")


def check_bubblewrap(*, isolation: bool) -> Row:
    """Check whether bubblewrap can create a sandbox here."""
    if not isolation:
        found = "not used: workspaces are not isolated from this machine (--no-isolation)"
        return Row("bubblewrap", Status.WARNING, found, "remove --no-isolation unless all code is your own")
    info = find_bubblewrap(root=os.geteuid() == 0)
    if info.problem is not None:
        return Row("bubblewrap", Status.PROBLEM, info.problem, info.remedy or "")
    return Row("bubblewrap", Status.OK, f"bubblewrap {info.version}: {info.path}")


def check_python() -> Row:
    """Check whether this Python can run a kernel in a sandbox. Raises `ImageError` if it cannot be mounted there."""
    read_host()
    command = [sys.executable, "-c", "import ipykernel.kernelapp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - our own
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        found = f"ipykernel cannot be imported: {reason}"
        return Row("python", Status.PROBLEM, found, f"`{sys.executable} -m pip install --force-reinstall ipykernel`")
    return Row("python", Status.OK, f"{sys.version.split()[0]} with ipykernel {version('ipykernel')}: {sys.executable}")


def check_data_directory(path: Path) -> Row:
    """Check whether a server could create, lock and fill its data directory."""
    elsewhere = "choose another directory with --data-dir"
    there = _nearest(path)
    wrong = fix = ""
    if not str(path).isprintable():
        wrong = f"{str(path)!r} has characters that cannot be mounted"
    elif not there.is_dir():
        wrong = f"{there} is not a directory"
    elif not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        wrong = f"this user cannot write to {there}"
        fix = f"`sudo install -d -o {os.geteuid()} -m 700 {path}`, or {elsewhere}"
    elif there == path and _locked(path / "lock"):
        wrong = f"{path} is in use by a running kernelbridge server"
        fix = f"stop that server, or {elsewhere}"
    if wrong:
        return Row("data", Status.PROBLEM, wrong, fix or elsewhere)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
    except OSError as exc:
        return Row("data", Status.PROBLEM, f"writing to {there} fails: {exc.strerror}", elsewhere)
    if os.statvfs(there).f_flag & os.ST_NOEXEC:
        found = f"{there} is on a file system mounted noexec: compiled packages that users install will not load"
        return Row("data", Status.WARNING, found, elsewhere)
    return Row("data", Status.OK, str(path) if there == path else f"{path} will be created in {there}")


def _nearest(path: Path) -> Path:
    """Return `path`, or the nearest directory above it that exists."""
    while not os.path.lexists(path):
        path = path.parent
    return path


def _locked(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # A shared lock, so that two doctors do not mistake each other for a server. Closing releases it.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def check_disk(path: Path) -> Row:
    """Check whether there is room for the files of workspaces."""
    there = _nearest(path)
    free = shutil.disk_usage(there).free
    found = f"{human_size(free)} free at {there}"
    if free < EXHAUSTED:
        return Row("disk", Status.PROBLEM, found, "free some space, or choose another directory with --data-dir")
    if free < SCARCE:
        return Row("disk", Status.WARNING, found, "free some space: images, packages and files need gigabytes")
    return Row("disk", Status.OK, found)


def check_port(host: str, port: int) -> Row:
    """Check whether the server could listen on its address."""
    where = f"{host}:{port}"
    if port == 0:
        return Row("port", Status.OK, f"{host}, any free port")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        return Row("port", Status.PROBLEM, f"{host} has no address: {exc.strerror}", "use --host 127.0.0.1")
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(address)
                attempt.listen(1)
        except OSError as exc:
            return Row("port", Status.PROBLEM, f"{where}: {exc.strerror}", _port_fix(exc, port))
    return Row("port", Status.OK, f"{where} is free")


def check_login(settings: Settings) -> Row:
    """Check the settings and files with which clients are authenticated; raises `ConfigError`."""
    open_source(settings)
    if settings.auth == "none":
        return Row("login", Status.OK, "none: every program on this machine may connect, as any user")
    return Row("login", Status.OK, f"--auth {settings.auth}")


def _port_fix(exc: OSError, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"stop what uses it (`ss -ltnp 'sport = :{port}'` shows it), or choose another with --port"
    if exc.errno == errno.EACCES:
        return "ports below 1024 need root: choose another with --port"
    return "choose another with --host and --port"
