"""Checks whether `kernelbridge serve` would work here, and what to do if not.

Each check examines one thing, leaves nothing behind, and returns one `Row`; an exception becomes a `Row` too. A row is
`ok`, `warning` (the server would work, but with less than it could) or `problem` (it would not work).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import secrets
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

import msgspec

from kernelbridge.disk.limits import DiskLimits
from kernelbridge.disk.projects import Projects
from kernelbridge.egress.dialling import addresses_of, is_own_address
from kernelbridge.egress.hosts import Address, literal_address, written
from kernelbridge.egress.indexes import server_indexes
from kernelbridge.egress.policy import Denied, Policies, Policy, Rule
from kernelbridge.egress.proxy import CONNECTIONS
from kernelbridge.egress.secret_files import open_secrets
from kernelbridge.errors import ConfigError, KernelBridgeError
from kernelbridge.identity.sources import likely_mistake, open_source
from kernelbridge.identity.tokens import Tokens
from kernelbridge.images import build
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.engine import EngineInfo, probe_engine
from kernelbridge.runtimes.docker.info import check_oci_runtime
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.facts import Facts
from kernelbridge.runtimes.local.bubblewrap import find_bubblewrap
from kernelbridge.runtimes.local.host import check_hidden, read_host
from kernelbridge.settings.quantities import format_size, human_size
from kernelbridge.settings.settings import Settings
from kernelbridge.workspace.files.data_directory import EXHAUSTED

SANDBOX_UID = 1000
"""The user in a container whose image names none."""
SCARCE = 2 << 30
"""A file system with fewer free bytes gets a warning."""
FILES_OF_A_CONNECTION = 6
"""Connections of sandboxes need two files each, and may have a third of what the server may open."""


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
        oci = settings.oci_runtime
        if oci is not None:
            rows.append(row := judge_oci_runtime(oci, engine))
            oci = None if row.status is Status.PROBLEM else oci
        rows.append(await _guarded("image", check_image(settings.image, settings.data_dir, oci, settings.gpus)))
        rows.append(judge_limits(settings.memory, settings.cpus, engine))
    if docker or settings.isolation:
        rows.append(judge_user(os.geteuid(), settings.uid_range))
        rows.append(judge_terminals(settings.ptys, settings.max_sessions))
    if docker:
        rows += [Row(check, Status.OK, "not needed: docker is used") for check in ("bubblewrap", "python")]
    else:
        isolated = settings.isolation
        rows.append(await _guarded("bubblewrap", asyncio.to_thread(check_bubblewrap, isolation=isolated)))
        rows.append(await _guarded("python", asyncio.to_thread(check_python, settings.own_files() if isolated else ())))
    rows.append(await _guarded("data", asyncio.to_thread(check_data_directory, settings.data_dir)))
    rows.append(await _guarded("disk", asyncio.to_thread(check_disk, settings.data_dir)))
    rows.append(await _guarded("quota", asyncio.to_thread(check_quota, settings)))
    if settings.isolation:
        rows.append(await _guarded("egress", check_egress(settings)))
        rows.append(judge_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1], settings.max_sessions))
    if settings.audit_log is not None:
        rows.append(await _guarded("audit", asyncio.to_thread(check_audit, settings.audit_log)))
    rows += await _check_listeners(settings)
    rows.append(await _guarded("login", asyncio.to_thread(check_login, settings)))
    if settings.tls_cert is not None:
        rows.append(await _guarded("tls", asyncio.to_thread(check_tls, settings.tls_cert, settings.tls_key)))
    return rows


async def _check_listeners(settings: Settings) -> list[Row]:
    rows = []
    if settings.listen is None:
        rows.append(await _guarded("port", asyncio.to_thread(check_port, settings.host, settings.port)))
    if isinstance(settings.metrics_listen, tuple):
        host, port = settings.metrics_listen
        check = asyncio.to_thread(check_port, host, port, name="metrics", options="--metrics-listen")
        rows.append(await _guarded("metrics", check))
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


def judge_oci_runtime(name: str, engine: EngineInfo) -> Row:
    """Judge whether the engine has an OCI runtime, and whether everything works in it."""
    try:
        check_oci_runtime(name, engine)
    except ConfigError as exc:
        return Row("oci-runtime", Status.PROBLEM, exc.message, exc.reason)
    if name.startswith("runsc"):
        found = f"{name}: under gVisor, cells work, but no commands, terminals and connections to the network"
        return Row("oci-runtime", Status.WARNING, found, "docs/how-to/gvisor.md says what works; use --egress none")
    return Row("oci-runtime", Status.OK, f"{name}; the engine has {', '.join(engine.oci_runtimes)}")


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


async def check_image(reference: str, data_dir: Path, oci_runtime: str | None = None, gpus: str | None = None) -> Row:
    """Check whether the image is usable, as `serve` does. Raises `KernelBridgeError`."""
    if await asyncio.to_thread(build.image_exists, reference):
        facts = await image_facts(reference, data_dir, oci_runtime, gpus)
        version = ".".join(map(str, facts.python.version))
        return Row("image", Status.OK, f"{reference}: python {version} with a kernel, user {facts.uid}:{facts.gid}")
    known = build.known_image(reference)
    if known is not None:
        found = f"{reference} is absent: it will be built at the first start"
        return Row("image", Status.WARNING, found, f"`kernelbridge images build {known.name}`, to build it now")
    await asyncio.to_thread(build.check_registry, reference)
    found = f"{reference} is absent: it will be pulled at the first start"
    return Row("image", Status.WARNING, found, f"`docker pull {reference}`, to check now whether it is usable")


async def image_facts(reference: str, data_dir: Path, oci_runtime: str | None = None, gpus: str | None = None) -> Facts:
    """Return what an image offers to sandboxes. Raises `ImageError` if it cannot be used."""
    # No server has this name, so no other containers are touched.
    instance = f"doctor-{secrets.token_hex(4)}"
    runtime = await DockerRuntime.open(
        image=reference,
        instance=instance,
        directories=HostDirectories(data_dir),
        oci_runtime=oci_runtime,
        gpus=gpus,
    )
    try:
        return await runtime.prepare()
    finally:
        await runtime.aclose()


def check_bubblewrap(*, isolation: bool) -> Row:
    """Check whether bubblewrap can create a sandbox here."""
    if not isolation:
        found = "not used: workspaces are not isolated from this machine (--no-isolation)"
        return Row("bubblewrap", Status.WARNING, found, "remove --no-isolation unless all code is your own")
    info = find_bubblewrap(root=os.geteuid() == 0)
    if info.problem is not None:
        return Row("bubblewrap", Status.PROBLEM, info.problem, info.remedy or "")
    return Row("bubblewrap", Status.OK, f"bubblewrap {info.version}: {info.path}")


def check_python(hidden: Iterable[Path]) -> Row:
    """Check whether this Python can run a kernel in a sandbox, and shows it none of the `hidden` files.

    Raises `ImageError` if not.
    """
    check_hidden(read_host(), hidden)
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


def check_quota(settings: Settings) -> Row:
    """Check whether sessions can fill the disk, and who keeps them from it."""
    limits = DiskLimits(settings.disk, settings.disk_files)
    if not limits:
        found = "--disk 0 --disk-files 0: one session can fill the disk for all"
        return Row("quota", Status.WARNING, found, "set --disk and --disk-files, unless all code is your own")
    there = _nearest(settings.data_dir)
    try:
        projects = Projects.find(there, instance="doctor")
    except OSError as exc:
        return Row("quota", Status.WARNING, f"{there} cannot be examined: {exc.strerror}")
    size = "no limit" if not limits.size else human_size(limits.size)
    if projects is None:
        found = f"{size} for each session, watched by the server: it may be exceeded for some seconds"
        return Row("quota", Status.OK, f"{found}; docs/how-to/disk-quotas.md makes it a hard limit")
    projects.close()
    return Row("quota", Status.OK, f"{size} for each session, enforced by the file system")


async def check_egress(settings: Settings) -> Row:
    """Check whether the hosts that programs may reach have addresses that they may reach. Asks DNS, and nobody else.

    Raises `ConfigError` for a file of a secret that cannot be used.
    """
    await asyncio.to_thread(open_secrets, settings.egress_secret)
    indexes = await asyncio.to_thread(server_indexes)
    policies = Policies(settings.egress, settings.egress_hosts, indexes.rules, settings.egress_allow_net)
    policy = policies.of_session(None)
    if settings.egress_proxy is not None:
        return Row("egress", Status.OK, f"{policies}, through {written(*settings.egress_proxy)}")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        found = f"{policies}; but sandboxes reach hosts from this machine, not through HTTPS_PROXY"
        fix = "name that proxy with --egress-proxy, let this machine reach them directly, or use --egress none"
        return Row("egress", Status.WARNING, found, fix)
    named = [rule for rule in dict.fromkeys(policy.rules) if not rule.wildcard]
    problems = await asyncio.gather(*(asyncio.to_thread(_unreachable, policy, rule) for rule in named))
    found, fixes = str(policies), []
    for problem in filter(None, problems):
        found += f"; {problem[0]}"
        fixes.append(problem[1])
    return Row("egress", Status.WARNING if fixes else Status.OK, found, "; ".join(dict.fromkeys(fixes)))


def _unreachable(policy: Policy, rule: Rule) -> tuple[str, str] | None:
    """Return why a host cannot be reached, and what to do; None if it can, as far as is known without connecting."""
    literal = literal_address(rule.host)
    try:
        addresses = addresses_of(rule.host) if literal is None else [literal]
    except OSError as exc:
        return f"{rule.host} has no address: {exc.strerror}", "check its name, and the name servers of this machine"
    for address in addresses:
        try:
            policy.check_address(rule.host, rule.port, address, is_own_address, named=True)
        except Denied as exc:
            kind = "is this machine's" if exc.reason == "own_address" else "is not public"
            return f"{rule.host} leads to {address}, which {kind} and is refused", _allow(address)
    return None


def _allow(address: Address) -> str:
    return f"if programs shall reach it, add `--egress-allow-net {address}/{address.max_prefixlen}`"


def judge_files(most: int, sessions: int) -> Row:
    """Compare the files that the server may open (it raises its soft limit) with the connections of all sessions."""
    needed = sessions * CONNECTIONS * FILES_OF_A_CONNECTION
    if most == resource.RLIM_INFINITY or most >= needed:
        return Row("files", Status.OK, "the server may open enough files and sockets")
    found = f"the server may open {most} files: {sessions} sessions share {most // FILES_OF_A_CONNECTION} connections"
    fix = f"`ulimit -Hn {needed}` as root before the start, LimitNOFILE={needed} in systemd, or less --max-sessions"
    return Row("files", Status.WARNING, f"{found} to the network", fix)


def check_audit(path: Path) -> Row:
    """Check whether the audit log can be written, and by whom it can be read."""
    try:
        found = path.stat()
    except FileNotFoundError:
        if os.access(path.parent, os.W_OK | os.X_OK):
            return Row("audit", Status.OK, f"{path} will be created")
        directory = path.parent
        reason = "does not exist" if not directory.exists() else "cannot be written by this user"
        fix = f"`sudo install -d -o {os.geteuid()} -m 700 {directory}`, or name another file with --audit-log"
        return Row("audit", Status.PROBLEM, f"{directory} {reason}", fix)
    if stat.S_ISDIR(found.st_mode) or not os.access(path, os.W_OK):
        reason = "is a directory" if stat.S_ISDIR(found.st_mode) else "cannot be written by this user"
        return Row("audit", Status.PROBLEM, f"{path} {reason}", "name another file with --audit-log")
    if stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IROTH:
        return Row("audit", Status.WARNING, f"every user of this machine may read {path}", f"`chmod o= {path}`")
    return Row("audit", Status.OK, str(path))


def check_port(host: str, port: int, *, name: str = "port", options: str = "--port") -> Row:
    """Check whether the server could listen on its address, or on the one that `options` sets."""
    where = f"{host}:{port}"
    if port == 0:
        return Row(name, Status.OK, f"{host}, any free port")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        return Row(name, Status.PROBLEM, f"{host} has no address: {exc.strerror}", "use 127.0.0.1")
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(address)
                attempt.listen(1)
        except OSError as exc:
            return Row(name, Status.PROBLEM, f"{where}: {exc.strerror}", _port_fix(exc, port, options))
    return Row(name, Status.OK, f"{where} is free")


def check_login(settings: Settings) -> Row:
    """Check the settings and files with which clients are authenticated; raises `ConfigError`."""
    source = open_source(settings)
    if settings.auth == "none":
        return Row("login", Status.OK, "none: every program on this machine may connect, as any user")
    found = f"--auth {settings.auth}"
    if source is not None and isinstance(source.value, Tokens):
        found = f"{found}: {source.value.valid(time.time())} valid tokens in {settings.token_file}"
    if (mistake := likely_mistake(settings, source)) is not None:
        return Row("login", Status.WARNING, f"{found}; {mistake.found}", mistake.fix)
    return Row("login", Status.OK, found)


def check_tls(certificate: Path, key: Path | None) -> Row:
    """Check whether the certificate and its key can be used."""
    try:
        # A password would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or str(exc)
        fix = "expected a certificate in PEM with its chain, and its key without a password, in files of this user"
        return Row("tls", Status.PROBLEM, f"{certificate} cannot be used: {reason}", fix)
    secret = certificate if key is None else key
    if secret.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return Row("tls", Status.WARNING, f"every user of this machine may read {secret}", f"`chmod o= {secret}`")
    return Row("tls", Status.OK, str(certificate))


def _port_fix(exc: OSError, port: int, options: str) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"stop what uses it (`ss -ltnp 'sport = :{port}'` shows it), or choose another with {options}"
    if exc.errno == errno.EACCES:
        return f"ports below 1024 need root: choose another with {options}"
    return f"choose another with {options if options != '--port' else '--host and --port'}"
