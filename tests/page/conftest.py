"""One server and one browser for each module, and a window and a user of its own for each test."""

import os
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.client.servers import ServerProcess

PATIENCE = 60.0
"""Seconds that a test waits for what must come."""
CHROMIUM = os.environ.get("KERNELBRIDGE_TEST_CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]

expect.set_options(timeout=PATIENCE * 1000)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server of a module, with its `FLAGS`."""
    flags = getattr(request.module, "FLAGS", {})
    made = ServerProcess(tmp_path_factory.mktemp("server") / "data", **flags)
    yield made
    made.end()


@pytest.fixture(scope="module")
def browser(server: ServerProcess) -> Iterator[Browser]:
    """Debian's Chromium. Playwright's loop counts as running in this thread, so it ends before the server does.

    It is not shared by modules for the same reason: asynchronous tests of other modules could not run.
    """
    assert server.process.poll() is None
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture
def user() -> str:
    return f"u-{os.urandom(4).hex()}"


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile of its own: its tabs share storage, as those of one person do."""
    made = browser.new_context(viewport={"width": 1100, "height": 800}, reduced_motion="reduce")
    made.set_default_timeout(PATIENCE * 1000)
    yield made
    made.close()


@pytest.fixture
def open_page(context: BrowserContext, server: ServerProcess, user: str) -> Open:
    """Open a tab with the page of the server; with `session`, that session is open in it."""

    def opened(session: str | None = "main", *, base: str | None = None, user: str = user) -> Page:
        page = context.new_page()
        fragment = f"user={user}" + (f"&session={session}" if session else "")
        page.goto(f"{base or page_url(server)}#{fragment}")
        return page

    return opened


def page_url(server: ServerProcess) -> str:
    host, port = server.address
    return f"http://{host}:{port}/"
