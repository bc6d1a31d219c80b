"""Secrets that are found again in whatever a client receives, and whose they are; pure.

A mark is a word such as `qz3fa25cx17`: its owner, a user or one session of a user, and a number. Whatever a user keeps
in a session, or names, contains marks. So one search of all that arrives shows whether any of it is somebody else's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

MARK = re.compile(r"qz([0-9a-f]{6})x\d+")
MADE = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{8,24}(?![0-9A-Za-z])")
"""The ids that a server makes: of connections, terminals, questions and workspaces."""


def mark(number: int, user: str, session: str | None = None) -> str:
    """Return a mark of a user or, with `session`, of a session that has this name for the user."""
    return f"qz{_owner(user, session)}x{number}"


def _owner(user: str, session: str | None) -> str:
    return hashlib.sha256(f"{user} {session}".encode()).hexdigest()[:6]


class Border:
    """Finds what one user has received of another, and what one session of a user has received of another."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        """In how many messages of each kind a session's own secrets were found: a search that finds nothing shows
        something only where there is something to find."""
        self._made: dict[str, set[str]] = defaultdict(set)
        """The ids that the server has made for each user."""
        self._tokens: dict[str, str] = {}
        self._guessed: dict[str, set[str]] = defaultdict(set)
        """What each user has sent, although it belongs to another one. So it may come back, and says nothing."""

    def keep(self, user: str, *made: str) -> None:
        """Nobody but this user may receive these ids that the server has made."""
        self._made[user].update(made)

    def made_for(self, user: str) -> set[str]:
        """Return the ids that the server has made for a user."""
        return self._made[user]

    def keep_token(self, user: str, token: str) -> None:
        """Nobody may receive this token."""
        self._tokens[user] = token

    def guess(self, user: str, text: str) -> None:
        """Let a user receive the secrets in a text that it sends itself."""
        self._guessed[user].update(_words(text))

    def frame(self, user: str, text: str) -> dict[str, Any]:
        """Search a frame and return it, decoded. Raises `AssertionError`."""
        frame = json.loads(text)
        assert isinstance(frame, dict)
        session, kind = frame.get("sessionId"), str(frame["type"])
        if kind == "connected":
            self.keep(user, frame["connectionId"])
        elif kind == "terminal_opened" and MADE.fullmatch(frame["terminalId"]):
            self.keep(user, frame["terminalId"])
        elif kind == "input_request":
            self.keep(user, frame["inputId"])
        self.search(user, session, text, kind)
        if frame.get("encoding") == "base64":
            self.search(user, session, base64.b64decode(frame["content"]).decode("utf-8", "replace"), kind)
        return frame

    def search(self, user: str, session: str | None, text: str, kind: str) -> None:
        """Search what a user has received of one of its sessions, or of none. Raises `AssertionError`."""
        own = {_owner(user, None), _owner(user, session)}
        guessed = self._guessed[user]
        foreign = {found[0] for found in MARK.finditer(text) if found[1] not in own and found[0] not in guessed}
        for word in MADE.findall(text):
            if any(word in made for other, made in self._made.items() if other != user) and word not in guessed:
                foreign.add(word)
        foreign |= {token for token in self._tokens.values() if token in text}
        assert not foreign, f"{user} received {foreign} of somebody else in {kind} of {session}: {text[:2000]}"
        if session is not None and f"qz{_owner(user, session)}x" in text:
            self.seen[kind] += 1


def _words(text: str) -> Iterator[str]:
    yield from (found[0] for found in MARK.finditer(text))
    yield from MADE.findall(text)
