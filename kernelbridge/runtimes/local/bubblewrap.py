"""Whether bubblewrap can make sandboxes here, found out by a trial, and what to do if not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.local.host import GROUP_ID, USER_ID
from kernelbridge.runtimes.local.launcher import tools_environment

_MINIMUM = (0, 8, 0)
"""The first version that can limit the size of a tmpfs, and that was tested."""
_TRIAL_SECONDS = 20
_INSTALL = "install it: `apt-get install bubblewrap` (Debian, Ubuntu) or `dnf install bubblewrap` (Fedora)"

_SYSCTLS = (
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or give bwrap an AppArmor profile with `userns,`)",
    ),
)
"""(setting below /proc/sys, value that forbids user namespaces to ordinary users, remedy)."""


@dataclass(frozen=True, slots=True)
class BubblewrapInfo:
    """What was found. It is usable if `problem` is None."""

    path: str | None
    version: str | None
    problem: str | None = None
    """What is wrong."""
    remedy: str | None = None
    """What to do about it."""

    @property
    def usable(self) -> bool:
        """Whether sandboxes can be made."""
        return self.problem is None

    def require(self) -> str:
        """Return the program's path; raises `RuntimeUnavailable` with the problem and the remedy."""
        if self.problem is not None or self.path is None:
            raise RuntimeUnavailable("The local runtime cannot isolate", f"{self.problem}; {self.remedy}")
        return self.path


def find_bubblewrap(*, root: bool | None = None) -> BubblewrapInfo:
    """Find bubblewrap and make one sandbox with it, as an unprivileged user; blocking, about 50 ms.

    `root` says whether the server is root; None to find out.
    """
    root = os.geteuid() == 0 if root is None else root
    path = shutil.which("bwrap")
    if path is None:
        return BubblewrapInfo(None, None, "bubblewrap (`bwrap`) is not installed", _INSTALL)
    missing = [tool for tool in ("setpriv", "unshare", "mount") if root and shutil.which(tool) is None]
    if missing:
        remedy = "install util-linux: `apt-get install util-linux mount`"
        return BubblewrapInfo(path, None, f"{' and '.join(missing)} not found, needed to stop being root", remedy)
    version = re.search(r"\d+(\.\d+)+", _run([path, "--version"])[1])
    if version is None:
        return BubblewrapInfo(path, None, f"{path} does not print its version", _INSTALL)
    text = version.group()
    if tuple(map(int, text.split("."))) < _MINIMUM:
        needed = ".".join(map(str, _MINIMUM))
        return BubblewrapInfo(path, text, f"bubblewrap {text} is too old", f"install {needed} or newer")
    return _try(path, text, root=root)


def _try(path: str, version: str, *, root: bool) -> BubblewrapInfo:
    command = [path, "--unshare-all", "--cap-drop", "ALL", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    if root:
        prefix = ["setpriv", "--reuid", str(USER_ID), "--regid", str(GROUP_ID), "--clear-groups", "--no-new-privs"]
        command = [*prefix, *command]
        # The root of a container cannot make a mount namespace.
        command = ["unshare", "--mount", "--propagation", "private", "--", *command]
    code, output = _run([*command, "--", "true"])
    if code == 0:
        return BubblewrapInfo(path, version)
    return BubblewrapInfo(path, version, f"bubblewrap {version} could not make a sandbox: {output.strip()}", _remedy())


def _remedy() -> str:
    for name, forbidden, remedy in _SYSCTLS:
        setting = Path("/proc/sys", name)
        if setting.exists() and setting.read_text(encoding="ascii").strip() == forbidden:
            return f"as root: {remedy}"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return (
            "this server is in a container, which may not make sandboxes of its own: "
            "mount the Docker socket into it and use --runtime docker"
        )
    return "allow user namespaces for ordinary users on this machine, or use --runtime docker"


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(  # noqa: S603  our own words, no shell
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRIAL_SECONDS,
            env=tools_environment(),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {_TRIAL_SECONDS} seconds"
    except OSError as exc:
        return -1, str(exc)
    return done.returncode, done.stdout + done.stderr
