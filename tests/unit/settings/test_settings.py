from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.egress.secrets import read_secret_rule
from kernelbridge.errors import ConfigError
from kernelbridge.settings import kinds
from kernelbridge.settings.environment import default_ca_bundle, default_data_dir, docker_host
from kernelbridge.settings.kinds import canonical_origin
from kernelbridge.settings.settings import OPTIONS, Settings, default_text, is_loopback, resolve
from kernelbridge.settings.sources import variable_name

ENV = {"HOME": "/home/ada"}


def refusal(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(flags or {}, ENV | (environ or {}))
    return str(caught.value)


def write(directory: Path, text: str) -> str:
    path = directory / "server.toml"
    path.write_text(text)
    return str(path)


def test_defaults_are_those_of_the_object(tmp_path: Path) -> None:
    assert resolve({"data_dir": str(tmp_path)}, ENV) == Settings(data_dir=tmp_path)


def test_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(FrozenInstanceError):
        Settings(data_dir=tmp_path).port = 1  # type: ignore[misc]


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'memory = "128m"\npids = 64\nlinger = "1m"\n')
    environ = ENV | {"KERNELBRIDGE_CONFIG": file, "KERNELBRIDGE_MEMORY": "256m", "KERNELBRIDGE_PIDS": "100"}
    settings = resolve({"memory": "512m"}, environ)
    assert (settings.memory, settings.pids, settings.linger, settings.cpus) == (512 << 20, 100, 60.0, 1.0)
    assert settings.config == Path(file)


def test_files_are_kept_for_ever_or_for_days() -> None:
    assert resolve({}, ENV).retain is None
    assert resolve({"retain": "0"}, ENV | {"KERNELBRIDGE_RETAIN": "30d"}).retain is None
    assert resolve({}, ENV | {"KERNELBRIDGE_RETAIN": "30d"}).retain == 30 * 86400


def test_the_flag_names_the_file_that_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 9000")
    assert resolve({"config": file}, ENV | {"KERNELBRIDGE_CONFIG": "/nowhere"}).port == 9000


def test_toml_types(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'memory = 536870912\ncpus = 2\nlinger = 0.5\nexecution_timeout = 0\nruntime = "local"\nisolation = false\n'
        'allow_origin = ["https://a.example", "http://localhost:3000"]\nmax_output = "1MiB"\n',
    )
    settings = resolve({"config": file}, ENV)
    assert settings.memory == 512 << 20
    assert settings.cpus == 2.0
    assert settings.linger == 0.5
    assert settings.execution_timeout is None
    assert settings.isolation is False
    assert settings.allow_origin == ("https://a.example", "http://localhost:3000")
    assert settings.max_output == 1 << 20


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("port = true", "port: True is not valid: expected a whole number from 0 to 65535"),
        ('port = "8001"', "port: '8001' is not valid"),
        ("port = 70000", "port: 70000 is not valid"),
        ("isolation = 'false'", "isolation: 'false' is not valid: expected true or false"),
        ("memory = 1.5", "memory: 1.5 is not valid: expected a size"),
        ("memory = '32m'", "at least 64m"),
        ("linger = -1", "linger: -1 is not valid: expected a duration"),
        ("data_dir = 3", "data_dir: 3 is not valid: expected a directory"),
        ("allow_origin = [1]", "allow_origin: 1 is not valid"),
        ("[memory]\nx=1", "memory: {'x': 1} is not valid"),
        ("memmory = 1", "'memmory' is not a setting: did you mean memory?"),
        ("data-dir = '/x'", "'data-dir' is not a setting: did you mean data_dir?"),
        ("config = 'x'", "'config' is not a setting"),
        ("[server]\nport = 1", "'server' is not a setting"),
        ("port = ", "is not valid TOML"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, line: str, expected: str) -> None:
    file = write(tmp_path, line)
    text = refusal({"config": file})
    assert expected in text
    assert file in text


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refusal({"config": str(tmp_path / "x.toml")})


