from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme

from kernelbridge.cli import screen
from kernelbridge.cli.doctor import write_checks
from kernelbridge.doctor import (
    Row,
    Status,
    check_audit,
    check_bubblewrap,
    check_data_directory,
    check_disk,
    check_egress,
    check_image,
    check_login,
    check_port,
    check_python,
    check_quota,
    check_tls,
    examine,
    judge_engine,
    judge_files,
    judge_limits,
    judge_oci_runtime,
    judge_terminals,
    judge_user,
    serves,
)
from kernelbridge.egress.hosts import Address
from kernelbridge.egress.policy import read_network, read_rule
from kernelbridge.egress.secrets import read_secret_rule
from kernelbridge.errors import ConfigError, ImageError, RuntimeUnavailable
from kernelbridge.identity.tokens import new_token, token_line
from kernelbridge.runtimes.docker.engine import EngineInfo
from kernelbridge.settings.settings import Settings
from kernelbridge.workspace.files.data_directory import DataDirectory

ENGINE = EngineInfo(
    available=True,
    version="20.10.24",
    api_version="1.41",
    cgroup_version="1",
    cpus=2,
    memory=4 << 30,
    security=("seccomp",),
)
NO_ENGINE = EngineInfo(available=False, reason="nothing listens on the engine's socket; start the Docker engine")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    assert isinstance(port, int)
    return port


def test_a_data_directory_that_is_there(tmp_path: Path) -> None:
    row = check_data_directory(tmp_path)
    assert (row.status, row.found, row.fix) == (Status.OK, str(tmp_path), "")
    assert not list(tmp_path.iterdir())


def test_a_data_directory_to_be_made(tmp_path: Path) -> None:
    row = check_data_directory(tmp_path / "a" / "b")
    assert row.status is Status.OK
    assert row.found == f"{tmp_path}/a/b will be created in {tmp_path}"
    assert not list(tmp_path.iterdir())


def test_a_data_directory_of_a_running_server(tmp_path: Path) -> None:
    with closing(DataDirectory.open(tmp_path)):
        row = check_data_directory(tmp_path)
        assert row.status is Status.PROBLEM
        assert "in use by a running kernelbridge server" in row.found
        assert "--data-dir" in row.fix
    assert check_data_directory(tmp_path).status is Status.OK


def test_a_server_starts_while_the_doctor_has_just_looked(tmp_path: Path) -> None:
    DataDirectory.open(tmp_path).close()
    check_data_directory(tmp_path)
    DataDirectory.open(tmp_path).close()


def test_a_file_in_the_place_of_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "data"):
        row = check_data_directory(path)
        assert row.status is Status.PROBLEM
        assert row.found == f"{tmp_path}/file is not a directory"


def test_a_dangling_link_in_the_place_of_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert check_data_directory(tmp_path / "link").found == f"{tmp_path}/link is not a directory"


def test_a_data_directory_where_nobody_can_write() -> None:
    row = check_data_directory(Path("/proc/kernelbridge"))
    assert row.status is Status.PROBLEM
    assert "/proc" in row.found
    assert "--data-dir" in row.fix


def test_a_data_directory_with_a_line_end_in_its_name(tmp_path: Path) -> None:
    assert check_data_directory(tmp_path / "a\nb").status is Status.PROBLEM


def test_room_on_disk(tmp_path: Path) -> None:
    row = check_disk(tmp_path / "absent")
    assert f"free at {tmp_path}" in row.found
    assert check_disk(Path("/proc")).status is Status.PROBLEM


def test_a_port_in_use(taken_port: int) -> None:
    row = check_port("127.0.0.1", taken_port)
    assert row.status is Status.PROBLEM
    assert "Address already in use" in row.found
    assert "--port" in row.fix


async def test_a_taken_address_for_metrics(tmp_path: Path, taken_port: int) -> None:
    settings = Settings(
        data_dir=tmp_path, port=0, egress="none", runtime="local", metrics_listen=("127.0.0.1", taken_port)
    )
    [row] = [row for row in await examine(settings) if row.check == "metrics"]
    assert row.status is Status.PROBLEM
    assert "--metrics-listen" in row.fix


def test_a_free_port() -> None:
    port = free_port()
    assert check_port("127.0.0.1", port) == Row("port", Status.OK, f"127.0.0.1:{port} is free")
    assert check_port("127.0.0.1", 0).status is Status.OK


def test_a_host_without_an_address() -> None:
    assert check_port("kernelbridge.invalid", 1).status is Status.PROBLEM


