"""The Engine API JSON that makes a sandbox; pure.

It uses only fields that both API 1.41 (Engine 20.10, cgroup v1) and current versions (cgroup v2) know. All that
isolates a workspace is in `_host_config`, on one screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kernelbridge import __version__
from kernelbridge.errors import ImageError
from kernelbridge.runtimes.contract import (
    HIDDEN_PATHS,
    READ_ONLY_PATHS,
    SHARED_PATH,
    WORKSPACE_PATH,
    Limits,
    SandboxSpec,
)
from kernelbridge.runtimes.processors import thread_counts

VERSION_LABEL = "kernelbridge"
INSTANCE_LABEL = "kernelbridge.instance"
WORKSPACE_LABEL = "kernelbridge.workspace"
LAUNCH_LABEL = "kernelbridge.launch"
"""Unique for each attempt to make a container: finds one that the engine made after the attempt had failed."""

DEFAULT_USER = "1000:100"
"""The user of an image that names none, or root."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The engine's own PATH for an image without one."""
HOSTNAME = "workspace"
GUEST_PATH = "/run/kernelbridge-guest"
"""Where the directory with the agent's program is mounted in a container."""
USER_DATABASE = ("passwd", "group")
"""Texts in the shared directory of a container with a user of its own, which are mounted in its /etc."""

_LOG_OPTIONS = {"max-size": "1m", "max-file": "1"}


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as the engine describes it."""

    id: str
    user: str
    """`Config.User`: empty, a name or a number, perhaps with a group."""
    env: Mapping[str, str]
    volumes: tuple[str, ...]
    """Paths that the image declares as volumes."""

    @property
    def run_as(self) -> str:
        """The image's own user; `DEFAULT_USER` if that is root or not set."""
        name = self.user.partition(":")[0]
        is_root = name in {"", "root"} or (name.isdigit() and int(name) == 0)
        return DEFAULT_USER if is_root else self.user

    @property
    def sandbox_env(self) -> Mapping[str, str]:
        """The environment of a sandbox's processes: the image's own, with HOME in the workspace."""
        return MappingProxyType({"PATH": DEFAULT_PATH, **self.env, "HOME": WORKSPACE_PATH})


def image_facts(inspected: Mapping[str, Any]) -> ImageFacts:
    """Parse the answer to `GET /images/{name}/json`; raises `ImageError` for an image of another system."""
    if (system := inspected.get("Os") or "linux") != "linux":
        raise ImageError("The workspace image cannot be used", f"it is made for {system}, not for linux")
    config = inspected.get("Config") or {}
    pairs = (item.partition("=") for item in config.get("Env") or ())
    return ImageFacts(
        id=inspected["Id"],
        user=config.get("User") or "",
        env=MappingProxyType({name: value for name, _, value in pairs}),
        volumes=tuple(config.get("Volumes") or ()),
    )


def container_name(instance: str, workspace_id: str) -> str:
    """Return the name of a workspace's container, as people see it in `docker ps`."""
    return f"kernelbridge-{instance}-{workspace_id}"


@dataclass(frozen=True, slots=True)
class Launch:
    """One attempt to make a container."""

    instance: str
    workspace_id: str
    token: str
    """Value of `LAUNCH_LABEL`."""
    image: ImageFacts
    command: Sequence[str]
    """Its first process: the container ends with it."""
    user: str
    """`uid:gid`, or the image's own name for the user as long as these are not known."""
    limits: Limits
    mounts: tuple[Mapping[str, Any], ...] = ()
    """Bind mounts, as Engine API `Mount` objects."""
    tmpfs: tuple[str, ...] = ()
    """Paths that get a small writable tmpfs, besides /tmp and the image's volumes."""
    seccomp: str | None = None
    """A seccomp profile (JSON text) in place of the engine's default one."""
    userns_remap: bool = False
    """Whether the engine maps user ids by default: bind-mounted files would then belong to nobody inside."""
    oci_runtime: str | None = None
    """The engine's name of the OCI runtime; None for its default one."""
    gpus: str | None = None
    """The container's GPUs: `all`, a number, or `device=` with ids between commas; None for none."""
    own_terminals: bool = True
    """Whether the engine can mount a file system of terminals (devpts) for the sandbox."""

    @property
    def name(self) -> str:
        """The container's name."""
        return container_name(self.instance, self.workspace_id)

    @property
    def _env(self) -> dict[str, str]:
        return {**thread_counts(self.limits.cpus, self.image.env), "HOME": WORKSPACE_PATH}

    def container(self) -> dict[str, Any]:
        """Return the body of `POST /containers/create`."""
        return {
            "Image": self.image.id,
            "Entrypoint": list(self.command),
            "Cmd": [],
            "User": self.user,
            "Hostname": HOSTNAME,
            "WorkingDir": WORKSPACE_PATH,
            # The first process of a PID namespace gets no other signal from outside: `docker stop` would wait in vain.
            "StopSignal": "SIGKILL",
            "Env": [f"{name}={value}" for name, value in self._env.items()],
            "Labels": {
                VERSION_LABEL: __version__,
                INSTANCE_LABEL: self.instance,
                WORKSPACE_LABEL: self.workspace_id,
                LAUNCH_LABEL: self.token,
            },
            # An image's health check would run its own program in every workspace, every few seconds.
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": _host_config(self),
        }


