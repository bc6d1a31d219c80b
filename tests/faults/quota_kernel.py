"""A Linux kernel of its own that has disk quotas, as a process (User-Mode Linux): few kernels of CI machines have them.

It sees the files of this machine, read-only, and an ext4 and an XFS disk with project quotas at `/mnt/ext4` and
`/mnt/xfs`. `python -m tests.faults.quota_kernel` is the first process in it.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

DISK = 400 << 20
"""Bytes; XFS takes none smaller than 300 MiB. What is not written takes nothing."""
MODULES = ("quota_tree", "quota_v2")
FILE_SYSTEMS = ("ext4", "xfs")
_FINIT_MODULE, _POWER_OFF = 313, 0x4321FEDC
_DONE = "exit code of the program:"


def run(scratch: Path, *argv: str) -> tuple[int, str]:
    """Run a program in such a kernel, with the user's rights of root there; return its exit code and its output."""
    linux = shutil.which("linux.uml")
    assert linux is not None, "install user-mode-linux, as .ci/setup does"
    disks = {name: scratch / name for name in FILE_SYSTEMS}
    for disk in disks.values():
        with disk.open("wb") as file:
            file.truncate(DISK)
    subprocess.run(["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", disks["ext4"]], check=True)
    subprocess.run(["mkfs.xfs", "-q", disks["xfs"]], check=True)
    init = scratch / "init"
    words = " ".join(f"'{word}'" for word in (sys.executable, "-B", "-m", __name__, *argv))
    init.write_text(f"#!/bin/sh\ncd '{Path.cwd()}' && exec {words}\n", encoding="utf-8")
    init.chmod(0o755)
    consoles = ("con=null", "con0=null,fd:1", "ssl=null")
    root = ("rootfstype=hostfs", "rootflags=/", "ro", f"init={init}")
    ran = subprocess.run(
        [linux, "mem=512M", *root, *consoles, f"ubda={disks['ext4']}", f"ubdb={disks['xfs']}", f"uml_dir={scratch}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    found = re.search(rf"{_DONE} ([0-9]+)", ran.stdout)
    return int(found[1]) if found else -1, ran.stdout


def main() -> None:
    """Set up the machine, run the program of the arguments, and switch the machine off."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = -1
    try:
        os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        for kind, at in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/mnt")):
            subprocess.run(["mount", "-t", kind, kind, at], check=True)
        temporary = Path("/mnt/tmp")  # not over /tmp, where the checkout may be
        temporary.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        for module in MODULES:
            found = next(Path("/usr/lib/uml/modules").glob(f"*/kernel/fs/quota/{module}.ko"))
            fd = os.open(found, os.O_RDONLY)
            libc.syscall(_FINIT_MODULE, fd, b"", 0)
        for name, device in zip(FILE_SYSTEMS, ("/dev/ubda", "/dev/ubdb"), strict=True):
            Path("/mnt", name).mkdir()
            subprocess.run(["mount", "-o", "prjquota", device, f"/mnt/{name}"], check=True)
        code = subprocess.run(sys.argv[1:], check=False).returncode
    finally:
        print(_DONE, code, flush=True)
        libc.reboot(_POWER_OFF)


if __name__ == "__main__":
    main()