def test_a_file_that_is_absent() -> None:
    text = refusal({"config": "/nowhere/kb.toml"})
    assert "/nowhere/kb.toml cannot be read" in text
    assert "check --config" in text


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("KERNELBRIDGE_MEMROY", "1g", "KERNELBRIDGE_MEMROY is not a setting: did you mean KERNELBRIDGE_MEMORY?"),
        ("KERNELBRIDGE_ZZZZZZZZ", "", "KERNELBRIDGE_ZZZZZZZZ is not a setting: `kernelbridge serve --help`"),
        ("KERNELBRIDGE_MEMORY", "12x", "KERNELBRIDGE_MEMORY: '12x' is not valid: expected a size such as 512m"),
        ("KERNELBRIDGE_ISOLATION", "maybe", "KERNELBRIDGE_ISOLATION: 'maybe' is not valid: expected true or false"),
        ("KERNELBRIDGE_RUNTIME", "podman", "expected one of auto, docker, local"),
        ("KERNELBRIDGE_IMAGE", "-v", "expected an image name"),
        ("KERNELBRIDGE_CPUS", "0", "at least 0.01"),
        ("KERNELBRIDGE_CA_BUNDLE", "/nowhere.pem", "'/nowhere.pem' cannot be read"),
        ("KERNELBRIDGE_CA_BUNDLE", "/", "'/' cannot be read"),
        ("KERNELBRIDGE_DATA_DIR", "a\0b", "expected a directory"),
    ],
)
def test_what_a_variable_may_not_say(variable: str, value: str, expected: str) -> None:
    assert expected in refusal(environ={variable: value})


def test_an_overridden_value_is_checked_too() -> None:
    assert "KERNELBRIDGE_PORT: 'x'" in refusal({"port": "1"}, {"KERNELBRIDGE_PORT": "x"})


def test_an_empty_variable_counts_as_absent() -> None:
    assert resolve({}, ENV | {"KERNELBRIDGE_CA_BUNDLE": "", "KERNELBRIDGE_PORT": ""}).port == 8001


def test_the_suites_own_variables_are_no_settings() -> None:
    resolve({}, ENV | {"KERNELBRIDGE_TEST_IMAGE": "x", "OTHER": "y"})


def test_a_flag_is_named_as_it_is_spelled() -> None:
    with pytest.raises(ConfigError, match=r"^--base: '-x' is not valid"):
        resolve({"images_base": "-x"}, ENV, spelling={"images_base": "--base"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "localhost.example.org"])
def test_an_address_beyond_this_machine_is_refused(host: str) -> None:
    text = refusal({"host": host})
    if host:
        assert f"--host: {host!r} is not a loopback address: without authentication, anybody" in text
        assert "--auth token" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_addresses(host: str) -> None:
    assert resolve({"host": host}, ENV).host == host


@given(st.ip_addresses())
def test_only_loopback_networks_are_loopback(address: object) -> None:
    text = str(address)
    assert is_loopback(text) == (text == "::1" or text.startswith(("127.", "::ffff:127.")))


@pytest.mark.parametrize("gpus", ["all", "1", "16", "device=0", "device=GPU-8d1e-4f,1"])
def test_gpus(gpus: str) -> None:
    assert resolve({"gpus": gpus, "runtime": "docker"}, ENV).gpus == gpus
    assert "--gpus is only valid with --runtime docker" in refusal({"gpus": gpus})


@pytest.mark.parametrize("gpus", ["", "none", "0", "-1", "device=", "device=0,", "device=0 1", "all,capabilities=x"])
def test_what_is_no_gpu_is_refused(gpus: str) -> None:
    assert "device=0,1" in refusal({"gpus": gpus, "runtime": "docker"})


def test_another_oci_runtime_is_never_left_out_by_accident() -> None:
    for runtime in ("auto", "local"):
        refused = refusal({"oci_runtime": "runsc"}, {"KERNELBRIDGE_RUNTIME": runtime})
        assert f"--oci-runtime is only valid with --runtime docker: with '{runtime}'" in refused
    assert resolve({"oci_runtime": "runsc", "runtime": "docker"}, ENV).oci_runtime == "runsc"


def test_isolation_is_not_turned_off_by_accident() -> None:
    assert "--no-isolation is only valid with --runtime local: the runtime is 'auto'" in refusal({"isolation": False})
    assert "KERNELBRIDGE_ISOLATION is only valid" in refusal({"runtime": "docker"}, {"KERNELBRIDGE_ISOLATION": "0"})
    assert resolve({"isolation": False, "runtime": "local"}, ENV).isolation is False
    assert resolve({"isolation": True}, ENV | {"KERNELBRIDGE_ISOLATION": "no"}).isolation is True


