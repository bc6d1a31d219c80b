"""Servers with authentication, and clients with credentials, for the tests beside this module."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kernelbridge.identity.token_file import add_token
from kernelbridge.identity.tokens import new_token, token_line
from kernelbridge.server.websocket.heartbeat import Patience
from tests.unit.server.conftest import PATIENCE, Client, RunningServer, start_at

_ADDRESSES = itertools.count(1)
ISSUER, AUDIENCE = "https://login.example.org", "kernelbridge"


@dataclass
class Guarded:
    """A server with authentication. `token` is a valid one of ada."""

    server: RunningServer
    token: str
    directory: Path
    key: Any = None
    address: str = ""

    def move(self) -> None:
        """Come from an address that no test has come from: its failures are counted by themselves."""
        self.address = new_address()
        self.server.http.headers["X-Forwarded-For"] = self.address

    @property
    def tokens(self) -> Path:
        return self.directory / "tokens"

    def more(self, principal: str, **options: Any) -> str:
        """Add a token to the file."""
        token = new_token()
        add_token(self.tokens, token_line(principal, token, **options))
        return token

    def without(self, *principals: str) -> None:
        """Delete the lines of these principals."""
        lines = self.tokens.read_text().splitlines(keepends=True)
        new = self.directory / "new"
        new.touch(mode=0o600)
        new.write_text("".join(line for line in lines if line.split()[0] not in principals))
        new.rename(self.tokens)

    def signed(self, subject: str = "ada", *, seconds: float = 600, **claims: Any) -> str:
        """Return a JSON Web Token."""
        now = time.time()
        made = {"sub": subject, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + seconds, **claims}
        return jwt.encode(made, self.key, "ES256")

    def file(self, path: str, *, session: str = "s") -> str:
        return f"{self.server.origin}/api/sessions/{session}/files/{path}"

    async def loaded(self, token: str) -> None:
        """Wait until the server knows a token that was added."""
        async with asyncio.timeout(PATIENCE):
            while True:
                async with self.server.http.get(f"{self.server.origin}/api/schema", headers=bearer(token)) as answer:
                    if answer.status == 200:
                        return
                await asyncio.sleep(0.2)

    @asynccontextmanager
    async def connect(self, token: str | None = None, query: str = "", **options: Any) -> AsyncIterator[Client]:
        """Connect, with the token in the header; with an empty one, without any."""
        token = self.token if token is None else token
        headers = {**(bearer(token) if token else {}), **options.pop("headers", {})}
        async with self.server.http.ws_connect(
            f"{self.server.url}?{query}", max_msg_size=0, headers=headers, **options
        ) as ws:
            yield Client(ws)

    @asynccontextmanager
    async def logged_in(self, token: str | None = None, **options: Any) -> AsyncIterator[Client]:
        """Connect, and read what confirms it."""
        async with self.connect(token, **options) as client:
            assert (await client.receive())["type"] == "connected"
            yield client


def new_address() -> str:
    """Return an address that no test has come from."""
    return f"192.0.2.{next(_ADDRESSES)}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def token_server(directory: Path, **flags: Any) -> AsyncIterator[Guarded]:
    """Serve with a token file."""
    directory.mkdir(parents=True, exist_ok=True)
    token = new_token()
    add_token(directory / "tokens", token_line("ada", token))
    async with AsyncExitStack() as stack:
        flags = {"auth": "token", "trusted_proxy": ("127.0.0.1",), "token_file": str(directory / "tokens"), **flags}
        server = await start_at(stack, directory / "data", Patience(), flags)
        yield Guarded(server, token, directory)


@asynccontextmanager
async def jwt_server(directory: Path, **flags: Any) -> AsyncIterator[Guarded]:
    """Serve with an issuer's key."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (directory / "key").write_bytes(pem)
    async with AsyncExitStack() as stack:
        flags = {
            "auth": "jwt",
            "trusted_proxy": ("127.0.0.1",),
            "jwt_algorithm": "ES256",
            "jwt_key": str(directory / "key"),
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
            **flags,
        }
        server = await start_at(stack, directory / "data", Patience(), flags)
        guarded = Guarded(server, "", directory, key)
        guarded.token = guarded.signed()
        yield guarded


@contextlib.contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged while the context is open."""
    with structlog.testing.capture_logs() as lines:
        yield lines  # type: ignore[misc]


def all_text(lines: list[dict[str, Any]]) -> str:
    return json.dumps(lines, default=str)
