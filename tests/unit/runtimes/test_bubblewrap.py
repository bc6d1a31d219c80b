"""Finding bubblewrap: what is said where it is absent, old, or not allowed."""

from pathlib import Path

import pytest

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.local import bubblewrap
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


def test_an_old_version_is_told_from_a_new_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    oldest = ".".join(map(str, bubblewrap._MINIMUM))
    put(tmp_path, "bwrap", f'[ "$1" = --version ] && exec echo bubblewrap {oldest}; exit 0')
    assert find_bubblewrap(root=False).usable
    put(tmp_path, "bwrap", "echo bubblewrap")
    assert "does not print its version" in (find_bubblewrap(root=False).problem or "")


def test_a_program_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(bubblewrap, "_TRIAL_SECONDS", 0.2)
    put(tmp_path, "bwrap", '[ "$1" = --version ] && exec echo bubblewrap 0.8.0; exec sleep 60')
    assert "no answer within 0.2 seconds" in (find_bubblewrap(root=False).problem or "")
    assert bubblewrap._run([str(tmp_path / "none")])[0] == -1


def test_the_remedy_is_that_of_the_setting_which_forbids_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, forbidden, remedy in bubblewrap._SYSCTLS:
        setting = tmp_path / "proc/sys" / name
        setting.parent.mkdir(parents=True, exist_ok=True)
        setting.write_text(f"{forbidden}\n")
        monkeypatch.setattr(bubblewrap, "Path", lambda *parts: tmp_path / "/".join(parts).lstrip("/"))
        assert bubblewrap._remedy() == f"as root: {remedy}"
        setting.write_text("other\n")
    assert bubblewrap._remedy().startswith("allow user namespaces")
    for mark in (".dockerenv", "run/.containerenv"):
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).touch()
        assert bubblewrap._remedy().startswith("this server is in a container")
        (tmp_path / mark).unlink()
