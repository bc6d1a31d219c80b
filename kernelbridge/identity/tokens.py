"""The token file: `principal token-or-its-hash [admin] [expires]`, one token on a line; pure.

A token is 32 random bytes, so its plain SHA-256 cannot be turned back, and nothing slower is needed.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import quote, unquote

from kernelbridge.identity.principal import EXPECTED_NAME, Identity, Principal, Refused, Verdict, is_name

PREFIX = "kb_"
"""Begins each token that `kernelbridge token new` makes: programs that look for leaked secrets can find it."""
HASHED = "sha256:"
SHORTEST = 43
"""Characters of a token in the file: 32 random bytes in base64url."""
_BYTES = 32
_HEX_DIGITS = 64
_FIELDS = 4

UNKNOWN = Refused("the token is not known")
EXPIRED = Refused("the token has expired")


class WrongLineError(ValueError):
    """A line of the token file that cannot be read. Does not repeat the line, which may have a token."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a file."""

    by_hash: Mapping[str, Identity]

    def judge(self, token: str, now: float) -> Verdict:
        """Return whose token it is. Takes as long for a wrong one as for a right one, whatever it begins with."""
        wanted = hash_of(token)
        found: Identity | None = None
        for known, identity in self.by_hash.items():
            if hmac.compare_digest(known, wanted):
                found = identity
        if found is None:
            return UNKNOWN
        return EXPIRED if found.expires is not None and found.expires <= now else found

    def still(self, identity: Identity) -> bool:
        """Return whether the token that an identity was proved with is in the file, and says the same."""
        return self.by_hash.get(identity.proof or "") == identity

    def valid(self, now: float) -> int:
        """Return how many have not expired."""
        return sum(token.expires is None or token.expires > now for token in self.by_hash.values())


def new_token() -> str:
    """Return a new token."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def hash_of(token: str) -> str:
    """Return the SHA-256 of a token, in lower-case hexadecimal digits."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def token_line(principal: str, token: str, *, admin: bool = False, expires: datetime | None = None) -> str:
    """Return the line of a token, with its hash only. Raises `ValueError` for a name that no principal can have."""
    if not is_name(principal):
        raise ValueError(f"a principal's name is {EXPECTED_NAME}")
    # What separates or begins the parts of a line is escaped.
    name = "".join(quote(letter, safe="") if letter in "%#" or letter.isspace() else letter for letter in principal)
    parts = [name, HASHED + hash_of(token)]
    if admin:
        parts.append("admin")
    if expires is not None:
        parts.append(expires.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"))
    return " ".join(parts)


def parse_tokens(text: str) -> Tokens:
    """Read a token file. Raises `WrongLineError`."""
    found: dict[str, Identity] = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        identity = _identity(number, parts)
        if identity.proof is None or identity.proof in found:
            raise WrongLineError(number, "its token is on an earlier line too")
        found[identity.proof] = identity
    return Tokens(found)


def parse_time(text: str) -> datetime:
    """Read `2027-01-31` (the beginning of that day, UTC) or RFC 3339 with a zone. Raises `ValueError`."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        if at.time() != datetime.min.time() or len(text) != len("2027-01-31"):
            raise ValueError(text)
        at = at.replace(tzinfo=UTC)
    return at


def _identity(number: int, parts: Sequence[str]) -> Identity:
    if not 1 < len(parts) <= _FIELDS:
        raise WrongLineError(number, "expected `principal token-or-its-hash [admin] [expires]`")
    try:
        name = unquote(parts[0], errors="strict")
    except UnicodeDecodeError:
        name = ""
    if not is_name(name):
        raise WrongLineError(number, f"a principal's name is {EXPECTED_NAME}, blanks as %20")
    admin = parts[2:3] == ["admin"]
    times = parts[3:] if admin else parts[2:]
    if len(times) > 1:
        raise WrongLineError(number, "expected `admin` before the time")
    try:
        expires = parse_time(times[0]).timestamp() if times else None
    except (ValueError, OverflowError):
        raise WrongLineError(
            number, "the time must be written as 2027-01-31 or 2027-01-31T12:00:00Z; the word before it as `admin`"
        ) from None
    return Identity(Principal(name), admin, expires, _hash(number, parts[1]))


def _hash(number: int, written: str) -> str:
    digest = written.removeprefix(HASHED)
    if digest != written:
        if len(digest) != _HEX_DIGITS or not set(digest.lower()) <= set("0123456789abcdef"):
            raise WrongLineError(number, f"after {HASHED} there must be {_HEX_DIGITS} hexadecimal digits")
        return digest.lower()
    if len(written) < SHORTEST or not written.isascii():
        raise WrongLineError(
            number, f"a token has at least {SHORTEST} ASCII characters; `kernelbridge token new` makes one"
        )
    return hash_of(written)
