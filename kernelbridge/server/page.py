"""`GET /`: the page, and what browsers may do with it.

The files are made by `npm run build` in `clients/page`. They have no secrets, so they are served without a login; the
page then logs in as any client does. What a run shows may be hostile: the page shows HTML and scripts of outputs only
in frames of the one address `frame.html`, which have no origin, and a policy that blocks the network.
"""

from __future__ import annotations

import asyncio
import gzip
import secrets
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final

from aiohttp import hdrs, web

PAGE = "/"
FRAME = "/frame.html"
ICON = "/icon.svg"
ASSET = "/assets/{name}"
LICENCES = "/licences.txt"
ROUTES = frozenset({PAGE, FRAME, ICON, LICENCES, ASSET})

_NONCE: Final = b'<meta name="style-nonce" content=""'
"""Where the page finds the nonce for the styles that the editor and the terminal make."""
_TYPES: Final = MappingProxyType(
    {
        "css": "text/css; charset=utf-8",
        "html": "text/html; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
        "txt": "text/plain; charset=utf-8",
        "woff2": "font/woff2",
    }
)
_COMPRESSED = frozenset({"css", "html", "js", "svg", "txt"})
_FOREVER = "public, max-age=31536000, immutable"
_COMMON: Final = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)
_FRAME_POLICY: Final = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline';"
    " img-src data: blob:; font-src data:; media-src data: blob:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'"
)
"""Outputs may do anything inside their frame: they have no origin there, and nothing to talk to."""


def page_policy(nonce: str) -> str:
    """Return the Content-Security-Policy of the page, in which only the server's own files are scripts."""
    return (
        "default-src 'none'; script-src 'self'; connect-src 'self'; font-src 'self'; frame-src 'self';"
        f" img-src 'self' data: blob:; style-src 'self' 'nonce-{nonce}'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )


@dataclass(eq=False)
class Page:
    """The handlers of the page's routes. A file is read when it is first asked for, and kept."""

    root: Traversable = field(default_factory=lambda: files("kernelbridge") / "page" / "static")
    _kept: dict[tuple[str, str], _File] = field(default_factory=dict)

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get(PAGE, self.page)
        app.router.add_get(FRAME, self.frame)
        app.router.add_get(ICON, self.plain)
        app.router.add_get(LICENCES, self.plain)
        app.router.add_get(ASSET, self.asset)

    async def page(self, request: web.Request) -> web.StreamResponse:
        """`GET /`: send the page. It is never cached, so that it names the files of this version."""
        file = await self._file("index.html")
        nonce = secrets.token_urlsafe(16)
        body = file.body.replace(_NONCE, _NONCE[:-1] + nonce.encode() + b'"')
        headers = {"Content-Security-Policy": page_policy(nonce), "Cache-Control": "no-store"}
        return _answer(request, _File(body, file.content_type), headers)

    async def frame(self, request: web.Request) -> web.StreamResponse:
        """`GET /frame.html`: send the document in which an output with HTML or scripts is shown."""
        headers = {
            "Content-Security-Policy": _FRAME_POLICY,
            "Cache-Control": "no-cache",
            "X-DNS-Prefetch-Control": "off",
            # A document without an origin is of another one than the page.
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
        return _answer(request, await self._file("frame.html"), headers)

    async def plain(self, request: web.Request) -> web.StreamResponse:
        """`GET /icon.svg`, `GET /licences.txt`: send a file of this name."""
        name = request.path.rpartition("/")[2]
        return _answer(request, await self._file(name), {"Cache-Control": "no-cache"})

    async def asset(self, request: web.Request) -> web.StreamResponse:
        """`GET /assets/…`: send a file whose name has a hash of its content."""
        file = await self._file(request.match_info["name"], folder="assets")
        return _answer(request, file, {"Cache-Control": _FOREVER})

    async def _file(self, name: str, folder: str = "") -> _File:
        if (kept := self._kept.get((folder, name))) is None:
            kept = self._kept[folder, name] = await asyncio.to_thread(self._read, folder, name)
        return kept

    def _read(self, folder: str, name: str) -> _File:
        directory = self.root / folder if folder else self.root
        # Compared with what is there: a name may have been sent as `..%2f`.
        found = next((each for each in directory.iterdir() if each.name == name), None) if directory.is_dir() else None
        kind = name.rpartition(".")[2]
        if found is None or kind not in _TYPES:
            raise web.HTTPNotFound(text="The page has no such file. Load the page again.\n")
        body = found.read_bytes()
        compressed = gzip.compress(body, 9, mtime=0) if kind in _COMPRESSED else None
        return _File(body, _TYPES[kind], compressed)


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    compressed: bytes | None = None


def _answer(request: web.Request, file: _File, headers: dict[str, str]) -> web.Response:
    every = {**_COMMON, **headers, hdrs.CONTENT_TYPE: file.content_type, hdrs.VARY: "Accept-Encoding"}
    if file.compressed is not None and "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "").lower():
        return web.Response(body=file.compressed, headers={**every, hdrs.CONTENT_ENCODING: "gzip"})
    return web.Response(body=file.body, headers=every)
