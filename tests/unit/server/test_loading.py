"""A server starts without the libraries that only some servers need: they are a quarter of its start."""

import subprocess
import sys

import pytest

STARTS = """
import asyncio, sys
from pathlib import Path
from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve

async def main():
    flags = {"runtime": "local", "isolation": False, "port": "0", "data_dir": sys.argv[1], "auth": sys.argv[2]}
    settings = resolve(flags, {}) if sys.argv[2] == "none" else resolve({**flags, "token_file": sys.argv[3]}, {})
    async with running(settings, on_progress=lambda _: None):
        print(*sys.modules)

asyncio.run(main())
"""


@pytest.mark.parametrize("auth", ["none", "token"])
def test_a_local_server_loads_nothing_for_docker_or_jwt(auth: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("data")
    tokens = directory / "tokens"
    tokens.touch(0o600)
    arguments = (str(directory / "data"), auth, str(tokens))
    program = (sys.executable, "-c", STARTS, *arguments)
    ran = subprocess.run(program, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert not {"docker", "requests", "jwt"} & set(ran.stdout.split())
    assert "aiohttp" in ran.stdout.split()
