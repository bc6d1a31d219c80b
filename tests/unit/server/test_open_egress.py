"""The way out of the sandboxes that the settings describe, and what is noted of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trustme
from structlog.testing import capture_logs

from kernelbridge.audit.audit import Audit, By
from kernelbridge.egress.proxy import Access
from kernelbridge.errors import ConfigError
from kernelbridge.identity.principal import Principal
from kernelbridge.metrics import Metrics
from kernelbridge.server import open_egress
from kernelbridge.server.open_egress import opened_egress
from kernelbridge.settings.settings import Settings, resolve
from kernelbridge.workspace.egress import Egress
from kernelbridge.workspace.session_key import SessionKey


async def look_up(*_: object) -> Any:
    raise AssertionError


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let nothing but the test configure proxies and indexes."""
    for name in ("HTTPS_PROXY", "https_proxy", "PIP_INDEX_URL", "NPM_CONFIG_REGISTRY", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("HOME", str(tmp_path))


def settings(tmp_path: Path, **flags: object) -> Settings:
    return resolve({"data_dir": str(tmp_path / "data"), **flags}, {"HOME": str(tmp_path)})


async def opened(tmp_path: Path, audit: Any = None, metrics: Any = None, **flags: object) -> Egress:
    (tmp_path / "data").mkdir(exist_ok=True)
    noted = (cast("Metrics", metrics), cast("Audit", audit))
    async with opened_egress(settings(tmp_path, **flags), tmp_path / "data", *noted, look_up) as egress:
        return egress


async def test_rates_are_those_of_the_settings(tmp_path: Path) -> None:
    egress = await opened(tmp_path, egress_rate="1m", egress_bytes="2m")
    assert (egress.rate, egress.total) == (1 << 20, 2 << 20)
    assert egress.secret_hosts is None
    assert "HTTPS_PROXY" in egress.network.environment("/shared")


async def test_an_authority_of_the_operator_is_trusted_besides_others(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    egress = await opened(tmp_path, ca_bundle=str(tmp_path / "ca.pem"))
    (given,) = egress.network.files.values()
    assert (tmp_path / "ca.pem").read_bytes().strip() in given
    assert (await opened(tmp_path, ca_bundle=None)).network is not None


async def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="certificate authorities cannot be read"):
        await opened(tmp_path, ca_bundle=str(tmp_path / "ca.pem"))


async def test_what_is_left_out_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@index.example/simple")
    with capture_logs() as logged:
        await opened(tmp_path)
    assert {entry["event"] for entry in logged} >= {"upstream_proxy_not_used", "index_password_left_out"}
    assert "secret" not in str(logged)
    with capture_logs() as logged:
        await opened(tmp_path, egress_proxy="http://p:1")
    assert "upstream_proxy_not_used" not in {entry["event"] for entry in logged}


@pytest.mark.parametrize(
    ("access", "counted", "audited"),
    [
        (Access("opened", "h", 1), [("connection", "allowed")], False),
        (Access("closed", "h", 1, sent=2, received=3), [("bytes", 2, 3)], False),
        (Access("denied", "h", 1, "not_allowed"), [("connection", "denied")], True),
        (Access("failed", "h", 1, "refused"), [("connection", "failed")], False),
    ],
)
def test_each_access_is_counted_and_a_refusal_audited(access: Access, counted: list[Any], *, audited: bool) -> None:
    noted: list[Any] = []
    metrics = SimpleNamespace(
        egress_connection=lambda outcome: noted.append(("connection", outcome)),
        egress_bytes=lambda sent, received: noted.append(("bytes", sent, received)),
    )
    denied: list[Any] = []
    audit = SimpleNamespace(egress_denied=lambda by, **what: denied.append((by, what)))
    key = SessionKey(Principal("ada"), "s")
    open_egress._note_access(cast("Metrics", metrics), cast("Audit", audit), key, access)
    assert noted == counted
    expected = [(By(Principal("ada"), "s"), {"host": "h", "port": 1, "reason": "not_allowed"})] if audited else []
    assert denied == expected
