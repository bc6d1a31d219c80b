"""What is inside an image: user, environment, python, kernelspecs, shell.

`PROBE` is a program for the image's own python, standard library only. It runs as the sandbox's user and prints one
JSON object, which `parse_probe` checks. All runtimes use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from kernelbridge.errors import ImageError


class KernelSpec(msgspec.Struct, frozen=True):
    """A kernelspec as found in the image (https://jupyter-client.readthedocs.io, "Kernel specs")."""

    name: str
    argv: tuple[str, ...]
    language: str
    display_name: str
    env: dict[str, str] = {}
    interrupt_mode: str = "signal"


class PythonFacts(msgspec.Struct, frozen=True):
    """The python of the default kernel."""

    executable: str
    version: tuple[int, int]
    user_site: bool
    """Whether `pip install --user` is importable: false inside a virtual environment."""
    site_packages: tuple[str, ...]
    """Where its packages are; an overlay environment must add these to `sys.path`."""
    base_executable: str


class ProbeResult(msgspec.Struct, frozen=True):
    """What `PROBE` prints."""

    uid: int
    gid: int
    python: PythonFacts
    kernelspecs: tuple[KernelSpec, ...]
    shell: str
    """`/bin/bash` where the image has it, else `/bin/sh`."""
    passwd: str = ""
    group: str = ""
    """The image's /etc/passwd and /etc/group."""


class Facts(msgspec.Struct, frozen=True):
    """What a sandbox offers."""

    uid: int
    gid: int
    env: Mapping[str, str]
    """The sandbox's own environment: PATH, HOME, the image's ENV."""
    python: PythonFacts
    kernelspecs: Mapping[str, KernelSpec]
    shell: str
    passwd: str = ""
    group: str = ""
    """The image's own /etc/passwd and /etc/group; empty if the runtime makes them."""
    any_uid: bool = False
    """Whether a sandbox may have another user id than `uid`."""

    def kernelspec(self, name: str) -> KernelSpec:
        """Return the named kernelspec; raises `ImageError` that lists the existing ones."""
        spec = self.kernelspecs.get(name)
        if spec is None:
            have = ", ".join(sorted(self.kernelspecs)) or "none"
            raise ImageError(f"Kernel {name!r} is not in the workspace image", f"kernelspecs found: {have}")
        return spec


PROBE = r"""
import glob, json, os, site, sys
specs = {}
roots = [p for p in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if p]
roots += [os.path.join(sys.prefix, "share/jupyter"), "/usr/local/share/jupyter", "/usr/share/jupyter"]
for root in roots:
    for path in sorted(glob.glob(os.path.join(root, "kernels", "*", "kernel.json"))):
        name = os.path.basename(os.path.dirname(path)).lower()
        try:
            with open(path, encoding="utf-8") as f:
                spec = json.load(f)
            specs.setdefault(name, {
                "name": name,
                "argv": [a.replace("{resource_dir}", os.path.dirname(path)) for a in spec["argv"]],
                "language": spec.get("language", "").lower(),
                "display_name": spec.get("display_name", name),
                "env": {k: str(v) for k, v in spec.get("env", {}).items()},
                "interrupt_mode": spec.get("interrupt_mode", "signal"),
            })
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
if "python3" not in specs:
    from importlib.util import find_spec
    if find_spec("ipykernel"):
        specs["python3"] = {"name": "python3", "language": "python", "display_name": "Python 3",
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
venv = sys.prefix != sys.base_prefix

def text(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read(1 << 16)
    except OSError:
        return ""
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(),
    "python": {
        "executable": sys.executable, "version": list(sys.version_info[:2]),
        "user_site": not venv and (bool(site.ENABLE_USER_SITE) or not sys.flags.no_user_site),
        "site_packages": [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))],
        "base_executable": getattr(sys, "_base_executable", sys.executable),
    },
    "kernelspecs": list(specs.values()),
    "shell": "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh",
    "passwd": text("/etc/passwd"), "group": text("/etc/group"),
}))
"""


def parse_probe(output: bytes, env: Mapping[str, str]) -> Facts:
    """Parse what `PROBE` printed and add the sandbox's environment; raises `ImageError`."""
    try:
        probe = msgspec.json.decode(output, type=ProbeResult)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ImageError("The workspace image cannot be used", f"its python gave no facts: {exc}") from exc
    if not probe.kernelspecs:
        raise ImageError(
            "The workspace image has no Jupyter kernel",
            f"none was found for its python, {probe.python.executable}; install one there, for example with"
            " `pip install ipykernel`",
        )
    return Facts(
        uid=probe.uid,
        gid=probe.gid,
        env=MappingProxyType(dict(env)),
        python=probe.python,
        kernelspecs=MappingProxyType({spec.name: spec for spec in probe.kernelspecs}),
        shell=probe.shell,
        passwd=probe.passwd,
        group=probe.group,
    )
