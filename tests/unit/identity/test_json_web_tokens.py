"""JSON Web Tokens: what a valid one says, and forged ones of every known kind."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.identity.credentials import LONGEST_TOKEN
from kernelbridge.identity.json_web_tokens import (
    LEEWAY,
    Issuer,
    Key,
    Rules,
    WrongKeyError,
    parse_key,
    parse_key_set,
)
from kernelbridge.identity.principal import Identity, Principal, Refused, Verdict

ISSUER, AUDIENCE = "https://login.example.org", "kernelbridge"
RULES = Rules("RS256", ISSUER, AUDIENCE)
NOW = int(time.time())
END = NOW + 86400
"""The whole run of the tests is before it."""


def pem(public: Any) -> bytes:
    data: bytes = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return data


RSA, OTHER = (rsa.generate_private_key(65537, 2048) for _ in range(2))
PUBLIC = pem(RSA.public_key())
KEYS = parse_key(PUBLIC, "RS256")


def claims(**changes: Any) -> dict[str, Any]:
    made = {"sub": "ada", "iss": ISSUER, "aud": AUDIENCE, "iat": NOW, "exp": END, **changes}
    return {name: value for name, value in made.items() if value is not ...}


def token(key: Any = RSA, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers)


def raw(header: object, payload: object, signature: bytes = b"") -> str:
    """Return a token as no library would make it."""

    def part(value: object) -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    return ".".join((part(header), part(payload), part(signature)))


def verdict(text: str, keys: tuple[Key, ...] = KEYS, rules: Rules = RULES) -> Verdict:
    return Issuer(rules, keys).judge(text, time.time())


def test_a_valid_token() -> None:
    found = verdict(token())
    assert found == Identity(Principal("ada", ISSUER), expires=END, proof=KEYS[0].fingerprint)
    assert verdict(token(aud=["other", AUDIENCE])) == found
    assert verdict(token(headers={"kid": "whatever"})) == found
    # Where its key is said to be is not looked at.
    elsewhere = {"jku": "https://evil.example/keys", "x5u": "https://evil.example/x", "jwk": {"kty": "oct", "k": "AA"}}
    assert verdict(token(headers=elsewhere)) == found


def test_an_issuers_clock_may_be_ahead_a_little() -> None:
    now = time.time()
    assert isinstance(verdict(token(iat=now + LEEWAY - 10, nbf=now + LEEWAY - 10)), Identity)
    assert isinstance(verdict(token(iat=now + LEEWAY + 60)), Refused)
    assert isinstance(verdict(token(nbf=now + LEEWAY + 60)), Refused)


@pytest.mark.parametrize("past", [1, LEEWAY - 5, LEEWAY + 5, 1e6])
def test_an_expiry_is_kept_to_the_second(past: float) -> None:
    assert verdict(token(exp=time.time() - past)) == Refused("the token has expired")


@pytest.mark.parametrize("claim", ["exp", "iat", "aud", "iss", "sub"])
def test_a_claim_that_is_absent(claim: str) -> None:
    absent: dict[str, Any] = {claim: ...}
    assert verdict(token(**absent)) == Refused(f"the token lacks the claim {claim}")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "other"},
        {"aud": []},
        {"aud": {"kernelbridge": 1}},
        {"iss": "https://evil.example"},
        {"iss": [ISSUER]},
        {"sub": ""},
        {"sub": "a\0b"},
        {"sub": "x" * 257},
        {"exp": "soon"},
        {"exp": None},
        {"exp": True},
        {"exp": 1e300},
        {"exp": 10**400},
        {"exp": [END]},
        {"iat": "x"},
    ],
)
def test_a_claim_that_is_wrong(changes: dict[str, Any]) -> None:
    assert isinstance(verdict(signed({"alg": "RS256"}, claims(**changes))), Refused)


def test_an_extension_that_the_library_knows_is_refused_too() -> None:
    assert isinstance(verdict(signed({"alg": "RS256"}, claims())), Identity)
    assert isinstance(verdict(signed({"alg": "RS256", "crit": ["b64"], "b64": True}, claims())), Refused)


def signed(header: object, payload: object) -> str:
    """Return a token with a valid signature, as no library would make it."""
    body = raw(header, payload).rpartition(".")[0]
    signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(body.encode(), RSA)
    return f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def hs256(key: bytes) -> str:
    body = raw({"alg": "HS256", "typ": "JWT"}, claims()).rpartition(".")[0]
    signature = hmac.new(key, body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


FORGED = [
    hs256(PUBLIC),  # the public key as a secret
    hs256(PUBLIC.strip()),
    hs256(b""),
    raw({"alg": "none"}, claims()),
    raw({"alg": "None"}, claims()),
    raw({"alg": ""}, claims()),
    raw({"alg": None}, claims()),
    raw({}, claims()),
    raw([], claims()),
    raw({"alg": ["RS256"]}, claims()),
    token(OTHER),
    token(algorithm="RS512"),
    token(algorithm="PS256"),
    token(headers={"crit": ["exp"]}),
    token(headers={"crit": ["b64"], "b64": True}),
    token(headers={"crit": []}),
    token()[:-4],
    token() + "x",
    token().rpartition(".")[0] + ".",
    "..",
    "a.b.c",
    "",
    "\udce9",
    raw({"alg": "RS256"}, b"[" * 3000),
    raw(b"[" * 3000, claims()),
    raw({"alg": "RS256"}, b"\xff\xfe"),
    raw({"alg": "RS256", "kid": 3}, claims()),
    raw({"alg": "RS256", "kid": ["x"]}, claims()),
]
"""Different in each process, so not the names of tests."""


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
def test_a_forged_token(forged: str) -> None:
    found = verdict(forged)
    assert isinstance(found, Refused)
    assert found.reason.isprintable()
    assert not forged or forged not in found.reason


def test_a_huge_token_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(jwt, "get_unverified_header", decode)
    found = verdict(token(pad="x" * LONGEST_TOKEN))
    assert isinstance(found, Refused)
    assert f"longer than {LONGEST_TOKEN}" in found.reason


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
def test_no_text_is_a_token(text: str) -> None:
    assert isinstance(verdict(text), Refused)


KEY_OF: dict[str, Any] = {
    "RS256": RSA,
    "PS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("algorithm", list(KEY_OF))
def test_each_kind_of_key(algorithm: str) -> None:
    key = KEY_OF[algorithm]
    rules = Rules(algorithm, ISSUER, AUDIENCE)
    keys = parse_key(pem(key.public_key()), algorithm)
    assert isinstance(verdict(token(key, algorithm), keys, rules), Identity)
    made: Any = jwt.get_algorithm_by_name(algorithm)
    entry = {**json.loads(made.to_jwk(key.public_key())), "kid": "k"}
    entry.pop("key_ops", None)
    chosen = parse_key_set(json.dumps({"keys": [entry]}).encode(), algorithm)
    assert isinstance(verdict(token(key, algorithm, {"kid": "k"}), chosen, rules), Identity)
    assert isinstance(verdict(token(key, algorithm, {"kid": "l"}), chosen, rules), Refused)


def test_a_secret() -> None:
    rules = Rules("HS256", ISSUER, AUDIENCE)
    keys = parse_key(b"s" * 32 + b"\n", "HS256")
    assert isinstance(verdict(hs256(b"s" * 32), keys, rules), Identity)
    assert isinstance(verdict(hs256(b"t" * 32), keys, rules), Refused)
    with pytest.raises(WrongKeyError, match="at least 32 bytes"):
        parse_key(b"s" * 31, "HS256")
    with pytest.raises(WrongKeyError):
        parse_key(PUBLIC, "HS256")


def test_keys_that_are_no_keys() -> None:
    private = RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    small = rsa.generate_private_key(65537, 1024)
    for data, algorithm in (
        (private, "RS256"),
        (b"", "RS256"),
        (b"nonsense", "RS256"),
        (PUBLIC, "ES256"),
        (PUBLIC, "EdDSA"),
        (pem(KEY_OF["ES256"].public_key()), "RS256"),
        (pem(small.public_key()), "RS256"),
    ):
        with pytest.raises(WrongKeyError) as wrong:
            parse_key(data, algorithm)
        assert "BEGIN" not in str(wrong.value)


def entry_of(key: Any, **more: Any) -> dict[str, Any]:
    made = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return {**made, **more}


def key_set(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


def test_the_token_chooses_among_the_operators_keys_by_name() -> None:
    keys = parse_key_set(key_set(entry_of(RSA, kid="one"), entry_of(OTHER, kid="two")), "RS256")
    assert [key.kid for key in keys] == ["one", "two"]
    assert isinstance(verdict(token(headers={"kid": "one"}), keys), Identity)
    assert isinstance(verdict(token(OTHER, headers={"kid": "two"}), keys), Identity)
    for headers in ({"kid": "two"}, {"kid": "three"}, None):
        assert isinstance(verdict(token(headers=headers), keys), Refused)


def test_keys_for_something_else_are_left_out() -> None:
    public = entry_of(RSA, kid="one", use="sig", alg="RS256", key_ops=["verify"])
    others = (
        entry_of(OTHER, kid="encrypts", use="enc"),
        entry_of(OTHER, kid="other algorithm", alg="RS512"),
        entry_of(OTHER, kid="signs", key_ops=["sign"]),
        {"kty": "oct", "k": base64.urlsafe_b64encode(PUBLIC).decode(), "kid": "secret", "alg": "HS256"},
        "nonsense",
    )
    assert [key.kid for key in parse_key_set(key_set(public, *others), "RS256")] == ["one"]


NO_KEY_SETS = [
    b"",
    b"[]",
    b"{}",
    b'{"keys": {}}',
    b'{"keys": []}',
    b"[" * 100_000,
    b"\xff",
    key_set({"kty": "RSA"}),
    key_set({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
    key_set(entry_of(RSA, kid=3)),
    key_set(entry_of(RSA, kid="a"), entry_of(OTHER, kid="a")),
    key_set(entry_of(RSA), entry_of(OTHER)),
    key_set({**jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True), "key_ops": ["verify"]}),
]


@pytest.mark.parametrize("data", NO_KEY_SETS, ids=range(len(NO_KEY_SETS)))
def test_what_is_no_key_set(data: bytes) -> None:
    with pytest.raises(WrongKeyError):
        parse_key_set(data, "RS256")


@pytest.mark.parametrize(("more", "told"), [(0, False), (1, True)])
def test_a_token_has_a_longest_size(more: int, *, told: bool) -> None:
    verdict = Issuer(RULES, ()).judge("x" * (LONGEST_TOKEN + more), NOW)
    assert isinstance(verdict, Refused)
    assert ("longer than" in str(verdict)) is told