def test_relative_paths_count_from_where_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = write(tmp_path / "etc", 'data_dir = "data"')
    assert resolve({"config": "etc/server.toml"}, ENV, cwd=tmp_path).data_dir == Path(file).parent / "data"
    assert resolve({"data_dir": "data"}, ENV, cwd=tmp_path).data_dir == tmp_path / "data"


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert resolve({"data_dir": "~/kb"}, ENV).data_dir == Path("/home/ada/kb")
    assert "expected a directory" in refusal({"data_dir": "~nobody-of-that-name/kb"})


def test_the_default_ca_bundle_is_the_one_that_this_machine_trusts(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    assert default_ca_bundle({}) is None
    assert default_ca_bundle({"SSL_CERT_FILE": str(bundle)}) is None
    bundle.write_text("")
    assert default_ca_bundle({"SSL_CERT_FILE": str(bundle)}) == bundle
    assert resolve({}, {"SSL_CERT_FILE": str(bundle)}).ca_bundle == bundle


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({}, 0, "/var/lib/kernelbridge"),
        ({"HOME": "/home/ada"}, 1000, "/home/ada/.local/share/kernelbridge"),
        ({"HOME": "/home/ada", "XDG_DATA_HOME": "/data"}, 1000, "/data/kernelbridge"),
        ({"HOME": "/home/ada", "XDG_DATA_HOME": "relative"}, 1000, "/home/ada/.local/share/kernelbridge"),
    ],
)
def test_the_default_data_directory(environ: dict[str, str], uid: int, expected: str) -> None:
    assert default_data_dir(environ, uid) == Path(expected)


def test_origins_from_flags_and_text_are_joined_without_repeats() -> None:
    settings = resolve({"allow_origin": ("https://A.example:443", "http://[::1]:80,https://a.example")}, ENV)
    assert settings.allow_origin == ("https://a.example", "http://[::1]")
    assert resolve({}, ENV | {"KERNELBRIDGE_ALLOW_ORIGIN": "http://a:1, http://b"}).allow_origin == (
        "http://a:1",
        "http://b",
    )


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "",
        "a.example",
        "https://",
        "https://a/b",
        "https://a?x",
        "https://u@a",
        "ftp://a",
        "https://a:x",
        "https://*.a",
    ],
)
def test_texts_that_are_no_origin(origin: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is the caller's; the standard library's differs
        canonical_origin(origin)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_setting_is_complete(name: str) -> None:
    option = OPTIONS[name]
    assert option.help.endswith(".")
    assert option.group
    assert default_text(name)
    assert variable_name(name) == f"KERNELBRIDGE_{name.upper()}"


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.default_text is None])
def test_a_default_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    environ = ENV | {variable_name(name): default_text(name), "KERNELBRIDGE_DATA_DIR": str(tmp_path)}
    assert resolve({}, environ) == settings


@given(st.dictionaries(st.sampled_from([variable_name(name) for name in OPTIONS]), st.text(max_size=20)))
def test_any_environment_is_resolved_or_refused(environ: dict[str, str]) -> None:
    with suppress(ConfigError):
        assert is_loopback(resolve({}, ENV | environ).host)


def test_only_the_origin_that_is_wrong_is_quoted() -> None:
    message = refusal({"allow_origin": ("https://a.example", "https://b.example, foo")})
    assert message.startswith("--allow-origin: 'foo' is not valid: expected a web origin such as")
    assert "KERNELBRIDGE_ALLOW_ORIGIN: '' is not valid" in refusal(environ={"KERNELBRIDGE_ALLOW_ORIGIN": "http://a,"})


@pytest.mark.parametrize("null", ["null", "NULL", " null"])
def test_the_origin_of_a_page_from_a_file_is_explained(null: str) -> None:
    message = refusal({"allow_origin": (null,)})
    assert "a page opened from a file has no origin" in message
    assert "http://localhost" in message