def test_this_python_can_run_a_kernel() -> None:
    row = check_python([])
    assert row.status is Status.OK
    assert sys.executable in row.found


def test_a_python_beside_which_the_server_keeps_its_files() -> None:
    with pytest.raises(ImageError, match="Every sandbox would see"):
        check_python([Path(sys.prefix) / "data"])


def test_a_python_whose_ipykernel_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ipykernel.py").write_text("raise ImportError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    row = check_python([])
    assert row.status is Status.PROBLEM
    assert "half installed" in row.found
    assert "pip install" in row.fix


def test_bubblewrap_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    row = check_bubblewrap(isolation=True)
    assert row.status is Status.PROBLEM
    assert "apt-get install bubblewrap" in row.fix


def test_no_isolation_is_worth_a_warning() -> None:
    assert check_bubblewrap(isolation=False).status is Status.WARNING


@pytest.mark.parametrize(
    ("engine", "needed", "status"),
    [
        (ENGINE, True, Status.OK),
        (ENGINE, False, Status.OK),
        (NO_ENGINE, True, Status.PROBLEM),
        (NO_ENGINE, False, Status.WARNING),
        (replace(ENGINE, security=()), True, Status.WARNING),
    ],
)
def test_what_is_made_of_an_engine(engine: EngineInfo, needed: bool, status: Status) -> None:  # noqa: FBT001 - a parameter of the table
    row = judge_engine(engine, needed=needed)
    assert row.status is status
    assert NO_ENGINE.reason in row.fix or engine is not NO_ENGINE


def test_limits_that_the_machine_does_not_have() -> None:
    assert judge_limits(1 << 30, 2.0, ENGINE).status is Status.OK
    row = judge_limits(1 << 30, 64.0, ENGINE)
    assert row.status is Status.WARNING
    assert row.fix.startswith("use --cpus 2 or less")
    assert judge_limits(8 << 30, 1.0, ENGINE).status is Status.WARNING


def test_who_runs_in_sandboxes_and_what_they_share() -> None:
    own = judge_user(0, (2_000_000, 2_065_535))
    assert (own.status, own.found) == (
        Status.OK,
        "root: each session has its own user id, from 2000000 to 2065535",
    )
    one = judge_user(0, None)
    assert one.status is Status.WARNING
    assert "inotify" in one.found
    assert "--uid-range" in one.fix
    for uid in (1000, 1234):
        row = judge_user(uid, (2_000_000, 2_065_535))
        assert row.status is Status.OK
        assert row.found.startswith(f"sandboxes run as uid {uid}, as this server does: sessions share")


def test_terminals_that_the_machine_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "max").write_text("4096\n")
    (tmp_path / "reserve").write_text("1024\n")
    assert judge_terminals(24, 128, tmp_path).status is Status.OK
    row = judge_terminals(24, 129, tmp_path)
    assert row.status is Status.WARNING
    assert "kernel.pty.max=4120" in row.fix
    assert judge_terminals(24, 1, tmp_path / "absent").status is Status.WARNING


def test_an_engine_that_docker_host_names() -> None:
    assert judge_engine(NO_ENGINE, needed=True, host="tcp://127.0.0.1:1").found == (
        "the Docker engine at tcp://127.0.0.1:1 (from DOCKER_HOST) does not answer"
    )


def test_an_oci_runtime() -> None:
    engine = replace(ENGINE, oci_runtimes=("runc", "crun", "runsc"))
    assert judge_oci_runtime("crun", engine).status is Status.OK
    absent = judge_oci_runtime("kata", engine)
    assert (absent.status, "/etc/docker/daemon.json" in absent.fix) == (Status.PROBLEM, True)
    gvisor = judge_oci_runtime("runsc", engine)
    assert (gvisor.status, "--egress none" in gvisor.fix) == (Status.WARNING, True)


def test_files_that_the_server_may_open() -> None:
    assert judge_files(524_288, 100).status is Status.OK
    assert judge_files(resource.RLIM_INFINITY, 100_000).status is Status.OK
    row = judge_files(1024, 100)
    assert (row.status, row.found) == (
        Status.WARNING,
        "the server may open 1024 files: 100 sessions share 170 connections to the network",
    )
    assert "LimitNOFILE=38400" in row.fix


def test_disk_limits_that_are_watched_or_absent(tmp_path: Path) -> None:
    row = check_quota(Settings(data_dir=tmp_path / "absent"))
    assert row.status is Status.OK
    assert "2.0 GiB for each session, watched by the server" in row.found
    assert check_quota(Settings(data_dir=tmp_path, disk=0, disk_files=0)).status is Status.WARNING
    assert not list(tmp_path.iterdir())


