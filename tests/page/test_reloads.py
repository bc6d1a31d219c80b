"""A page that is loaded again, another tab, a server that is killed: output goes on, once, and questions come back."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.client.servers import ServerProcess
from tests.page.conftest import Open
from tests.page.driving import cell, done, ready, run, write

STEPS = """
import os, time
for number in range({count}):
    while not os.path.exists(f"go-{{number}}"): time.sleep(0.01)
    print("step", number)
"""


def session_files(server: ServerProcess) -> Path:
    """Find the workspace of the only session that has files of the test: the newest one."""
    return max(server.data_dir.rglob("begun"), key=lambda path: path.stat().st_mtime).parent


def stepwise(page: Page, server: ServerProcess, count: int) -> Path:
    """Begin a cell that goes on with each file `go-N`; return where these belong."""
    found = run(page, "open('begun', 'w').close(); print('begun')" + STEPS.format(count=count))
    expect(found.locator(".outputs")).to_contain_text("begun")
    return session_files(server)


def go(files: Path, number: int) -> None:
    (files / f"go-{number}").touch()


def all_steps(count: int) -> str:
    return "\n".join(["begun", *(f"step {number}" for number in range(count))])


def test_a_reload_during_a_run_and_a_question(open_page: Open, server: ServerProcess) -> None:
    page = open_page()
    ready(page)
    done(run(page, "kept = 'printed before'\nprint(kept)"))
    page.get_by_role("button", name="+ Code").click()
    write(page, 2, "open('begun', 'w').close(); print('begun')" + STEPS.format(count=3) + "print(input('Name? '))")
    page.keyboard.press("Control+Enter")
    expect(cell(page, 2).locator(".outputs")).to_contain_text("begun")
    files = session_files(server)
    go(files, 0)
    expect(cell(page, 2).locator(".outputs")).to_contain_text("step 0")
    page.reload()
    go(files, 1)
    expect(cell(page, 2).locator(".outputs")).to_contain_text("step 1")
    expect(cell(page, 1).locator(".outputs")).to_have_text("printed before")
    go(files, 2)
    expect(page.get_by_label("Name?")).to_be_visible()
    page.reload()
    page.get_by_label("Name?").fill("Ann")
    page.keyboard.press("Enter")
    done(cell(page, 2))
    expect(cell(page, 2).locator(".text")).to_have_text(all_steps(3) + "\nName? Ann\nAnn\n", use_inner_text=False)
    page.reload()
    expect(cell(page, 2).locator(".text")).to_contain_text("step 2")
    done(cell(page, 2))
    ready(page)
    done(run(page, "kept", 1))
    expect(cell(page, 1).locator(".outputs")).to_have_text("'printed before'")


def test_two_tabs(open_page: Open, server: ServerProcess) -> None:
    """The second one says that the first one has the session, and takes it; so does the first one then."""
    first = open_page()
    ready(first)
    files = stepwise(first, server, 3)
    second = open_page()
    expect(second.get_by_role("heading", name="main is open in another tab")).to_be_visible()
    expect(first.locator("section.cell")).to_have_count(1)
    second.get_by_role("button", name="Continue here").click()
    expect(first.get_by_role("heading", name="main is open in another tab")).to_be_visible()
    go(files, 0)
    expect(cell(second, 1).locator(".outputs")).to_contain_text("step 0")
    first.get_by_role("button", name="Continue here").click()
    expect(second.get_by_role("heading", name="main is open in another tab")).to_be_visible()
    go(files, 1)
    expect(cell(first, 1).locator(".outputs")).to_contain_text("step 1")
    go(files, 2)
    done(cell(first, 1))
    expect(cell(first, 1).locator(".text")).to_have_text(all_steps(3) + "\n")
    # The other tab is told when this one is closed only by what it shows; it can continue at once.
    first.close()
    second.get_by_role("button", name="Continue here").click()
    done(cell(second, 1))


def test_another_session_in_another_tab(open_page: Open) -> None:
    first, second = open_page("one"), open_page("two")
    ready(first)
    ready(second)
    done(run(first, "x = 'one'\nprint(x)"))
    done(run(second, "print('x' in globals())"))
    expect(cell(second, 1).locator(".outputs")).to_have_text("False")
    second.reload()
    ready(second)
    expect(cell(second, 1).locator(".outputs")).to_have_text("False")


def test_a_server_that_is_killed(open_page: Open, server: ServerProcess) -> None:
    """The page connects to the next one, and the run goes on; also the output that came meanwhile is there, once."""
    page = open_page()
    ready(page)
    port = server.address[1]
    files = stepwise(page, server, 3)
    go(files, 0)
    expect(cell(page, 1).locator(".outputs")).to_contain_text("step 0")
    server.kill()
    expect(page.get_by_role("status").filter(has_text="The connection is lost")).to_be_visible()
    go(files, 1)
    server._words += ["--port", str(port)]
    server.start()
    ready(page)
    go(files, 2)
    done(cell(page, 1))
    expect(cell(page, 1).locator(".text")).to_have_text(all_steps(3) + "\n")


def test_a_server_that_does_not_answer(open_page: Open, server: ServerProcess) -> None:
    """Every wait is said, and tried again: also when nothing comes of the first attempts."""
    page = open_page()
    ready(page)
    done(run(page, "print('before')"))
    server.freeze()
    page.evaluate("location.hash = location.hash.replace('main', 'other')")
    expect(page.get_by_role("status").filter(has_text="Connecting to the server")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="The page tries again")).to_be_visible()
    server.thaw()
    ready(page)
    done(run(page, "print('after')"))


def test_a_session_that_was_closed_meanwhile(open_page: Open, server: ServerProcess) -> None:
    page = open_page()
    ready(page)
    stepwise(page, server, 1)
    other = open_page(None)
    other.get_by_role("button", name="Close main").click()
    done(cell(page, 1), "failed")
    expect(cell(page, 1)).to_contain_text("The session was closed.")


def test_a_browser_that_keeps_nothing(open_page: Open) -> None:
    page = open_page(None)
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no') } })")
    page.evaluate("location.hash += '&session=main'")
    page.reload()
    ready(page)
    write(page, 1, "print('works')")
    expect(page.get_by_text("The browser does not keep the cells")).to_be_visible()
    page.keyboard.press("Control+Enter")
    done(cell(page, 1))