def workspace_mounts(files: Path, shared: Path, guest: Path, spec: SandboxSpec) -> tuple[Mapping[str, Any], ...]:
    """Return the bind mounts of a workspace; `guest` is the directory with the agent's program.

    As `Mount` objects: for these, the engine refuses a source that does not exist.
    """
    own = [
        _bind(source, target, read_only=False) for source, target in ((files, WORKSPACE_PATH), (shared, SHARED_PATH))
    ]
    etc = [_bind(shared / name, f"/etc/{name}", read_only=True) for name in USER_DATABASE if name in spec.texts]
    return (*own, _bind(guest, GUEST_PATH, read_only=True), *etc)


def _bind(source: Path, target: str, *, read_only: bool) -> Mapping[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": read_only}


def _host_config(launch: Launch) -> dict[str, Any]:
    limits = launch.limits
    security = ["no-new-privileges:true"]
    if launch.seccomp is not None:
        security.append(f"seccomp={launch.seccomp}")
    config: dict[str, Any] = {
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": security,
        "Memory": limits.memory,
        "MemorySwap": limits.memory,  # memory and swap together: no swap
        "NanoCpus": int(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
        "Ulimits": [{"Name": name, "Soft": most, "Hard": most} for name, most in limits.rlimits.items()],
        "ShmSize": limits.shm,
        "Tmpfs": _tmpfs(launch),
        "Mounts": [*launch.mounts, *([_terminals(launch)] if launch.own_terminals else [])],
        "MaskedPaths": list(HIDDEN_PATHS),
        "ReadonlyPaths": list(READ_ONLY_PATHS),
        "LogConfig": {"Type": "json-file", "Config": dict(_LOG_OPTIONS)},
        "RestartPolicy": {"Name": "no"},
    }
    if launch.userns_remap:
        config["UsernsMode"] = "host"
    if launch.oci_runtime is not None:
        config["Runtime"] = launch.oci_runtime
    if launch.gpus is not None:
        config["DeviceRequests"] = [_gpu_request(launch.gpus)]
    return config


def _gpu_request(gpus: str) -> dict[str, Any]:
    """Return what `docker run --gpus` asks the engine for. Its driver is the one that offers GPUs."""
    kind, _, ids = gpus.partition("=")
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]]}
    if kind == "device":
        return {**request, "DeviceIDs": ids.split(",")}
    return {**request, "Count": -1 if kind == "all" else int(kind)}


def _tmpfs(launch: Launch) -> dict[str, str]:
    # The temporary directory may hold programs (compiled wheels). A declared volume would be a disk without a limit.
    size = launch.limits.tmp
    mounted = {WORKSPACE_PATH, SHARED_PATH, "/tmp"}  # noqa: S108 - the sandbox's /tmp, not this host's
    small = f"rw,noexec,nosuid,nodev,size={size},mode=1777"
    return {
        **{path: small for path in launch.image.volumes if path.rstrip("/") not in mounted},
        **dict.fromkeys(launch.tmpfs, small),
        "/tmp": f"rw,exec,nosuid,nodev,size={size},mode=1777",  # noqa: S108 - as above
    }


def _terminals(launch: Launch) -> dict[str, Any]:
    """Return a mount of a devpts with a limit: the engine's own has none, and the machine has few terminals."""
    options = f"nosuid,noexec,newinstance,max={launch.limits.ptys},ptmxmode=0666,mode=0620,gid=5"
    labels = {INSTANCE_LABEL: launch.instance, WORKSPACE_LABEL: launch.workspace_id, LAUNCH_LABEL: launch.token}
    driver = {"Name": "local", "Options": {"type": "devpts", "device": "devpts", "o": options}}
    # Without a name, the engine removes it with the container.
    return {
        "Type": "volume",
        "Target": "/dev/pts",
        "VolumeOptions": {"NoCopy": True, "Labels": labels, "DriverConfig": driver},
    }