def test_without_a_home_the_data_directory_has_to_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match=r"no home directory .* set --data-dir"):
        default_data_dir({}, 4321)
    assert default_data_dir({}, 0) == Path("/var/lib/kernelbridge")
    monkeypatch.setattr(
        "kernelbridge.settings.settings.default_data_dir", lambda _environ: pytest.fail("it was not needed")
    )
    assert resolve({"data_dir": str(tmp_path)}, {}).data_dir == tmp_path


@pytest.mark.parametrize(
    "address",
    [
        "unix:///var/run/docker.sock",
        "unix://",
        "http+unix:///run/user/1000/docker.sock",
        "tcp://127.0.0.1:2375",
        "tcp://[::1]:2375",
        "https://engine.example:2376",
        "localhost:2375",
    ],
)
def test_addresses_of_engines(address: str) -> None:
    assert docker_host({"DOCKER_HOST": address}) == address


def test_without_an_address_the_engine_is_where_it_always_is() -> None:
    assert docker_host({}) is None
    assert docker_host({"DOCKER_HOST": ""}) is None


@pytest.mark.parametrize(
    "address", ["garbage", "tcp://nowhere", "unix:/run/docker.sock", "/run/docker.sock", "fd://", "x:y"]
)
def test_what_is_no_address_of_an_engine(address: str) -> None:
    message = refusal(environ={"DOCKER_HOST": address})
    assert message.startswith(f"DOCKER_HOST: {address!r} is not the address of an engine: expected unix:///")
    assert resolve({"runtime": "local"}, ENV | {"DOCKER_HOST": address}).runtime == "local"


def test_an_engine_elsewhere_is_not_supported() -> None:
    assert "the engine must be on this machine" in refusal(environ={"DOCKER_HOST": "ssh://ada@engine.example"})


@pytest.mark.parametrize(
    ("written", "value"), [("off", None), ("1001-1002", (1001, 1002)), ("2000000-2147483647", (2000000, 2147483647))]
)
def test_a_range_of_user_ids(written: str, value: tuple[int, int] | None) -> None:
    assert resolve({"uid_range": written}, {}).uid_range == value


@pytest.mark.parametrize(
    "written", ["0-100", "1000-2000", "5000", "5000-4000", "5000-5000", "2000-2147483648", "no", "-"]
)
def test_what_is_no_range_of_user_ids(written: str) -> None:
    with pytest.raises(ConfigError, match="--uid-range"):
        resolve({"uid_range": written}, {})


def test_the_budget_for_messages_has_room_for_one() -> None:
    assert resolve({"max_buffered": "16m"}, {}).max_buffered == 16 << 20
    with pytest.raises(ConfigError, match=r"--max-buffered: max_buffered must be at least max_message.*16m.*8m"):
        resolve({"max_buffered": "8m"}, {})
    with pytest.raises(ConfigError, match=r"--max-message: max_buffered must be at least max_message"):
        resolve({"max_message": "1g"}, {})


def test_hosts_and_networks_of_sandboxes() -> None:
    settings = resolve({"egress_allow": ("A.example.", "*.b.example:8443,http://c.example")}, {})
    assert list(map(str, settings.egress_allow)) == ["a.example:443", "*.b.example:8443", "http://c.example:80"]
    settings = resolve({}, {"KERNELBRIDGE_EGRESS_ALLOW_NET": "10.0.0.0/8, fd00::/8", "KERNELBRIDGE_EGRESS_RATE": "0"})
    assert list(map(str, settings.egress_allow_net)) == ["10.0.0.0/8", "fd00::/8"]
    assert settings.egress_rate is None
    for wrong in ("a.example/path", "https:/a", "*", "10.1", "a b"):
        with pytest.raises(ConfigError, match="expected a host such as"):
            resolve({"egress_allow": (wrong,)}, {})
    with pytest.raises(ConfigError, match="expected a network such as"):
        resolve({"egress_allow_net": ("10.0.0.1/8",)}, {})


