"""The indexes that the operator has configured: pip's files and variables, npm's registry."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from kernelbridge.egress.indexes import Indexes, read_indexes
from kernelbridge.egress.policy import PACKAGES, read_rule


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for name in ("etc", "home/.config/pip", "home/.pip", "prefix"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def read(machine: Path, environ: Mapping[str, str] | None = None) -> Indexes:
    return read_indexes(environ or {}, machine / "prefix", machine / "home", machine / "etc")


def test_without_any_configuration_packages_are_those_of_pypi(machine: Path) -> None:
    assert read(machine) == Indexes()
    assert Indexes().rules == PACKAGES
    assert Indexes().environment == {}


def test_later_files_win_and_variables_over_all(machine: Path) -> None:
    places = ("etc/pip.conf", "home/.pip/pip.conf", "home/.config/pip/pip.conf", "prefix/pip.conf")
    for number, place in enumerate(places):
        (machine / place).write_text(f"[global]\nindex-url = https://i{number}.example/simple\n")
        assert read(machine).index == f"https://i{number}.example/simple"
    own = machine / "own.conf"
    own.write_text("[install]\nindex_url = https://own.example/simple\n")
    environ = {"PIP_CONFIG_FILE": str(own)}
    assert read(machine, environ).index == "https://own.example/simple"
    assert read(machine, {**environ, "PIP_INDEX_URL": "https://v.example"}).index == "https://v.example"
    assert read(machine, {"PIP_CONFIG_FILE": "/dev/null"}).index is None


def test_all_of_them_are_allowed_and_passed_on(machine: Path) -> None:
    (machine / "etc/pip.conf").write_text(
        "[global]\nindex-url = https://index.corp:8443/simple\n"
        "extra-index-url = http://old.corp/simple\n    https://more.corp/simple\n    file:///srv/simple\n"
        "trusted-host = old.corp\ncert = /etc/corp.pem\n"
    )
    found = read(machine, {"NPM_CONFIG_REGISTRY": "https://npm.corp/"})
    names = ("index.corp:8443", "http://old.corp", "more.corp", "npm.corp")
    assert found.rules == (*PACKAGES, *map(read_rule, names))
    extra = "http://old.corp/simple https://more.corp/simple"
    assert found.environment == {
        "PIP_INDEX_URL": "https://index.corp:8443/simple",
        "PIP_EXTRA_INDEX_URL": extra,
        "PIP_TRUSTED_HOST": "old.corp",
        "UV_DEFAULT_INDEX": "https://index.corp:8443/simple",
        "UV_INDEX": extra,
        "UV_INSECURE_HOST": "old.corp",
        "npm_config_registry": "https://npm.corp/",
    }


def test_passwords_stay_on_the_server(machine: Path) -> None:
    found = read(machine, {"PIP_INDEX_URL": "https://ada:s3cret@index.corp/simple"})
    assert found.index == "https://index.corp/simple"
    assert found.with_password == ("index.corp",)
    assert "s3cret" not in str(found)
    variables = {
        "PIP_EXTRA_INDEX_URL": "https://b:s3cret@more.corp/s",
        "npm_config_registry": "https://c:s3cret@npm.corp",
    }
    found = read(machine, variables)
    assert (found.extra, found.npm) == (("https://more.corp/s",), "https://npm.corp")
    assert found.with_password == ("more.corp", "npm.corp")
    assert "s3cret" not in str((found, found.environment, found.rules))


@pytest.mark.parametrize(
    "content", ["no section", "[global\nindex-url", "[global]\nindex-url =", "[global]\nindex-url = x:y"]
)
def test_what_cannot_be_read_is_left_out(machine: Path, content: str) -> None:
    (machine / "etc/pip.conf").write_text(content)
    assert read(machine) == Indexes()
