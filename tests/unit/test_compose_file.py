import re
from dataclasses import fields
from pathlib import Path

from kernelbridge.settings.settings import Settings

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
NOT_PASSED_ON = {
    # A server in a container has an engine and no bubblewrap.
    "runtime",
    "isolation",
    # The container does not see the host's files.
    "seccomp_profile",
    "ca_bundle",
    "config",
    # The health check connects to the port, without TLS.
    "listen",
    "tls_cert",
    "tls_key",
}


def test_every_setting_that_means_something_there_is_passed_on() -> None:
    passed_on = set(re.findall(r"^ +KERNELBRIDGE_([A-Z_]+):", COMPOSE.read_text(encoding="utf-8"), re.MULTILINE))
    settings = {field.name for field in fields(Settings)}
    assert settings >= NOT_PASSED_ON
    assert passed_on == {name.upper() for name in settings - NOT_PASSED_ON}
