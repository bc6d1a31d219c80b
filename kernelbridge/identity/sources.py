"""What tokens are checked with, as the settings say: a token file, or the keys of an issuer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from kernelbridge.errors import ConfigError
from kernelbridge.identity.principal import Identity, Verdict
from kernelbridge.identity.tokens import Tokens, parse_tokens
from kernelbridge.settings.settings import Settings, is_loopback
from kernelbridge.settings.sources import flag_name
from kernelbridge.watched_file import WatchedFile

_ONLY_WITH: Mapping[str, str] = MappingProxyType(
    {
        "token_file": "token",
        "jwt_key": "jwt",
        "jwt_jwks_file": "jwt",
        "jwt_audience": "jwt",
        "jwt_issuer": "jwt",
    }
)
"""Settings that a server would ignore, and the mode that its operator probably meant."""


class Checker(Protocol):
    """Checks tokens: `Tokens` or `Issuer` (`json_web_tokens`)."""

    def judge(self, token: str, now: float) -> Verdict:
        """Return whose token it is, or why it is refused. `now`: seconds since the epoch."""
        ...

    def still(self, identity: Identity) -> bool:
        """Return whether what an identity was proved with is still valid, its expiry aside."""
        ...


def open_source(settings: Settings) -> WatchedFile[Checker] | None:
    """Return what tokens are checked with, None for `--auth none` and `proxy`. Raises `ConfigError`; blocking."""
    for name, mode in _ONLY_WITH.items():
        if getattr(settings, name) is not None and settings.auth != mode:
            raise ConfigError(
                f"{flag_name(name)} means nothing with --auth {settings.auth}",
                f"add --auth {mode}, or leave {flag_name(name)} out",
            )
    if settings.admin and settings.auth == "none":
        raise ConfigError(
            "--admin means nothing with --auth none",
            "anybody could take that name, and everybody on this machine is an administrator; add --auth, or leave "
            "--admin out",
        )
    if settings.auth == "proxy" and not settings.trusted_proxy:
        raise ConfigError(
            "--auth proxy needs --trusted-proxy",
            "name the address of the proxy, or `unix` for a proxy that comes by --listen unix:PATH; what other peers "
            f"say in {settings.user_header} is not believed",
        )
    if settings.auth == "token":
        return _token_file(settings)
    return _issuer(settings) if settings.auth == "jwt" else None


class Mistake(NamedTuple):
    """Something about logins that the operator hardly wants, and what to do."""

    found: str
    fix: str


def likely_mistake(settings: Settings, source: WatchedFile[Checker] | None) -> Mistake | None:
    """Return what is probably wrong with settings that are possible."""
    if source is not None and isinstance(source.value, Tokens) and not source.value.valid(time.time()):
        make = f"`kernelbridge token new NAME --token-file {settings.token_file}`"
        return Mistake("no token is valid, so nobody can log in", make)
    clear = settings.tls_cert is None and settings.listen is None and not is_loopback(settings.host)
    if clear and settings.auth in {"token", "jwt"}:
        found = f"without TLS, everybody on the way to {settings.host} can read the tokens"
        return Mistake(found, "use --tls-cert, or listen on 127.0.0.1 behind a proxy with TLS")
    return None


def _token_file(settings: Settings) -> WatchedFile[Checker]:
    if settings.token_file is None:
        raise ConfigError(
            "--auth token needs --token-file",
            "`kernelbridge token new NAME --token-file FILE` makes a token, and the file",
        )
    return WatchedFile(
        settings.token_file,
        lambda data: parse_tokens(data.decode()),
        empty=Tokens({}),
        secret=True,
        setting="--token-file",
    )


def _issuer(settings: Settings) -> WatchedFile[Checker]:
    from kernelbridge.identity.json_web_tokens import (  # noqa: PLC0415 - 0.1 s of the start of all servers
        SECRET,
        Issuer,
        Rules,
        parse_key,
        parse_key_set,
    )

    algorithm, key, key_set = settings.jwt_algorithm, settings.jwt_key, settings.jwt_jwks_file
    if settings.jwt_issuer is None or settings.jwt_audience is None:
        raise ConfigError(
            "--auth jwt needs --jwt-issuer and --jwt-audience",
            "without them, a token that was made for another service would be good here",
        )
    if key is not None and key_set is None:
        path, setting, parse = key, "--jwt-key", parse_key
    elif key_set is not None and key is None:
        path, setting, parse = key_set, "--jwt-jwks-file", parse_key_set
    else:
        raise ConfigError(
            "--auth jwt needs --jwt-key or --jwt-jwks-file", "give one of them: the keys with which tokens are checked"
        )
    rules = Rules(algorithm, settings.jwt_issuer, settings.jwt_audience)
    return WatchedFile(
        path,
        lambda data: Issuer(rules, parse(data, algorithm)),
        empty=Issuer(rules, ()),
        secret=algorithm == SECRET,
        setting=setting,
    )
