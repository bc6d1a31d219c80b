"""The frame of the page: logging in, the list of sessions, its parts; accessible, small, and behind a proxy."""

import gzip
import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.client.servers import ServerProcess
from tests.page.conftest import PATIENCE, Open, page_url
from tests.page.driving import cell, done, quiet, ready, run, write

PAGE = Path(__file__).parents[2] / "clients" / "page"
STATIC = Path(__file__).parents[2] / "kernelbridge" / "page" / "static"
AXE = PAGE / "node_modules" / "axe-core" / "axe.min.js"


SHOWS = r"""
import sys
from IPython.display import Markdown, JSON, display
print('\x1b[31mred\x1b[32mgreen\x1b[33myellow\x1b[34mblue\x1b[0m')
print('bad', file=sys.stderr)
display(Markdown('# A\n[l](https://a.example)'), JSON({'a': [1]}))
input('Name? ')
"""


def serious_findings(page: Page) -> list[str]:
    """Let axe-core look at what is shown. It is evaluated, as a script of the page could not be added."""
    page.evaluate(f"() => {{ {AXE.read_text(encoding='utf-8')} }}")
    found = page.evaluate("async () => (await axe.run(document, { iframes: false })).violations")
    return [
        f"{each['id']}: {[node['html'][:100] for node in each['nodes']]}"
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]


def test_sessions(open_page: Open) -> None:
    page = open_page(None)
    is_quiet = quiet(page)
    expect(page.get_by_text("You have no sessions yet")).to_be_visible()
    page.get_by_label("Name of a session").fill("not allowed/")
    expect(page.get_by_text("A name has letters, digits")).to_be_visible()
    expect(page.get_by_role("button", name="Open")).to_be_disabled()
    page.get_by_label("Name of a session").fill("work")
    page.keyboard.press("Enter")
    ready(page)
    assert page.url.endswith("session=work") or "session=work&" in page.url
    done(run(page, "x = 1"))
    page.get_by_role("link", name="kernelbridge").click()
    row = page.get_by_role("row").filter(has_text="work")
    expect(row).to_contain_text("open")
    expect(row).to_contain_text(" MiB")
    assert serious_findings(page) == []
    row.get_by_role("button", name="work", exact=True).click()
    ready(page)
    done(run(page, "open('file', 'w').close(); x"))  # it is the same session
    page.go_back()
    row.get_by_role("button", name="Close work").click()
    expect(page.get_by_text("work was closed.")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete work").click()
    expect(page.get_by_text("work and its files were deleted.")).to_be_visible()
    expect(page.get_by_text("You have no sessions yet")).to_be_visible()
    is_quiet()


def test_accessible_and_readable(open_page: Open) -> None:
    """In light and dark, wide and narrow, with all that cells show."""
    page = open_page()
    ready(page)
    found = run(page, SHOWS)
    found.get_by_label("Name?").fill("x")
    found.get_by_role("button", name="Send").click()
    done(found)
    page.get_by_role("button", name="+ Code").click()
    done(run(page, "1/0", 2), "failed")
    page.get_by_role("button", name="+ Text").click()
    write(page, 3, "# Title")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", name="Title")).to_be_visible()
    run(page, "input('Waits? ')", 2)
    expect(page.get_by_label("Waits?")).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious_findings(page) == [], scheme
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#cells").evaluate("element => element.scrollWidth <= element.clientWidth")
    page.get_by_role("button", name="Stop cell 2").click()
    done(cell(page, 2), "failed")


def test_headers_and_what_is_loaded_first(open_page: Open, server: ServerProcess) -> None:
    page = open_page(None)
    with page.expect_response(page_url(server)) as waiting:
        page.reload()
    headers = waiting.value.all_headers()
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert part in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    script = next(STATIC.glob("assets/index-*.js")).name
    answer = page.request.get(f"{page_url(server)}assets/{script}")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-encoding"] == "gzip"
    assert page.request.get(f"{page_url(server)}assets/absent.js").status == 404
    for path in ("assets/..%2f..%2f__init__.py", "assets/%2e%2e%2findex.html"):
        assert page.request.get(page_url(server) + path).status == 404
    frame = page.request.get(f"{page_url(server)}frame.html").headers["content-security-policy"]
    assert frame.startswith("sandbox allow-scripts; default-src 'none';")
    assert "allow-same-origin" not in frame


def test_the_first_load_is_small() -> None:
    """What the page needs before it shows something: at most 300 KB, compressed."""
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', index)
    assert len(names) >= 2
    files = [STATIC / "index.html", *(STATIC / name for name in names)]
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) <= 300_000
    assert "http://" not in index
    assert "https://" not in index
    for package in ("preact", "@codemirror/view", "katex", "dompurify"):
        assert f"\n{package} " in "\n" + (STATIC / "licences.txt").read_text(encoding="utf-8")


def test_behind_a_proxy_with_a_base_path(open_page: Open, prefix: str) -> None:
    page = open_page(base=prefix)
    is_quiet = quiet(page)
    ready(page)
    done(run(page, "from IPython.display import HTML\nHTML('<b id=b>bold</b>')"))
    expect(cell(page, 1).frame_locator("iframe.frame").locator("#b")).to_have_text("bold")
    is_quiet()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


NGINX = """
daemon off; pid {place}/pid; error_log {place}/error.log; user {user}; worker_processes 1;
events {{}}
http {{
  access_log off;
  {temporary}
  server {{
    listen 127.0.0.1:{port};
    location /under/it/ {{
      proxy_pass {server};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header Host $host:{port};
    }}
  }}
}}
"""


@pytest.fixture
def prefix(server: ServerProcess, tmp_path: Path) -> Iterator[str]:
    """A proxy that has the server under `/under/it/`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind}; " for kind in kinds)
    user = pwd.getpwuid(os.geteuid()).pw_name
    text = NGINX.format(place=tmp_path, port=port, server=page_url(server), user=user, temporary=temporary)
    (tmp_path / "conf").write_text(text)
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "install nginx: .ci/setup does"
    process = subprocess.Popen([program, "-e", f"{tmp_path}/error.log", "-c", f"{tmp_path}/conf"])
    until = time.monotonic() + PATIENCE
    while not listens(port):
        assert time.monotonic() < until, (tmp_path / "error.log").read_text()
    yield f"http://127.0.0.1:{port}/under/it/"
    process.terminate()
    process.wait(PATIENCE)
