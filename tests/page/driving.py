"""What a person does with the page."""

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect


def ready(page: Page) -> None:
    """Wait until the session is open, and the first editor is loaded."""
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    expect(page.locator(".cm-content").first).to_be_visible()


def cell(page: Page, number: int) -> Locator:
    """Find a cell by its place, from 1 on."""
    return page.locator("section.cell").nth(number - 1)


def write(page: Page, number: int, code: str) -> None:
    """Replace the code of a cell."""
    editor = cell(page, number).locator(".cm-content")
    editor.click()
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(code)


def run(page: Page, code: str, number: int = 1) -> Locator:
    """Run code in a cell, and return the cell."""
    write(page, number, code)
    page.keyboard.press("Control+Enter")
    return cell(page, number)


def done(found: Locator, state: str = "done") -> None:
    """Wait until a cell has run."""
    expect(found).to_have_attribute("aria-label", f"Cell {number_of(found)}, {state}")


def number_of(found: Locator) -> int:
    label = found.get_attribute("aria-label")
    assert label is not None
    return int(label.split(",")[0].removeprefix("Cell "))


def quiet(page: Page) -> Callable[[], None]:
    """Note errors of the page's own scripts and refusals of its policy; return what asserts that there were none."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)

    def assert_quiet() -> None:
        assert problems == []

    return assert_quiet