def test_disk_limits_that_the_file_system_enforces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelbridge.disk.projects._quotactl", enforces_projects)
    monkeypatch.setattr("kernelbridge.disk.projects.may_set_quotas", lambda: True)
    assert "enforced by the file system" in check_quota(Settings(data_dir=tmp_path)).found
    monkeypatch.setattr("kernelbridge.disk.projects.may_set_quotas", lambda: False)
    assert "watched by the server" in check_quota(Settings(data_dir=tmp_path)).found


def enforces_projects(_fd: int, _command: int, _project: int, data: ctypes.Array[ctypes.c_char]) -> None:
    struct.pack_into("=H", data, 2, 1 << 5)


async def test_hosts_that_programs_may_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    names = {"pypi.org": "151.101.0.223", "files.pythonhosted.org": "2a04:4e42::223", "inside.test": "10.1.2.3"}

    def resolved(host: str) -> list[Address]:
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [ip_address(names[host])]

    monkeypatch.setattr("kernelbridge.doctor.addresses_of", resolved)
    usual = await check_egress(Settings(data_dir=tmp_path))
    assert usual == Row("egress", Status.OK, "packages: pypi.org:443, files.pythonhosted.org:443")
    assert await check_egress(Settings(data_dir=tmp_path, egress="none")) == Row("egress", Status.OK, "none: no host")

    inside = (read_rule("inside.test"), read_rule("*.example.org"))
    row = await check_egress(Settings(data_dir=tmp_path, egress_allow=inside))
    assert row.status is Status.WARNING
    assert "inside.test leads to 10.1.2.3, which is not public and is refused" in row.found
    assert row.fix == "if programs shall reach it, add `--egress-allow-net 10.1.2.3/32`"
    network = (read_network("10.0.0.0/8"),)
    allowed = await check_egress(Settings(data_dir=tmp_path, egress_allow=inside, egress_allow_net=network))
    assert allowed.status is Status.OK

    monkeypatch.setenv("PIP_INDEX_URL", "https://absent.test/simple")
    absent = await check_egress(Settings(data_dir=tmp_path))
    assert absent.status is Status.WARNING
    assert "absent.test has no address: Name or service not known" in absent.found
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    assert "not through HTTPS_PROXY" in (await check_egress(Settings(data_dir=tmp_path))).found
    through = await check_egress(Settings(data_dir=tmp_path, egress="none", egress_proxy=("proxy.test", 3128)))
    assert through == Row("egress", Status.OK, "none: no host, through proxy.test:3128")


