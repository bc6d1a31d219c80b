"""The files of a workspace that `pip install` needs to work in a running kernel; pure.

The root file system of a sandbox is read-only, so packages are installed in the workspace. Python adds the user site
directory to `sys.path` only if the directory exists when the interpreter starts, so it is made before. A python in a
virtual environment ignores the user site; it gets an overlay: a virtual environment in the workspace that sees the
image's packages through a `.pth` file. Then pip installs, upgrades and removes packages in the workspace, and the
image's packages stay unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from posixpath import dirname, join

from kernelbridge.runtimes.facts import Facts, KernelSpec

_VENV = ".local/venv"
_PIP = """\
#!{python}
import sys
from pip._internal.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class PythonEnvironment:
    """What to make in the workspace and how to start processes; paths are relative to the workspace."""

    directories: tuple[str, ...]
    env: Mapping[str, str]
    """Added to the sandbox's own environment, for kernels and shells."""
    image_path: str
    """PATH as the image has it."""
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Path to (content, mode)."""
    symlinks: Mapping[str, str] = field(default_factory=dict)
    """Path to target."""
    python: str | None = None
    """The interpreter that replaces the image's own in kernelspecs, or None."""

    def without_installs(self) -> PythonEnvironment:
        """Return the environment for a workspace in which these files cannot be made: the image's own python."""
        env = {name: value for name, value in self.env.items() if name != "VIRTUAL_ENV"}
        return PythonEnvironment(directories=(), env={**env, "PATH": self.image_path}, image_path=self.image_path)

    def argv(self, spec: KernelSpec, facts: Facts) -> tuple[str, ...]:
        """Return the command that starts a kernel, with `{connection_file}` in it."""
        program = spec.argv[0]
        own = {facts.python.executable, "python", "python3", f"python{facts.python.version[0]}"}
        if self.python is not None and program in own:
            return (self.python, *spec.argv[1:])
        return spec.argv


def python_environment(facts: Facts, workspace: str) -> PythonEnvironment:
    """Return the environment for a workspace whose path in the sandbox is `workspace`."""
    version = ".".join(map(str, facts.python.version))
    path = facts.env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    env = {
        # Outside the user's own files.
        "IPYTHONDIR": "/tmp/.ipython",  # noqa: S108  the sandbox's own tmpfs
        # Python compares the time in seconds and the size of a source with those in its byte code: of a module that is
        # saved twice within a second, it would use the first version. pip compiles what it installs all the same.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_BREAK_SYSTEM_PACKAGES": "1",  # Debian's python refuses `--user` without it
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_RETRIES": "0",  # without a network (`SandboxNetwork` has another value), they would only delay the error
    }
    if facts.python.user_site:
        site = f".local/lib/python{version}/site-packages"
        return PythonEnvironment(
            directories=(".local/bin", site),
            env={**env, "PATH": f"{workspace}/.local/bin:{path}"},
            image_path=path,
        )
    venv = join(workspace, _VENV)
    python = f"{venv}/bin/python"
    site = f"{_VENV}/lib/python{version}/site-packages"
    return PythonEnvironment(
        directories=(".local/bin", f"{_VENV}/bin", site),
        env={**env, "PATH": f"{workspace}/.local/bin:{venv}/bin:{path}", "VIRTUAL_ENV": venv},
        image_path=path,
        files={
            f"{_VENV}/pyvenv.cfg": (
                f"home = {dirname(facts.python.base_executable)}\ninclude-system-site-packages = false\n",
                0o644,
            ),
            f"{site}/_image.pth": ("".join(f"{entry}\n" for entry in facts.python.site_packages), 0o644),
            f"{_VENV}/bin/pip": (_PIP.format(python=python), 0o755),
        },
        symlinks={
            f"{_VENV}/bin/python": facts.python.base_executable,
            f"{_VENV}/bin/python3": "python",
            f"{_VENV}/bin/python{version}": "python",
        },
        python=python,
    )
