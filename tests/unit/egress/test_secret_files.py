"""What a server with secrets needs before it starts."""

from pathlib import Path

import pytest
import trustme

from kernelbridge.egress.policy import Admitted
from kernelbridge.egress.secret_files import AUTHORITY, open_secrets, secret_hosts
from kernelbridge.egress.secrets import Secret, read_secret_rule
from kernelbridge.errors import ConfigError


def write(path: Path, value: str) -> Path:
    path.touch(0o600)
    path.write_text(value)
    return path


def test_a_host_may_have_several_fields(tmp_path: Path) -> None:
    rules = [
        read_secret_rule(f"a.example={name}:{write(tmp_path / name, name)}") for name in ("Authorization", "X-Project")
    ]
    hosts = secret_hosts(tmp_path, open_secrets(rules), trustme.CA().cert_pem.bytes())
    assert hosts is not None
    found = hosts.headers_of(Admitted("a.example", 443, ()))
    values = [(header.name, header.source.value) for header in found]
    assert values == [("Authorization", Secret(b"Authorization")), ("X-Project", Secret(b"X-Project"))]
    assert hosts.headers_of(Admitted("a.example", 8443, ())) == ()
    assert hosts.headers_of(Admitted("b.a.example", 443, ())) == ()
    assert (tmp_path / AUTHORITY).stat().st_mode & 0o777 == 0o600


def test_a_machine_that_knows_no_authorities_gives_sandboxes_no_file_without_them(tmp_path: Path) -> None:
    secrets = open_secrets([read_secret_rule(f"a.example=Authorization:{write(tmp_path / 'key', 'k')}")])
    with pytest.raises(ConfigError, match=r"this machine, and it has none: .* ca-certificates"):
        secret_hosts(tmp_path, secrets, b"\n")


def test_without_secrets_there_is_no_authority(tmp_path: Path) -> None:
    assert secret_hosts(tmp_path, open_secrets([]), b"") is None
    assert list(tmp_path.iterdir()) == []
