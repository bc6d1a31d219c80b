"""Files by HTTP, beside a session whose sandbox has the same files; all else is in `unit/server/test_transfers.py`."""

import io
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.session_key import SessionKey
from tests.integration.conftest import RunningServer


def root(server: RunningServer, *, session: str = "s", user: str = "u") -> Path:
    return server.data_dir / "workspaces" / SessionKey(Principal(user), session).workspace_id / "files"


async def fetch(server: RunningServer, path: str, method: str = "GET", **options: Any) -> aiohttp.ClientResponse:
    session, user = options.pop("session", "s"), options.pop("user", "u")
    base = server.url.replace("ws://", "http://").removesuffix("/ws")
    address = URL(f"{base}/api/sessions/{session}/files/{path}?user_id={user}", encoded=True)
    if isinstance(options.get("data"), bytes):
        options["data"] = io.BytesIO(options["data"])
    response = await server.http.request(method, address, **options)
    await response.read()
    return response


async def test_it_works_beside_a_running_session(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.run("open('made', 'w').write('by a cell')")
        assert await (await fetch(server, "made")).read() == b"by a cell"
        await fetch(server, "sent", "PUT", data=b"by http")
        assert (await client.run("open('sent').read()"))["output"] == "'by http'\n"
        await client.run("open('sent', 'a').write('!')")
        assert (root(server) / "sent").read_bytes() == b"by http!"
