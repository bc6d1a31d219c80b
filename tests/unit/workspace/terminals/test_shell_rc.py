"""What an interactive shell reads first, read by real shells."""

import subprocess
from pathlib import Path

import pytest

from kernelbridge.workspace.terminals import shell_rc

NUMBER = "123456789012345678"


@pytest.mark.parametrize("name", ["bash", "dash", "ash", "sh"])
def test_every_process_has_the_terminals_number_as_a_limit(tmp_path: Path, name: str) -> None:
    """`ash` is busybox's shell; `sh` is bash under that name."""
    shell = tmp_path / name
    shell.symlink_to({"dash": "/bin/dash", "ash": "/bin/busybox"}.get(name, "/bin/bash"))
    file = tmp_path / shell_rc.FILE
    file.write_text(shell_rc.setup(str(shell)))
    done = subprocess.run(
        shell_rc.argv(str(shell), str(file)),
        input='echo "$PS1"; exec env -i /bin/cat /proc/self/limits\n',
        env={"PATH": "/usr/bin:/bin", **shell_rc.environment(str(shell), str(file), NUMBER, {})},
        start_new_session=True,  # no terminal to be had
        capture_output=True,
        text=True,
        check=True,
    )
    limits = [line.split()[3] for line in done.stdout.splitlines() if line.startswith("Max file locks")]
    assert limits == [NUMBER], done