def test_secrets_of_hosts() -> None:
    written = ("a.example=Authorization:/k/1", "A.example:8443=authorization:/k/2", "a.example=X-Key:/k/3")
    settings = resolve({"egress_secret": written}, {})
    assert list(map(str, settings.egress_secret)) == [
        "a.example:443=Authorization:/k/1",
        "a.example:8443=authorization:/k/2",
        "a.example:443=X-Key:/k/3",
    ]
    with pytest.raises(ConfigError, match=r"expected HOST\[:PORT\]=HEADER:FILE with a name as the host"):
        resolve({"egress_secret": ("10.0.0.1=Authorization:/k",)}, {})
    with pytest.raises(ConfigError, match="--egress-secret names a header field of a host twice"):
        resolve({"egress_secret": (*written, "a.example=authorization:/k/4")}, {})
    with pytest.raises(ConfigError, match="--egress-secret is of no use without isolation"):
        resolve({"runtime": "local", "isolation": False, "egress_secret": written}, {})


def test_the_proxy_of_the_operator() -> None:
    assert resolve({"egress_proxy": "http://Proxy.example.:3128/"}, {}).egress_proxy == ("proxy.example", 3128)
    assert resolve({"egress_proxy": "http://[fd00::1]:3128"}, {}).egress_proxy == ("fd00::1", 3128)
    for wrong in ("proxy.example:3128", "https://proxy.example:3128", "http://proxy.example", "http://u:p@proxy:1"):
        with pytest.raises(ConfigError, match="expected a proxy such as"):
            resolve({"egress_proxy": wrong}, {})
    with pytest.raises(ConfigError, match="--egress-proxy is not possible with --egress open"):
        resolve({"egress_proxy": "http://proxy.example:3128", "egress": "open"}, {})


def test_hosts_are_not_chosen_where_nothing_holds_programs_back() -> None:
    bare = {"runtime": "local", "isolation": False}
    resolve(bare, {})
    with pytest.raises(ConfigError, match="--egress is of no use without isolation"):
        resolve({**bare, "egress": "none"}, {})


@pytest.mark.parametrize("auth", ["token", "proxy", "jwt"])
def test_with_authentication_any_address_will_do(auth: str) -> None:
    assert resolve({"host": "0.0.0.0", "auth": auth}, ENV).host == "0.0.0.0"


def test_a_unix_socket_is_as_near_as_loopback() -> None:
    settings = resolve({"listen": "unix:/run/kb.sock", "host": "0.0.0.0"}, ENV)
    assert settings.listen == Path("/run/kb.sock")


@pytest.mark.parametrize("value", ["/run/kb.sock", "unix:kb.sock", "unix:", "tcp:8001", f"unix:/{'x' * 107}"])
def test_what_is_no_unix_socket(value: str) -> None:
    assert "--listen: " in refusal({"listen": value})


def test_trusted_proxies() -> None:
    networks = resolve({"trusted_proxy": ("127.0.0.1", "10.0.0.0/8,unix")}, ENV).trusted_proxy
    assert [str(one) for one in networks] == ["127.0.0.1/32", "10.0.0.0/8", "unix"]
    for wrong in ("localhost", "10.0.0.1/8", "10.0.0.0/33"):
        assert "--trusted-proxy: " in refusal({"trusted_proxy": (wrong,)})


def test_a_key_without_its_certificate() -> None:
    assert "--tls-key needs --tls-cert" in refusal({"tls_key": "/key"})


