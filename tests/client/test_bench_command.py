"""`kernelbridge bench`: what it prints, and that it leaves nothing behind. Never how fast something is."""

import json
import subprocess
import sys

import pytest

from kernelbridge import Client
from tests.client.servers import PATIENCE, ServerProcess, environment


@pytest.mark.parametrize("as_json", [True, False])
def test_all_figures_are_there_and_the_session_is_gone(server: ServerProcess, user: str, *, as_json: bool) -> None:
    words = ["--user", user, "--seconds", "0.1", *(["--json"] if as_json else [])]
    done = subprocess.run(
        [sys.executable, "-m", "kernelbridge", "bench", *words],
        env=environment(KERNELBRIDGE_URL=server.url),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if as_json:
        found = json.loads(done.stdout)
        assert (found["server"], found["runtime"], found["ownServer"]) == (server.url, "local", False)
        assert found["firstResult"]["ms"] > 0
        for name in ("cell", "line"):
            assert 0 < found[name]["p50Ms"] <= found[name]["p95Ms"]
        for name in ("output", "upload", "download"):
            assert found[name]["bytes"] > 0
            assert found[name]["bytesPerSecond"] > 0
    else:
        assert done.stdout.count(" ms") == 5
        assert done.stdout.count("/s") == 3
    with Client(server.url, user_id=user) as client:
        assert client.sessions() == []
