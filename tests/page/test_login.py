"""A server with tokens: the page asks for one, takes that of `kernelbridge open`, and keeps it out of addresses."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.client.servers import ServerProcess, environment
from tests.page.conftest import page_url
from tests.page.driving import cell, done, ready, run


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The file, and the tokens of Ann and Bob."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    made = []
    for name in ("ann", "bob"):
        command = [sys.executable, "-m", "kernelbridge", "token", "new", name, "--token-file", str(file)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        made.append(done.stdout.strip().splitlines()[0].split()[-1])
    return file, made[0], made[1]


@pytest.fixture(scope="module")
def server(tokens: tuple[Path, str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("server") / "data", auth="token", token_file=str(tokens[0]))
    yield made
    made.end()


def test_the_page_asks_for_a_token(
    context: BrowserContext, server: ServerProcess, tokens: tuple[Path, str, str]
) -> None:
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url))
    page.goto(page_url(server))
    page.get_by_label("Token").fill("kb_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="does not accept this token")).to_be_visible()
    page.get_by_label("Token").fill(tokens[1])
    page.keyboard.press("Enter")
    page.get_by_label("Name of a session").fill("work")
    page.keyboard.press("Enter")
    ready(page)
    done(run(page, "x = 'of ann'\nprint(x)"))
    page.reload()  # the token is kept in this tab
    ready(page)
    expect(cell(page, 1).locator(".outputs")).to_have_text("of ann")
    assert not any(token in request for token in tokens[1:] for request in requests)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    # Another user in the same browser sees nothing of hers.
    page.get_by_label("Token").fill(tokens[2])
    page.keyboard.press("Enter")
    ready(page)
    expect(cell(page, 1)).to_have_attribute("aria-label", "Cell 1, not run")
    expect(cell(page, 1)).not_to_contain_text("of ann")


def test_the_token_of_an_address(context: BrowserContext, server: ServerProcess, tokens: tuple[Path, str, str]) -> None:
    """`kernelbridge open` hands it over behind `#`; it does not stay there, nor in the history."""
    page = context.new_page()
    page.goto(f"{page_url(server)}#token={tokens[1]}&session=work")
    ready(page)
    assert page.url == f"{page_url(server)}#session=work"
    done(run(page, "6 * 7"))
    page.get_by_role("link", name="kernelbridge").click()
    page.go_back()
    assert tokens[1] not in page.url
    other = context.new_page()  # another tab has no token
    other.goto(page_url(server))
    expect(other.get_by_label("Token")).to_be_visible()