async def test_secrets_of_hosts(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.touch(0o644)
    secret.write_text("k-1")
    rule = read_secret_rule(f"api.test:8443=Authorization:{secret}")
    settings = Settings(data_dir=tmp_path, egress="none", egress_secret=(rule,), egress_proxy=("proxy.test", 3128))
    with pytest.raises(ConfigError, match="run chmod 600 on it"):
        await check_egress(settings)
    secret.chmod(0o600)
    assert "none: api.test:8443" in (await check_egress(settings)).found


def test_an_audit_log(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    assert check_audit(log) == Row("audit", Status.OK, f"{log} will be created")
    assert not log.exists()
    log.touch(0o600)
    assert check_audit(log) == Row("audit", Status.OK, str(log))
    log.chmod(0o644)
    assert check_audit(log).status is Status.WARNING
    assert check_audit(tmp_path).found == f"{tmp_path} is a directory"
    absent = check_audit(tmp_path / "absent" / "audit.jsonl")
    assert (absent.status, absent.found) == (Status.PROBLEM, f"{tmp_path}/absent does not exist")


def test_an_audit_log_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "audit.jsonl"
    log.touch(0o600)
    # As for a user who is not root, or on a disk that is mounted read-only.
    monkeypatch.setattr("kernelbridge.doctor.os.access", lambda _path, mode: mode == os.R_OK)
    row = check_audit(log)
    assert (row.status, row.found) == (Status.PROBLEM, f"{log} cannot be written by this user")
    assert "--audit-log" in row.fix


def test_logins_that_cannot_work_or_can_be_overheard(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)

    def row(**more: Any) -> Row:
        return check_login(Settings(data_dir=tmp_path, auth="token", token_file=tokens, **more))

    nobody = row()
    assert nobody.status is Status.WARNING
    assert "0 valid tokens" in nobody.found
    assert nobody.fix == f"`kernelbridge token new NAME --token-file {tokens}`"
    tokens.write_text(
        token_line("ada", new_token()) + "\n" + token_line("eve", new_token(), expires=datetime(2020, 1, 1, tzinfo=UTC))
    )
    assert row() == Row("login", Status.OK, f"--auth token: 1 valid tokens in {tokens}")
    clear = row(host="0.0.0.0")
    assert (clear.status, "without TLS" in clear.found) == (Status.WARNING, True)
    tokens.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        row()


def test_a_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    assert check_tls(certificate, key).status is Status.PROBLEM
    issued = authority.issue_cert("localhost")
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    issued.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    assert check_tls(certificate, key) == Row("tls", Status.OK, str(certificate))
    key.chmod(0o644)
    assert check_tls(certificate, key).status is Status.WARNING
    authority.issue_cert("localhost").private_key_pem.write_to_path(str(key))
    other = check_tls(certificate, key)
    assert (other.status, "cannot be used" in other.found) == (Status.PROBLEM, True)


async def test_an_image_that_the_first_start_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelbridge.images.build.image_exists", lambda _reference: False)
    row = await check_image("kernelbridge-workspace:latest", Path("/nowhere"))
    assert row.status is Status.WARNING
    assert "will be built at the first start" in row.found
    assert "`kernelbridge images build workspace`" in row.fix


async def test_an_image_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(RuntimeUnavailable, match=r"from DOCKER_HOST\): nothing listens there; start it"):
        await check_image("anything", Path("/nowhere"))


async def test_without_an_engine_auto_looks_at_the_local_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    rows = await examine(Settings(data_dir=tmp_path, port=0, egress="none"))
    assert [row.check for row in rows] == [
        "engine",
        "user",
        "terminals",
        "bubblewrap",
        "python",
        "data",
        "disk",
        "quota",
        "egress",
        "files",
        "port",
        "login",
    ]
    assert rows[0].status is Status.WARNING
    assert "not needed" not in rows[1].found


async def test_without_an_engine_docker_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    rows = await examine(Settings(data_dir=tmp_path, port=0, egress="none", runtime="docker"))
    assert rows[0].status is Status.PROBLEM
    assert not serves(rows)


async def test_an_environment_that_no_client_can_be_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "nonsense://x")
    rows = await examine(Settings(data_dir=tmp_path, port=0, egress="none"))
    assert rows[0].status is Status.WARNING


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kernelbridge", "doctor", *arguments]
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": root} | environ,
    )


def test_the_command_says_that_serve_works(tmp_path: Path) -> None:
    done = run("--runtime", "local", "--no-isolation", "--data-dir", str(tmp_path), "--port", "0")
    assert done.returncode == 0, done.stderr
    assert "warning  bubblewrap" in done.stdout
    assert "→ remove --no-isolation" in done.stdout
    assert done.stdout.endswith("`kernelbridge serve` works here.\n")


def test_the_command_says_what_to_mend(tmp_path: Path, taken_port: int) -> None:
    done = run("--runtime", "local", "--data-dir", str(tmp_path), "--port", str(taken_port), PATH="/nowhere")
    assert done.returncode == 1
    assert "problem  bubblewrap" in done.stdout
    assert "→ install it: `apt-get install bubblewrap`" in done.stdout
    assert "problem  port" in done.stdout
    assert done.stdout.endswith("2 to fix before `kernelbridge serve` works.\n")


def test_the_command_speaks_json(tmp_path: Path, taken_port: int) -> None:
    done = run("--json", "--runtime", "local", "--no-isolation", "--data-dir", str(tmp_path), "--port", str(taken_port))
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert {row["check"]: row["status"] for row in answer["checks"]} == {
        "bubblewrap": "warning",
        "python": "ok",
        "data": "ok",
        "disk": "ok",
        "quota": "ok",
        "port": "problem",
        "login": "ok",
    }


def test_the_command_checks_how_clients_log_in(tmp_path: Path) -> None:
    here = ("--runtime", "local", "--no-isolation", "--data-dir", str(tmp_path), "--port", "0")
    done = run(*here, "--auth", "token", "--token-file", str(tmp_path / "tokens"))
    assert done.returncode == 1
    assert "problem  login" in done.stdout
    assert "No such file" in done.stdout


def test_what_an_image_says_of_itself_is_no_command_for_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b]52;c;eA==\x07"
    write_checks(screen.output(), [Row(f"kernel {name}", Status.WARNING, name, f"fix {name}")])
    shown = capsys.readouterr().out
    assert shown.count("]52;c;eA==") == 3
    assert not {"\x1b", "\x07"} & set(shown)