def test_what_no_sandbox_may_see(tmp_path: Path) -> None:
    def own(**more: Any) -> set[str]:
        settings = Settings(data_dir=tmp_path / "data", **more)
        return {path.name for path in settings.own_files()} - {"data"}

    key = {"jwt_key": tmp_path / "key", "jwt_jwks_file": tmp_path / "keys"}
    assert own() == set()
    assert own(token_file=tmp_path / "tokens", audit_log=tmp_path / "log") == {"tokens", "log"}
    assert own(tls_cert=tmp_path / "cert") == {"cert"}
    assert own(tls_cert=tmp_path / "cert", tls_key=tmp_path / "key") == {"key"}
    assert own(**key) == set()  # they are public
    assert own(jwt_algorithm="HS256", **key) == {"key", "keys"}
    assert own(listen=tmp_path / "socket", metrics_listen=tmp_path / "metrics") == {"socket", "metrics"}
    assert own(metrics_listen=("127.0.0.1", 9000)) == set()
    assert own(egress_secret=(read_secret_rule(f"api.example=X-Key:{tmp_path}/secret"),)) == {"secret"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("user_header", "X" * 64),
        ("oci_runtime", "io.containerd.kata.v2"),
        ("oci_runtime", "crun_1-2"),
        ("port", "0"),
        ("port", "65535"),
        ("pids", "32"),
        ("cpus", "0.01"),
        ("memory", "64m"),
    ],
)
def test_the_outermost_values_are_accepted(flag: str, value: str) -> None:
    assert resolve({"runtime": "docker", flag: value}, ENV) is not None


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("user_header", "X" * 65),
        ("user_header", ""),
        ("user_header", "X Y"),
        ("oci_runtime", ".runc"),
        ("oci_runtime", "-runc"),
        ("oci_runtime", ""),
        ("oci_runtime", "a/b"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "1.0"),
        ("pids", "31"),
        ("cpus", "0.009"),
        ("cpus", "1e3"),
        ("memory", "63m"),
        ("host", "a\nb"),
        ("data_dir", ""),
        ("start_timeout", "-1"),
    ],
)
def test_values_beyond_them_are_refused(flag: str, value: str) -> None:
    with pytest.raises(ConfigError):
        resolve({"runtime": "docker", flag: value}, ENV)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"egress_proxy": "http://p:1", "egress": "open"}, "not possible with --egress open"),
        ({"audit_code": True}, "only valid with --audit-log"),
        (
            {"egress_secret": ("a.org=A:/f", "a.org=a:/g")},
            "names a header field of a host twice",
        ),
        ({"max_message": "2m", "max_buffered": "1m"}, "max_buffered must be at least max_message"),
        ({"ca_bundle": "/nowhere.pem"}, "cannot be read"),
        ({"isolation": False, "runtime": "docker"}, "only valid with --runtime local"),
        ({"gpus": "all"}, "only valid with --runtime docker"),
    ],
)
def test_values_that_contradict_each_other_are_refused(flags: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        resolve(flags, ENV)


def test_values_that_are_near_a_contradiction_are_accepted() -> None:
    assert resolve({"egress_secret": ("a.org=A:/f", "a.org=B:/f", "b.org=A:/f")}, ENV).egress_secret
    assert resolve({"max_message": "1m", "max_buffered": "1m"}, ENV).max_buffered == 1 << 20


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (kinds.listener(), "[::1]:0", ("::1", 0)),
        (kinds.listener(), "localhost:65535", ("localhost", 65535)),
        (kinds.listener(), "unix:a/b", Path("a/b")),
        (kinds.unix_socket(), "unix:/" + "x" * 106, Path("/" + "x" * 106)),
        (kinds.switch(), "ON", True),
        (kinds.switch(), "0", False),
        (kinds.size(10, unlimited=True), "0", None),
        (kinds.size(10), "10", 10),
        (kinds.duration(1, unlimited=True), "0", None),
        (kinds.duration(1), "1", 1.0),
        (kinds.decimal("N", 0.5), "0.5", 0.5),
        (kinds.integer("N", 1, 3), "3", 3),
        (kinds.uid_range(), "1001-1002", (1001, 1002)),
        (kinds.uid_range(), "1001-2147483647", (1001, 2147483647)),
    ],
)
def test_a_value_is_read_and_written_the_same(kind: kinds.Kind, text: str, value: object) -> None:
    assert kind.read(text) == value
    assert kind.read(kind.write(value)) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (kinds.listener(), "h:65536"),
        (kinds.listener(), "unix:"),
        (kinds.listener(), "h"),
        (kinds.unix_socket(), "unix:/" + "x" * 107),
        (kinds.unix_socket(), "unix:a"),
        (kinds.unix_socket(), "/a"),
        (kinds.switch(), "maybe"),
        (kinds.size(10), "0"),
        (kinds.size(10, unlimited=True), "9"),
        (kinds.duration(1), "0"),
        (kinds.duration(1), "999ms"),
        (kinds.integer("N", 1, 3), "0"),
        (kinds.integer("N", 1, 3), "4"),
        (kinds.integer("N", 1), "+2"),
        (kinds.uid_range(), "1000-2000"),
        (kinds.uid_range(), "2000-2000"),
        (kinds.uid_range(), "2000-2147483648"),
        (kinds.choice("a", "b"), "c"),
    ],
)
def test_a_value_that_is_none_is_refused(kind: kinds.Kind, text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        kind.read(text)
