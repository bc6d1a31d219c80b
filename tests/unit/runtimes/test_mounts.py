"""What bubblewrap is told: order matters, and nothing may be left to chance."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelbridge.errors import ImageError
from kernelbridge.runtimes.contract import Limits
from kernelbridge.runtimes.local.host import Host, Mount, check_hidden, private_files, read_host
from kernelbridge.runtimes.local.mounts import (
    InheritedFiles,
    bwrap_arguments,
    choose_stage,
    drop_root,
    etc_files,
    launch_script,
    own_mount_namespace,
    sandbox_mounts,
    stage_mounts,
)

HOST = Host(
    uid=1000,
    gid=100,
    root=True,
    machine="x86_64",
    system=(Mount("/usr", "/usr"),),
    links=(("usr/bin", "/bin"),),
    python=(Mount("/root/py", "/root/py"), Mount("/tmp/venv", "/tmp/venv")),
    python_executable="/tmp/venv/bin/python",
    env={"PATH": "/usr/bin", "SHELL": "/bin/sh"},
)
FILES = InheritedFiles(agent=10, passwd=11, group=12, hosts=13, nsswitch=14, status=15, seccomp=16)


def arguments(host: Host = HOST, *, private: Sequence[str] = ()) -> list[str]:
    mounts = sandbox_mounts(host, "/data/f", "/data/s")
    return bwrap_arguments(host, mounts, FILES, Limits(), terminals="/mnt/terminals", private=private)


def position(*words: str) -> int:
    given = arguments()
    found = [i for i in range(len(given)) if tuple(given[i : i + len(words)]) == words]
    assert len(found) == 1, f"{words} occurs {len(found)} times"
    return found[0]


def test_every_namespace_is_its_own() -> None:
    assert {"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"} <= set(arguments())
    assert {"--new-session", "--as-pid-1", "--clearenv"} <= set(arguments())
    assert "--share-net" not in arguments()


def test_only_the_workspace_and_its_sockets_are_writable() -> None:
    given = arguments()
    writable = [tuple(given[i + 1 : i + 3]) for i, word in enumerate(given) if word in {"--bind", "--dev-bind"}]
    assert writable == [
        ("/mnt/terminals", "/dev/pts"),
        ("/data/f", "/workspace"),
        ("/data/s", "/run/kernelbridge"),
    ]


def test_a_mount_over_a_directory_comes_after_it() -> None:
    assert position("--tmpfs", "/tmp") < position("--ro-bind", "/tmp/venv", "/tmp/venv")
    assert position("--dev", "/dev") < position("--tmpfs", "/dev/shm") < position("--remount-ro", "/dev")
    assert position("--remount-ro", "/") > position("--bind", "/data/f", "/workspace")


def test_every_tmpfs_has_a_size() -> None:
    given = arguments()
    for i, word in enumerate(given):
        if word == "--tmpfs":
            assert given[i - 2] == "--size"


def test_without_a_filter_user_namespaces_are_closed_otherwise() -> None:
    unfiltered = InheritedFiles(agent=10, passwd=11, group=12, hosts=13, nsswitch=14, status=15, seccomp=None)
    given = bwrap_arguments(HOST, [], unfiltered, Limits(), disable_userns=True)
    assert "--disable-userns" in given
    assert "--seccomp" not in given


def test_root_is_given_up_and_an_ordinary_user_has_nothing_to_give_up() -> None:
    assert drop_root(HOST)[:5] == ["setpriv", "--reuid", "1000", "--regid", "100"]
    assert {"--clear-groups", "--no-new-privs", "--bounding-set=-all"} <= set(drop_root(HOST))
    ordinary = Host(5, 5, False, "x86_64", (), (), (), "", {})  # noqa: FBT003 - a plain record
    assert drop_root(ordinary) == own_mount_namespace(ordinary) == []


def test_staging_keeps_the_targets() -> None:
    commands, staged = stage_mounts([Mount("/a b", "/a b"), Mount("/c", "/d", writable=True)], "/mnt")
    assert staged == [Mount("/mnt/0", "/a b"), Mount("/mnt/1", "/d", writable=True)]
    assert commands[-2:] == ["mount --rbind '/a b' /mnt/0", "mount --rbind /c /mnt/1"]


def test_the_stage_hides_no_source() -> None:
    assert choose_stage([Mount("/mnt/data", "/x")], ["/mnt", "/media"]) == "/media"
    assert choose_stage([Mount("/mnt", "/x")], ["/mnt"]) is None
    assert choose_stage([Mount("/mnt2", "/x")], ["/mnt"]) == "/mnt"


def test_the_script_quotes_what_it_is_given() -> None:
    command = ["bwrap", "a; rm -rf /", "$(reboot)", "it's"]
    last = launch_script(command, cgroups=["/sys/fs/cgroup/a b/cgroup.procs"]).splitlines()
    assert last[1] == "echo $$ >'/sys/fs/cgroup/a b/cgroup.procs'"
    assert shlex.split(last[-1]) == ["exec", *command]


def test_the_users_files_name_only_the_sandboxs_user() -> None:
    files = etc_files(1000, 100)
    assert [line.split(":")[0] for line in files["passwd"].splitlines()] == ["root", "sandbox", "nobody"]


def test_this_machine_shows_no_home_directory() -> None:
    host = read_host()
    for mount in (*host.system, *host.python):
        assert mount.target not in {"/", "/home", "/root", "/etc", "/var", "/run"}
        assert not mount.writable
    assert host.uid != 0


def test_a_directory_with_a_link_to_python_is_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~/.local/bin/python3` may be a link to python, and the server's data is in `~/.local/share`."""
    local = tmp_path / "local"
    (local / "bin").mkdir(parents=True)
    # As some installers make it: a directory on the way is a link, too.
    (local / "linked").symlink_to(os.path.realpath(sys.base_prefix))
    name = Path(os.path.realpath(sys.executable)).name
    (local / "bin" / "python3").symlink_to(local / "linked" / "bin" / name)
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to("../../local/bin/python3")
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    host = read_host()
    assert not any(str(local).startswith(mount.source) for mount in (*host.system, *host.python))
    assert host.links[-1] == (os.path.realpath(sys.base_prefix) + f"/bin/{name}", str(local / "bin" / "python3"))
    check_hidden(host, [local])


