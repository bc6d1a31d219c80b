"""How the Docker runtime describes itself, and why a container did not start."""

from __future__ import annotations

from kernelbridge.errors import ConfigError
from kernelbridge.runtimes.contract import RuntimeInfo
from kernelbridge.runtimes.docker.engine import EngineInfo


def runtime_info(about: EngineInfo, *, own_uids: bool, oci_runtime: str | None = None) -> RuntimeInfo:
    """Describe a runtime with this engine and, unless that is the default one, this OCI runtime."""
    warning = None
    if "seccomp" not in about.security:
        warning = "the Docker engine filters no system calls: it was built or started without seccomp"
    return RuntimeInfo(
        name="docker",
        detail=str(about) if oci_runtime is None else f"{about}, containers run by {oci_runtime}",
        isolation=(
            "a container for each workspace: no network interface but loopback, no capabilities, read-only root, "
            f"{'a user of its own' if own_uids else 'a user'} without privileges, limits on memory, CPU and processes"
        ),
        warning=warning,
        images=True,
        adopts=True,
        own_uids=own_uids,
        relays=True,
        cpus=about.cpus or None,
    )


def mounts_terminals(about: EngineInfo) -> bool:
    """Return whether the engine can mount a devpts that a container may use.

    Under SELinux, a container has no access to a volume of this kind.
    """
    return not {"selinux", "rootless"} & set(about.security)


def check_oci_runtime(name: str, about: EngineInfo) -> None:
    """Raise `ConfigError` for an OCI runtime that the engine does not have.

    Newer engines find a shim by the name of its program (`io.containerd.kata.v2`), and do not list it.
    """
    if name not in about.oci_runtimes and not name.startswith("io.containerd."):
        raise ConfigError(
            f"--oci-runtime: the Docker engine has no runtime {name!r}",
            f"it has {', '.join(about.oci_runtimes) or 'none'}; add {name} to `runtimes` in /etc/docker/daemon.json "
            "and restart the engine, or leave --oci-runtime out",
        )


def start_problem(reason: str) -> str:
    """Return the engine's reason for a failed start, with what to do about it if that is known."""
    lower = reason.lower()
    if "bind source path does not exist" in lower:
        return (
            f"{reason}; the data directory must have the same absolute path for the engine as for kernelbridge, "
            "also when kernelbridge runs in a container"
        )
    if "could not select device driver" in lower and "gpu" in lower:
        return (
            f"{reason}; the engine offers no GPUs: install the NVIDIA Container Toolkit, restart the engine, and try "
            "`docker run --rm --gpus all IMAGE nvidia-smi`; or leave --gpus out"
        )
    return reason
