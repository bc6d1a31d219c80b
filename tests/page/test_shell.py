"""The frame of the page: its parts are there, and are loaded when they are shown."""

from playwright.sync_api import expect

from tests.page.conftest import Open


def test_the_parts_of_a_session(open_page: Open) -> None:
    page = open_page()
    for name in ("terminal", "files"):
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tabpanel")).to_have_count(1)
