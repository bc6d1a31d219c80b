"""What a local sandbox sees of this machine: system directories, a little of /etc, the python.

The machine is read once; `mounts` turns the result into arguments.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kernelbridge.errors import ImageError
from kernelbridge.runtimes.contract import HIDDEN_PATHS, READ_ONLY_PATHS, SHARED_PATH, WORKSPACE_PATH

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
_ETC = (
    "alternatives",
    "ca-certificates",
    "fonts",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "matplotlibrc",
    "mime.types",
    "pki/ca-trust",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
)
"""Files in /etc that programs need and that reveal nothing about this machine: no user, no host name, no key."""
_RESERVED = (WORKSPACE_PATH, SHARED_PATH, "/proc", "/dev", "/etc")
_PACKAGES = ("ipykernel", "IPython", "jupyter_client", "traitlets", "tornado", "zmq")
_HOMES = ("/", "/home", "/root", "/tmp", "/var", "/opt", "/srv")  # noqa: S108  compared with, not written to

USER_ID, GROUP_ID = 1000, 100
"""The user of a sandbox where the server is root."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A host directory (or file) that is mounted at `target` in a sandbox."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class ProcFiles:
    """Files of this machine's /proc that a sandbox may not see, or not change."""

    hidden_files: tuple[str, ...] = ()
    hidden_directories: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """This machine, as a sandbox sees it."""

    uid: int
    """The user id of a sandbox, inside and outside."""
    gid: int
    root: bool
    """Whether the server is root: then it has to become another user first."""
    machine: str
    system: tuple[Mount, ...]
    """System directories, which everybody may read."""
    links: tuple[tuple[str, str], ...]
    """(target, path) of symlinks such as /bin."""
    python: tuple[Mount, ...]
    """The prefixes of the python; where the server is root, other users may have no access to their parents.

    What else lies in them is visible to every sandbox: see `check_hidden`.
    """
    python_executable: str
    env: Mapping[str, str]
    """The environment of a sandbox."""
    proc: ProcFiles = ProcFiles()


def read_host() -> Host:
    """Read this machine; raises `ImageError` if the python cannot be mounted into a sandbox."""
    root = os.geteuid() == 0
    system, links = _system()
    covered = [mount.target for mount in system]
    python, extra = _python(covered)
    return Host(
        uid=USER_ID if root else os.geteuid(),
        gid=GROUP_ID if root else os.getegid(),
        root=root,
        machine=platform.machine(),
        system=tuple(system),
        links=(*links, *_link_to_python(sys.executable, [*covered, *python])),
        python=tuple(Mount(os.path.realpath(path), path) for path in python),
        python_executable=sys.executable,
        env=_environment(extra),
        proc=_proc_files(),
    )


def check_hidden(host: Host, paths: Iterable[Path]) -> None:
    """Raise `ImageError` if one of the server's own files or directories lies where every sandbox sees it."""
    for path in paths:
        for mount in (*host.system, *host.python):
            if _inside(os.path.realpath(path), os.path.realpath(mount.source)):
                raise ImageError(
                    f"Every sandbox would see {path}",
                    f"it lies in {mount.source}, which is mounted into sandboxes because the system or the server's "
                    "python is there; keep it elsewhere, or install kernelbridge in a virtual environment of its own",
                )


def private_files(host: Host) -> list[str]:
    """Return the files that a sandbox would see and that shall look empty in it: pip's settings beside the python.

    They may have the password of an index. Look each time: they come and go while the server runs.
    """
    found: list[str] = []
    for real in {os.path.realpath(f"{prefix}/pip.conf") for prefix in _prefixes()}:
        for mount in (*host.system, *host.python):
            source = os.path.realpath(mount.source)
            if _inside(real, source) and Path(real).is_file():
                found.append(mount.target + real[len(source) :])
    return sorted(found)


def _proc_files() -> ProcFiles:
    # A sandbox has a /proc of its own, and no /sys.
    hidden = [Path(path) for path in HIDDEN_PATHS if path.startswith("/proc/")]
    return ProcFiles(
        hidden_files=tuple(str(path) for path in hidden if path.is_file()),
        hidden_directories=tuple(str(path) for path in hidden if path.is_dir()),
        read_only=tuple(path for path in READ_ONLY_PATHS if Path(path).exists()),
    )


def _environment(python_path: Iterable[str]) -> dict[str, str]:
    directories = dict.fromkeys(
        [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    )
    env = {
        "PATH": os.pathsep.join(directories),
        "HOME": WORKSPACE_PATH,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        "SHELL": "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh",
    }
    if extra := os.pathsep.join(python_path):
        env["PYTHONPATH"] = extra
    return env


def _system() -> tuple[list[Mount], list[tuple[str, str]]]:
    mounts: list[Mount] = []
    links: list[tuple[str, str]] = []
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            links.append((str(path.readlink()), str(path)))
        elif path.is_dir():
            mounts.append(Mount(str(path), str(path)))
    for name in _ETC:
        path = Path("/etc", name)
        if path.exists():
            mounts.append(Mount(os.path.realpath(path), str(path)))
    return mounts, links


def _python(covered: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the directories to mount, outermost only, and those that python does not find by itself."""
    prefixes = _prefixes()
    packages = _package_directories()
    outermost: list[str] = []
    for path in sorted(prefixes | packages):
        if not any(_inside(path, known) for known in [*covered, *outermost]):
            _check(path)
            outermost.append(path)
    found = {os.path.realpath(prefix) for prefix in prefixes}
    extra = [path for path in sorted(packages) if not any(_inside(os.path.realpath(path), known) for known in found)]
    return outermost, extra


def _prefixes() -> set[str]:
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    return prefixes | {os.path.realpath(prefix) for prefix in prefixes}


def _link_to_python(executable: str, covered: Iterable[str]) -> list[tuple[str, str]]:
    """Return (target, path) of the link that an executable leads to, if that lies in no directory that is mounted.

    The link has to exist in the sandbox, but not what lies beside it: `~/.local/bin` has a link to python, and
    `~/.local` has keys and other programs' data. Raises `ImageError` if python itself is in no such directory.
    """
    known = list(covered)
    real, path = os.path.realpath(executable), Path(executable)
    if not any(_inside(real, directory) for directory in known):
        raise ImageError(
            f"The python {real} cannot be mounted into a sandbox",
            f"{executable} leads to it, and it is not in its own prefix {sys.base_prefix}; install kernelbridge in a "
            "virtual environment of another python",
        )
    while any(_inside(str(path), directory) for directory in known):
        if not path.is_symlink():
            return []
        path = Path(os.path.normpath(path.parent / path.readlink()))
    # Straight to the file: directories on the way may be links, too.
    return [(real, str(path))]


def _package_directories() -> set[str]:
    """Return the entries of `sys.path` that the kernel's own packages come from."""
    directories: set[str] = set()
    for name in _PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            directories.add(str(Path(spec.origin).parent.parent))
    return directories


def _check(path: str) -> None:
    homes = {*_HOMES, str(Path.home())}
    if path in homes or any(_inside(path, reserved) or _inside(reserved, path) for reserved in _RESERVED):
        raise ImageError(
            f"The python in {path} cannot be mounted into a sandbox",
            f"{path} contains more than python, or is a path that sandboxes use themselves; "
            "install kernelbridge in a virtual environment of its own, for example `python3 -m venv ~/kernelbridge`",
        )


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
