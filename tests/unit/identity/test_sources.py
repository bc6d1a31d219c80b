"""Settings of authentication that do not fit together keep a server from starting."""

import time
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import ConfigError
from kernelbridge.identity.principal import Identity, Refused, Verdict
from kernelbridge.identity.sources import open_source
from kernelbridge.identity.tokens import new_token
from kernelbridge.settings.settings import resolve
from tests.unit.identity.test_json_web_tokens import AUDIENCE, ISSUER, PUBLIC, token


def settings(tmp_path: Path, **flags: Any) -> Any:
    return resolve({"data_dir": str(tmp_path / "data"), **flags}, {})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"auth": "token"}, "--auth token needs --token-file: `kernelbridge token new"),
        ({"auth": "token", "token_file": "/absent/tokens"}, "--token-file: '/absent/tokens' cannot be used: No such"),
        ({"auth": "proxy"}, "--auth proxy needs --trusted-proxy"),
        ({"auth": "jwt"}, "--auth jwt needs --jwt-issuer and --jwt-audience"),
        ({"auth": "jwt", "jwt_issuer": "i"}, "--auth jwt needs --jwt-issuer and --jwt-audience"),
        ({"auth": "jwt", "jwt_issuer": "i", "jwt_audience": "a"}, "--auth jwt needs --jwt-key or --jwt-jwks-file"),
        (
            {"auth": "jwt", "jwt_issuer": "i", "jwt_audience": "a", "jwt_key": "/k", "jwt_jwks_file": "/j"},
            "give one of them",
        ),
        ({"auth": "jwt", "jwt_issuer": "i", "jwt_audience": "a", "jwt_key": "/dev/null"}, "it is not a file"),
        # A server whose operator believes that it asks for tokens.
        ({"token_file": "/t"}, "--token-file means nothing with --auth none: add --auth token"),
        ({"admin": ("ada",)}, "--admin means nothing with --auth none"),
        ({"auth": "token", "jwt_key": "/k"}, "--jwt-key means nothing with --auth token"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, flags: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_source(settings(tmp_path, **flags))
    assert expected in str(refused.value)


def test_a_token_file_with_a_mistake(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    token = new_token()
    tokens.write_text(f"# staff\nada {token} admn\n")
    with pytest.raises(ConfigError, match=r"cannot be used: line 2: ") as refused:
        open_source(settings(tmp_path, auth="token", token_file=str(tokens)))
    assert token not in str(refused.value)
    tokens.write_bytes(b"\xff")
    with pytest.raises(ConfigError):
        open_source(settings(tmp_path, auth="token", token_file=str(tokens)))


def test_keys_stay_in_force_while_there_are_no_new_ones(tmp_path: Path) -> None:
    """Nothing is fetched: what fetches them may have failed in the middle."""
    keys = tmp_path / "keys"
    keys.write_bytes(PUBLIC)
    flags = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_key": str(keys)}
    source = open_source(settings(tmp_path, auth="jwt", **flags))
    assert source is not None

    def judged() -> Verdict:
        source.refresh()
        source.refresh()
        return source.value.judge(token(), time.time())

    assert isinstance(judged(), Identity)
    for mistake in (b"", PUBLIC[:100], b"<html>502 Bad Gateway</html>"):
        keys.write_bytes(mistake)
        assert isinstance(judged(), Identity), mistake
    keys.unlink()
    assert isinstance(judged(), Refused)


def test_nothing_to_check_tokens_with(tmp_path: Path) -> None:
    assert open_source(settings(tmp_path)) is None
    assert open_source(settings(tmp_path, auth="proxy", trusted_proxy=("127.0.0.1",))) is None
