"""Finding bubblewrap: what is said where it is absent, old, or not allowed."""

from pathlib import Path

import pytest

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.local.bubblewrap import find_bubblewrap
from kernelbridge.runtimes.local.runtime import LocalRuntime


def put(directory: Path, name: str, script: str) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_it_works_here() -> None:
    found = find_bubblewrap()
    assert found.usable
    assert found.problem is None
    assert found.version is not None
    assert found.require() == found.path


def test_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_bubblewrap()
    assert not found.usable
    assert "apt-get install bubblewrap" in (found.remedy or "")
    with pytest.raises(RuntimeUnavailable, match="not installed; install it: `apt-get"):
        LocalRuntime(instance="i", directories=HostDirectories(tmp_path))


def test_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path, "bwrap", "echo bubblewrap 0.4.1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = find_bubblewrap(root=False)
    assert found.problem == "bubblewrap 0.4.1 is too old"


def test_not_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path, "bwrap", '[ "$1" = --version ] && exec echo bubblewrap 0.8.0; echo "No permissions" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = find_bubblewrap(root=False)
    assert "No permissions" in (found.problem or "")
    assert found.remedy


def test_root_needs_the_tools_to_stop_being_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path, "bwrap", "echo bubblewrap 0.8.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "setpriv and unshare and mount" in (find_bubblewrap(root=True).problem or "")
