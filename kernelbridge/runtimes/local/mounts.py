"""The arguments with which bubblewrap makes a sandbox; pure.

`bwrap_arguments` returns them in the order in which bubblewrap carries them out: a mount over another one's directory
comes after it. `launch_script` is the shell program around it. Most of that is for a server that is root: the
directories to mount may be where the sandbox's user has no access (a python below /root, say), and bubblewrap runs as
that user. So, in a mount namespace of its own, they are first bound below a neutral directory; then root is given up,
and bubblewrap runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kernelbridge.runtimes.contract import SHARED_PATH, WORKSPACE_PATH, Limits
from kernelbridge.runtimes.local.host import Host, Mount, ProcFiles

AGENT_PATH = "/run/kernelbridge-agent.py"
STAGES = ("/mnt", "/media", "/srv", "/opt", "/run", "/home")
"""Directories that every Linux has; one becomes the staging directory, in a private mount namespace."""

_HOST_NAME = "workspace"


@dataclass(frozen=True, slots=True)
class InheritedFiles:
    """Descriptors that bubblewrap reads and closes, by number."""

    agent: int
    passwd: int
    group: int
    hosts: int
    nsswitch: int
    status: int
    """Written to, not read, for `--json-status-fd`."""
    seccomp: int | None


def etc_files(uid: int, gid: int, home: str = WORKSPACE_PATH, shell: str = "/bin/sh") -> Mapping[str, str]:
    """Return the contents of /etc/passwd, group, hosts and nsswitch.conf, by these names."""
    return {
        "passwd": f"root:x:0:0:root:/:/usr/sbin/nologin\nsandbox:x:{uid}:{gid}:sandbox:{home}:{shell}\n"
        "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        "group": f"root:x:0:\nsandbox:x:{gid}:\nnogroup:x:65534:\n",
        "hosts": f"127.0.0.1 localhost {_HOST_NAME}\n::1 localhost\n",
        "nsswitch": "passwd: files\ngroup: files\nhosts: files dns\n",
    }


def bwrap_arguments(
    host: Host,
    mounts: Sequence[Mount],
    files: InheritedFiles,
    limits: Limits,
    *,
    terminals: str | None = None,
    disable_userns: bool = False,
    private: Sequence[str] = (),
) -> list[str]:
    """Return bubblewrap's arguments for one sandbox, in which the files in `private` look empty.

    `mounts` are the python's prefixes and the workspace's two directories. `terminals` is where a devpts with a limit
    is mounted for it; if None, bubblewrap mounts one without. `disable_userns` forbids user namespaces in it.
    """
    arguments = [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        "--unshare-cgroup-try",
        *("--uid", str(host.uid), "--gid", str(host.gid), "--hostname", _HOST_NAME),
        *("--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"),
        *("--json-status-fd", str(files.status)),
    ]
    if disable_userns:
        arguments.append("--disable-userns")
    if files.seccomp is not None:
        arguments += ["--seccomp", str(files.seccomp)]
    for name, value in host.env.items():
        arguments += ["--setenv", name, value]
    for mount in host.system:
        arguments += ["--ro-bind", mount.source, mount.target]
    arguments += [*_proc(host.proc), "--dev", "/dev"]
    if terminals is not None:
        arguments += ["--dev-bind", terminals, "/dev/pts"]
    arguments += ["--perms", "1777", "--size", str(limits.shm), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108  the sandbox's own
    arguments += ["--perms", "1777", "--size", str(limits.tmp), "--tmpfs", "/tmp"]  # noqa: S108  the sandbox's own
    arguments += ["--dir", "/var", "--symlink", "../tmp", "/var/tmp"]  # noqa: S108  the sandbox's own
    for fd, path in (
        (files.passwd, "/etc/passwd"),
        (files.group, "/etc/group"),
        (files.hosts, "/etc/hosts"),
        (files.nsswitch, "/etc/nsswitch.conf"),
        (files.agent, AGENT_PATH),
    ):
        arguments += ["--perms", "0444", "--file", str(fd), path]
    for target, path in host.links:
        arguments += ["--symlink", target, path]
    for mount in mounts:
        arguments += ["--bind" if mount.writable else "--ro-bind", mount.source, mount.target]
    for path in private:
        arguments += ["--ro-bind", "/dev/null", path]
    arguments += ["--remount-ro", "/", "--chdir", WORKSPACE_PATH]
    return arguments


def _proc(files: ProcFiles) -> list[str]:
    arguments = ["--proc", "/proc"]
    for path in files.read_only:
        arguments += ["--ro-bind", path, path]
    for path in files.hidden_files:
        arguments += ["--ro-bind", "/dev/null", path]
    for path in files.hidden_directories:
        arguments += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
    return arguments


def sandbox_mounts(host: Host, files: str, shared: str) -> list[Mount]:
    """Return the mounts of a sandbox besides the system; `files` and `shared` are host directories."""
    return [
        *host.python,
        Mount(files, WORKSPACE_PATH, writable=True),
        Mount(shared, SHARED_PATH, writable=True),
    ]


def stage_terminals(stage: str, ptys: int) -> tuple[list[str], str]:
    """Return the shell commands that mount a devpts for `ptys` terminals below `stage`, and its path."""
    path = f"{stage}/terminals"
    options = f"newinstance,{terminal_options(ptys)}"
    return [f"mkdir {shlex.quote(path)}", f"mount -t devpts -o {options} devpts {shlex.quote(path)}"], path


def terminal_options(ptys: int) -> str:
    """Return the mount options of a devpts for `ptys` terminals."""
    return f"max={ptys},ptmxmode=0666,mode=0620"


def stage_mounts(mounts: Sequence[Mount], stage: str) -> tuple[list[str], list[Mount]]:
    """Return the shell commands that bind every source below `stage`, and the mounts from there."""
    staged = [replace(mount, source=f"{stage}/{index}") for index, mount in enumerate(mounts)]
    quote = shlex.quote
    commands = [
        f"mount -t tmpfs -o mode=0755,size=64k,nosuid,nodev kernelbridge {quote(stage)}",
        "mkdir " + " ".join(quote(mount.source) for mount in staged),
    ]
    commands += [
        f"mount --rbind {quote(mount.source)} {quote(there.source)}"
        for mount, there in zip(mounts, staged, strict=True)
    ]
    return commands, staged


def choose_stage(mounts: Sequence[Mount], existing: Sequence[str]) -> str | None:
    """Return a directory that can be mounted over without hiding a source; None if there is none."""
    for stage in existing:
        if not any(mount.source == stage or mount.source.startswith(stage + "/") for mount in mounts):
            return stage
    return None


def launch_script(command: Sequence[str], *, cgroups: Sequence[str] = (), staging: Sequence[str] = ()) -> str:
    """Return the shell program that enters the cgroups, stages the mounts and becomes `command`."""
    lines = ["set -eu", *(f"echo $$ >{shlex.quote(path)}" for path in cgroups), *staging]
    return "\n".join([*lines, f"exec {shlex.join(command)}"])


def drop_root(host: Host) -> list[str]:
    """Return the command prefix that gives up root for good; empty if the server is not root."""
    if not host.root:
        return []
    return [
        *("setpriv", "--reuid", str(host.uid), "--regid", str(host.gid), "--clear-groups", "--no-new-privs"),
        *("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--"),
    ]


def own_mount_namespace(host: Host) -> list[str]:
    """Return the command prefix that makes a private mount namespace; empty if the server is not root."""
    return ["unshare", "--mount", "--propagation", "private", "--"] if host.root else []
