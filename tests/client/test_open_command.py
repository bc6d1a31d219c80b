"""`kernelbridge open`: which address it prints and opens, and when the token is in it."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.cli.open import is_private, page_address, with_fragment
from kernelbridge.errors import ConfigError
from tests.client.servers import PATIENCE, environment


@pytest.fixture(params=[200])
def page(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that has a page, or answers something else."""
    status: int = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(PATIENCE)


def open_page(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kernelbridge", "open", *words]
    environ = environment(**variables)
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_browser_gets_the_token_and_the_terminal_does_not(page: str, tmp_path: Path) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    browser.chmod(0o755)
    variables = {"KERNELBRIDGE_URL": f"ws://{page}/ws", "KERNELBRIDGE_TOKEN": "kb_x&y", "BROWSER": f"{browser} %s"}
    done = open_page("work", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"http://{page}/#session=work\n", "")
    assert seen.read_text() == f"http://{page}/#token=kb_x%26y&session=work"
    done = open_page("--print", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"http://{page}/#token=kb_x%26y\n", "")


@pytest.mark.parametrize(("page", "said"), [(404, "has no page"), (503, "does not answer")], indirect=["page"])
def test_a_server_without_a_page(page: str, said: str) -> None:
    done = open_page("--print", "--url", f"ws://{page}")
    assert (done.returncode, done.stdout, said in done.stderr) == (1, "", True)


def test_no_server() -> None:
    done = open_page("--print", "--url", "ws://localhost:1")
    assert (done.returncode, done.stdout, "kernelbridge serve" in done.stderr) == (1, "", True)


@pytest.mark.parametrize(
    ("url", "address", "private"),
    [
        ("ws://localhost:8001", "http://localhost:8001/", True),
        ("ws://127.0.0.1:1/ws", "http://127.0.0.1:1/", True),
        ("http://[::1]:1", "http://[::1]:1/", True),
        ("wss://kernels.example/under/ws", "https://kernels.example/under/", True),
        ("ws://kernels.example", "http://kernels.example/", False),
        ("ws://10.0.0.1:8001", "http://10.0.0.1:8001/", False),
        ("ws://localhost.example", "http://localhost.example/", False),
    ],
)
def test_the_token_goes_only_where_nobody_can_read_it(url: str, address: str, private: bool) -> None:  # noqa: FBT001
    assert (page_address(url), is_private(address)) == (address, private)


@pytest.mark.parametrize("url", ["localhost:8001", "ftp://x", "ws://", "ws://u:p@h", "ws://h?x=1", "ws://h:port"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError):
        page_address(url)


def test_an_address_without_anything_to_say() -> None:
    assert with_fragment("http://h/", {"token": None, "session": None}) == "http://h/"
