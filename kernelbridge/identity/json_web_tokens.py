"""JSON Web Tokens: one pinned algorithm, and the operator's keys.

No I/O, but PyJWT looks at the clock for exp, nbf and iat.

A token chooses nothing: not the algorithm, and not where its key comes from (`jku`, `x5u`, `jwk` and `x5c` are never
looked at). It names one of the operator's keys by `kid` at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import jwt
from jwt.algorithms import get_default_algorithms

from kernelbridge.identity.credentials import LONGEST_TOKEN
from kernelbridge.identity.principal import EXPECTED_NAME, Identity, Principal, Refused, Verdict, is_name

SECRET = "HS256"  # noqa: S105  a name
"""The algorithm whose key is a secret that also makes tokens."""
LEEWAY = 30.0
"""Seconds that the issuer's clock may be ahead. An expiry has none: what it promises, it keeps."""
_LATEST = 253_402_300_799
"""The last second of the year 9999."""
_KINDS = MappingProxyType({"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP", "HS": "oct"})
"""The `kty` of keys, by the beginning of the algorithm's name."""
_SHORTEST_SECRET = 32


class WrongKeyError(ValueError):
    """A key file that cannot be used. Does not repeat the key."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key that tokens are checked with."""

    kid: str | None
    fingerprint: str
    material: Any
    """As PyJWT takes it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token must be."""

    algorithm: str
    issuer: str
    audience: str


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are accepted."""

    rules: Rules
    keys: tuple[Key, ...]

    def judge(self, token: str, now: float) -> Verdict:
        """Return whose token it is. The signature is checked before anything that the token says is used."""
        try:
            key, claims = _verified(token, self.keys, self.rules)
            return _identity(key, claims, self.rules, now)
        except Exception as exc:  # noqa: BLE001  hostile bytes: whatever they do to a library, it is not a valid token
            return Refused(_reason(exc))

    def still(self, identity: Identity) -> bool:
        """Return whether the key that signed a token is still one of the issuer's."""
        return any(key.fingerprint == identity.proof for key in self.keys)


def parse_key(data: bytes, algorithm: str) -> tuple[Key, ...]:
    """Read a key: a public key in PEM, or a secret of at least 32 bytes. Raises `WrongKeyError`."""
    secret = algorithm == SECRET
    text = data.strip()
    if secret and len(text) < _SHORTEST_SECRET:
        raise WrongKeyError(f"the secret must have at least {_SHORTEST_SECRET} bytes")
    if b"PRIVATE KEY" in text:
        raise WrongKeyError("it is a private key, which only the issuer should have; give the public key")
    return (Key(None, sha256(text).hexdigest(), _prepared(text, algorithm)),)


def parse_key_set(data: bytes, algorithm: str) -> tuple[Key, ...]:
    """Read a JSON Web Key Set. Keys for other algorithms and uses are left out.

    Raises `WrongKeyError`, also if none is left.
    """
    try:
        entries = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise WrongKeyError('expected a JSON Web Key Set: {"keys": [{"kty": …}, …]}')
    keys = []
    for entry in entries:
        if not isinstance(entry, dict) or not _is_for(entry, algorithm):
            continue
        if "d" in entry:
            raise WrongKeyError("it has a private key, which only the issuer should have; give public keys")
        kid = entry.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise WrongKeyError("a kid is not a text")
        fingerprint = sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
        try:
            material = jwt.PyJWK(entry, algorithm=algorithm).key
        except Exception as exc:  # whatever the library raises for a key that it cannot read
            raise WrongKeyError(f"the key with the kid {kid!r} cannot be used for {algorithm}") from exc
        keys.append(Key(kid, fingerprint, _checked(material, algorithm)))
    if not keys:
        raise WrongKeyError(f"no key in it is for {algorithm}")
    kids = [key.kid for key in keys]
    if len(set(kids)) != len(kids):
        raise WrongKeyError("two of its keys have the same kid, or none")
    return tuple(keys)


class _WrongTokenError(Exception):
    """What is wrong with a token, in words for its client."""


_REASONS: Mapping[type[Exception], str] = MappingProxyType(
    {
        jwt.ExpiredSignatureError: "the token has expired",
        jwt.ImmatureSignatureError: "the token is not valid yet; check the issuer's clock",
        jwt.InvalidAudienceError: "the token is for another audience",
        jwt.InvalidIssuerError: "the token is of another issuer",
    }
)


def _reason(exc: Exception) -> str:
    match exc:
        case _WrongTokenError():
            return str(exc)
        case jwt.MissingRequiredClaimError():
            return f"the token lacks the claim {exc.claim}"
    return _REASONS.get(type(exc), "the token is not a valid JSON Web Token for this server")


def _verified(token: str, keys: Sequence[Key], rules: Rules) -> tuple[Key, dict[str, Any]]:
    """Return the key that signed a token, and the claims."""
    if len(token) > LONGEST_TOKEN:
        raise _WrongTokenError(f"the token is longer than {LONGEST_TOKEN} characters")
    header = jwt.get_unverified_header(token)
    if "crit" in header:
        raise _WrongTokenError("the token needs an extension that this server does not know (crit)")
    key = _chosen(keys, header.get("kid"))
    if key is None:
        raise _WrongTokenError("the token is signed with a key that this server does not have")
    claims = jwt.decode(
        token,
        key.material,
        algorithms=[rules.algorithm],
        audience=rules.audience,
        issuer=rules.issuer,
        leeway=LEEWAY,
        options={"require": ["exp", "iat", "aud", "iss", "sub"], "enforce_minimum_key_length": True},
    )
    return key, claims


def _identity(key: Key, claims: Mapping[str, Any], rules: Rules, now: float) -> Identity:
    subject, expires = claims["sub"], float(claims["exp"])
    if not expires <= _LATEST:
        raise _WrongTokenError("the token's exp is not a time")
    if expires <= now:
        raise _WrongTokenError(_REASONS[jwt.ExpiredSignatureError])
    if not isinstance(subject, str) or not is_name(subject):
        raise _WrongTokenError(f"the token's sub must be {EXPECTED_NAME}")
    return Identity(Principal(subject, rules.issuer), expires=expires, proof=key.fingerprint)


def _chosen(keys: Sequence[Key], kid: object) -> Key | None:
    if kid is None:
        return keys[0] if len(keys) == 1 else None
    # A single key in PEM has no name, so any name means it.
    return next((key for key in keys if key.kid == kid or (key.kid is None and len(keys) == 1)), None)


def _is_for(entry: dict[str, Any], algorithm: str) -> bool:
    operations = entry.get("key_ops", ["verify"])
    return (
        entry.get("kty") == _KINDS[algorithm[:2]]
        and entry.get("alg", algorithm) == algorithm
        and entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _prepared(text: bytes, algorithm: str) -> Any:
    try:
        return _checked(get_default_algorithms()[algorithm].prepare_key(text), algorithm)
    except WrongKeyError:
        raise
    except Exception as exc:  # whatever the library raises for a key that it cannot read
        raise WrongKeyError(f"expected a public key in PEM for {algorithm}") from exc


def _checked(material: Any, algorithm: str) -> Any:
    """Return the key, if it is strong enough and of the right kind."""
    try:
        weak = get_default_algorithms()[algorithm].check_key_length(material)
    except Exception as exc:  # of another kind: the library raises what it likes
        raise WrongKeyError(f"it is not a key for {algorithm}") from exc
    if weak:
        raise WrongKeyError(f"the key is too short for {algorithm}")
    return material
