"""`kernelbridge open`: which address it prints and opens, when the token is in it, and who can see it."""

import http.server
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.cli.handover import handover
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


BROWSER = """#!{python}
import sys, urllib.error, urllib.request

class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None

url = sys.argv[1]
with open("{seen}", "w") as seen:
    print(url, file=seen)
    for asked in (url + "x", url, url) if "#" not in url else ():
        try:
            urllib.request.build_opener(Stay).open(asked)
        except urllib.error.HTTPError as exc:
            print(exc.code, exc.headers["Location"] or "", file=seen)
"""


def a_browser(tmp_path: Path) -> tuple[Path, str]:
    """Return what a browser notes that is started as the second says: its argument, and where that leads."""
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(BROWSER.format(python=sys.executable, seen=seen))
    browser.chmod(0o755)
    return seen, f"{browser} %s"


def test_the_browser_gets_the_token_and_neither_its_command_line_nor_the_terminal_does(
    page: str, tmp_path: Path
) -> None:
    seen, browser = a_browser(tmp_path)
    variables = {"KERNELBRIDGE_URL": f"ws://{page}/ws", "KERNELBRIDGE_TOKEN": "kb_x&y", "BROWSER": browser}
    done = open_page("work", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"http://{page}/#session=work\n", "")
    argument, *answers = seen.read_text().splitlines()
    assert "kb_x" not in argument
    assert answers == ["403 ", f"303 http://{page}/#token=kb_x%26y&session=work", "410 "]
    done = open_page("--print", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"http://{page}/#token=kb_x%26y\n", "")


def test_without_a_token_the_browser_gets_the_address_itself(page: str, tmp_path: Path) -> None:
    seen, browser = a_browser(tmp_path)
    done = open_page("work", KERNELBRIDGE_URL=f"ws://{page}/ws", BROWSER=browser)
    assert (done.returncode, done.stderr) == (0, "")
    assert seen.read_text().splitlines()[0] == f"http://{page}/#session=work"


def test_a_process_of_another_user_does_not_get_the_address() -> None:
    with handover("http://h/#token=kb_x", frozenset({os.getuid() + 1})) as given:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(given.url)
        assert not given.done.is_set()


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
