"""A second Python environment with the oldest kernel that is supported: ipykernel 6.31 with IPython 8."""

import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = ("ipykernel==6.31.*", "ipython==8.*")


def older_python() -> str:
    """Path of its interpreter. The environment is made in `sys.prefix` the first time, which needs PyPI.

    What it does not have itself (numpy, matplotlib) it takes from this environment.
    """
    home = Path(sys.prefix) / "older-kernel"
    with Path(f"{home}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may run the tests
        python = home / "bin" / "python"
        finished = home / "finished"
        if not finished.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
            subprocess.run(install, check=True, env={**os.environ, "PIP_USER": "0"})
            site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
            (site / "newer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
            finished.touch()
        return str(python)