def test_a_python_that_is_not_in_its_prefix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "python3"
    elsewhere.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(elsewhere))
    with pytest.raises(ImageError, match="install kernelbridge in a virtual environment of another python"):
        read_host()


@pytest.mark.parametrize("prefix", [sys.prefix, sys.base_prefix, "/usr"])
def test_the_servers_files_do_not_lie_in_what_is_mounted(prefix: str, tmp_path: Path) -> None:
    host = read_host()
    check_hidden(host, [tmp_path / "data"])
    link = tmp_path / "data"
    link.symlink_to(f"{prefix}/share/data")
    with pytest.raises(ImageError, match=f"Every sandbox would see {link}"):
        check_hidden(host, [tmp_path, link])


def test_pips_settings_of_the_servers_python_look_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have the password of an index, and they lie where every sandbox sees them."""
    settings, outside = tmp_path / "prefix" / "pip.conf", tmp_path / "pip.conf"
    settings.parent.mkdir()
    outside.touch()
    monkeypatch.setattr(sys, "prefix", str(settings.parent))
    host = read_host()
    assert private_files(host) == []
    settings.touch()
    assert private_files(host) == [str(settings)]
    found = arguments(host, private=private_files(host))
    at = found.index(str(settings))
    assert found[at - 2 : at] == ["--ro-bind", "/dev/null"]
    assert at > found.index(str(settings.parent))
    settings.unlink()
    settings.symlink_to(outside)  # no sandbox has that file
    assert private_files(host) == []
    settings.unlink()
    (settings.parent / "shared.conf").touch()
    settings.symlink_to("shared.conf")
    assert private_files(host) == [str(settings.parent / "shared.conf")]
