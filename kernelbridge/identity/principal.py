"""A principal: whose sessions are whose; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

NAME_LENGTH = 256
EXPECTED_NAME = f"1-{NAME_LENGTH} printable characters"


class Principal(NamedTuple):
    """The owner of sessions. Equal principals have the same sessions, and no others.

    A tuple, because each message looks up its session by it, and tuples are hashed fast.
    """

    subject: str | None = None
    """The name; None for clients without one, which only a server without authentication has."""
    issuer: str | None = None
    """Who gave the name, for names from JSON Web Tokens: another issuer's `ada` is somebody else.

    None for names that belong to this server: `user_id`, the token file, and the proxy in front of it. They are the
    same principal, so that an operator who turns authentication on keeps everybody's files.
    """

    @property
    def key(self) -> str | None:
        """One text for each principal: what is stored and hashed. A name has no NUL, so it is unambiguous."""
        return self.subject if self.issuer is None else f"{self.issuer}\0{self.subject}"

    @classmethod
    def of_key(cls, key: str | None) -> Principal:
        """Return the principal that has this `key`. Raises `TypeError` for what is none."""
        if key is None:
            return cls()
        if not isinstance(key, str):
            raise TypeError(key)
        issuer, nul, subject = key.rpartition("\0")
        return cls(subject, issuer) if nul else cls(key)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a valid credential says."""

    principal: Principal
    admin: bool = False
    """Whether it may see and end what belongs to others."""
    expires: float | None = None
    """Seconds since the epoch; None if it does not expire."""
    proof: str | None = None
    """What it was checked with: the hash of a token, the fingerprint of a key. Revoked when that is gone."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a credential is not accepted."""

    reason: str
    """For the client and the log. Says nothing of other credentials, and repeats none."""


Verdict = Identity | Refused


def is_name(text: str) -> bool:
    """Return whether a text can be a principal's name.

    Names are compared as they are: another spelling, Unicode form or case is another principal.
    """
    return 0 < len(text) <= NAME_LENGTH and text.isprintable()


def name_refusal(user_id: str | None, principal: Principal) -> str | None:
    """Return why a request of `principal` may not have this `user_id` in its query, or None."""
    if user_id is None or user_id == principal.subject:
        return None
    return "user_id in the query is not the name that you are logged in as; leave it out"
