"""Asking a running server as its administrator, by HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from kernelbridge.errors import ConfigError, KernelBridgeError
from kernelbridge.protocol.administration import JournalEvents, SessionRow, SessionTable

T = TypeVar("T")

TIMEOUT = 30.0
UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Administrator:
    """Sends requests to the server at `url`, `http://…`, `https://…` or `unix:PATH`, with these headers."""

    url: str
    headers: Mapping[str, str]
    patience: float = TIMEOUT
    """Seconds that an answer may take."""

    @classmethod
    def with_token(
        cls, url: str, token: str | None, headers: Mapping[str, str], patience: float = TIMEOUT
    ) -> Administrator:
        """Log in with a token, if there is one."""
        return cls(url, {**headers, **({"Authorization": f"Bearer {token}"} if token else {})}, patience)

    def sessions(self) -> list[SessionRow]:
        """Return all open sessions. Raises `KernelBridgeError`, as the other methods do."""
        return self._ask("GET", "/api/sessions", SessionTable).sessions

    def kill(self, session: SessionRow) -> bool:
        """Close a session; return whether its sandbox has ended already."""
        found: dict[str, object] = self._ask("DELETE", f"/api/workspaces/{quote(session.id)}", dict[str, object])
        return bool(found.get("closed"))

    def events(self, session: SessionRow, last: int) -> JournalEvents:
        """Return the latest frames of a session."""
        return self._ask("GET", f"/api/workspaces/{quote(session.id)}/events?last={last}", JournalEvents)

    def _ask(self, method: str, path: str, kind: type[T]) -> T:
        status, body = asyncio.run(self._exchange(method, path))
        if status in {401, 403}:
            if status == HTTPStatus.UNAUTHORIZED:
                remedy = (
                    "put the token of an administrator into KERNELBRIDGE_TOKEN, or send what the proxy wants (--header)"
                )
            else:
                remedy = "it is for administrators, and without authentication for the server's own machine"
            raise KernelBridgeError("The server does not take this command", f"{_reason(body)}; {remedy}")
        try:
            if status in {200, 202}:
                return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as exc:
            raise self._no_server(f"it sent what kernelbridge does not send ({exc})") from exc
        raise self._no_server(f"it answered with status {status}: {_reason(body)}")

    async def _exchange(self, method: str, path: str) -> tuple[int, bytes]:
        base, connector = self.url.rstrip("/"), None
        if base.startswith(UNIX):
            base, connector = "http://localhost", aiohttp.UnixConnector(base.removeprefix(UNIX))
        elif urlsplit(base).scheme not in {"http", "https"} or not urlsplit(base).hostname:
            raise ConfigError(
                f"{self.url!r} is not the address of a server",
                "expected http://localhost:8001, an https URL, or unix:/path/of/its/socket; check --url and"
                " KERNELBRIDGE_URL",
            )
        timeout = aiohttp.ClientTimeout(total=self.patience)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self.headers) as http,
                http.request(method, f"{base}{path}", allow_redirects=False) as answer,
            ):
                return answer.status, await answer.read()
        except TimeoutError as exc:
            raise self._no_server(f"it gave no answer within {self.patience:g} s") from exc
        except aiohttp.ClientConnectorCertificateError as exc:
            raise self._no_server(
                f"{exc}; SSL_CERT_FILE may name a file with the authority of its certificate"
            ) from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise self._no_server(str(exc)) from exc

    def _no_server(self, why: str) -> KernelBridgeError:
        return KernelBridgeError(
            f"No kernelbridge server answers at {self.url}", f"{why}; name another one with --url or KERNELBRIDGE_URL"
        )


def _reason(body: bytes) -> str:
    """Return why a request was refused, as far as the server says."""
    try:
        found = msgspec.json.decode(body)
        text = str(found["reason"] if "reason" in found else found["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace").strip()
    return "".join(each if each.isprintable() else " " for each in text) or "it does not say why"
