"""Files in the page: a tree that follows others, transfers byte for byte, and edits that replace nothing silently."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from kernelbridge.client.synchronous import Client, Session
from tests.client.servers import ServerProcess
from tests.page.conftest import Open

MANY = 130
"""More than a browser lists of a dropped folder at once."""


@pytest.fixture
def files(open_page: Open) -> Page:
    """A tab with the files of a session."""
    page = open_page("main")
    page.locator("#files-tab").click()
    expect(page.get_by_role("button", name="New file")).to_be_visible()
    return page


@pytest.fixture
def other(server: ServerProcess, user: str) -> Iterator[Session]:
    """The same session, as another client has it."""
    with Client(server.url, user_id=user) as client:
        yield client.session("main")


def row(page: Page, name: str, level: int | None = None) -> Locator:
    return page.get_by_role("treeitem", level=level).filter(has=page.get_by_text(name, exact=True))


def answer(page: Page, button: str, path: str | None = None) -> None:
    """Answer a question of the page."""
    if path is not None:
        page.get_by_label("Path in the workspace").fill(path)
    page.get_by_role("dialog").get_by_role("button", name=button, exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def text(page: Page) -> Locator:
    return page.get_by_role("textbox", name=re.compile("^Text of"))


def status(page: Page) -> Locator:
    return page.locator(".file-view").get_by_role("status")


def save(page: Page) -> None:
    page.get_by_role("button", name="Save", exact=True).click()


def drop(context: BrowserContext, page: Page, target: Locator, path: Path) -> None:
    """Drop a file or folder of this machine."""
    box = target.bounding_box()
    assert box is not None
    devtools = context.new_cdp_session(page)
    at = {"x": box["x"] + 60, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for event in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": event, **at, "data": data})
        if event == "dragOver":
            expect(page.get_by_text("Drop to upload into")).to_be_visible()
    devtools.detach()


def test_the_tree_follows_others_and_the_keyboard(files: Page, other: Session) -> None:
    page = files
    other.files.write("work/deep/a.txt", "a")
    expect(row(page, "work")).to_be_visible()
    row(page, "work").click()
    expect(row(page, "deep")).to_have_attribute("aria-level", "2")
    other.sh(
        "printf x > $'work/\\xff\\n\\xe2\\x80\\xaegpj.exe'; ln -s /etc/passwd work/outside; mkfifo work/pipe",
        check=True,
    )
    expect(row(page, "�\\n\\u{202e}gpj.exe")).to_be_visible()
    expect(row(page, "outside")).to_contain_text("(link)")
    expect(row(page, "pipe")).to_contain_text("(special file)")
    other.files.delete("work/pipe")
    expect(row(page, "pipe")).to_have_count(0)

    row(page, "work").focus()
    page.keyboard.press("ArrowRight")
    expect(row(page, "deep")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(row(page, "a.txt")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("F2")
    answer(page, "Rename", "work/b.txt")
    expect(row(page, "b.txt")).to_have_attribute("aria-selected", "true")
    assert other.files.read("work/b.txt") == b"a"
    row(page, "b.txt").focus()
    page.keyboard.press("F2")
    answer(page, "Rename", "work/outside")
    problem = page.locator(".files-panel").get_by_role("alert")
    expect(problem).to_contain_text(re.compile("was not renamed: .*choose another name"))
    assert other.files.read("work/b.txt") == b"a"

    row(page, "work").focus()
    page.keyboard.press("Delete")
    expect(page.get_by_role("dialog", name="Delete “work”?")).to_be_visible()
    expect(page.get_by_role("button", name="Keep")).to_be_focused()
    page.keyboard.press("Escape")
    expect(row(page, "work")).to_be_visible()
    expect(row(page, "work")).to_be_focused()
    page.keyboard.press("Delete")
    answer(page, "Delete")
    expect(row(page, "work")).to_have_count(0)
    assert [each.path for each in other.files.list()] == []


def test_transfers(files: Page, other: Session, context: BrowserContext, tmp_path: Path) -> None:
    page = files
    folder = tmp_path / "dropped"
    (folder / "deep" / "void").mkdir(parents=True)
    contents = {f"f{number}": os.urandom(number) for number in range(MANY)} | {"deep/ä b.bin": os.urandom(3_000_000)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    drop(context, page, page.get_by_role("tree"), folder)
    expect(page.get_by_text(f"{MANY + 2} of {MANY + 2} files were uploaded.")).to_be_visible()
    assert {name: other.files.read(f"dropped/{name}") for name in contents} == contents
    assert "dropped/deep/void" in [each.path for each in other.files.list("dropped/deep")]

    # Again: what is there is replaced only when asked; what cannot be saved is said, and the rest is there.
    (folder / "f1").write_bytes(b"new")
    (folder / "f2").write_bytes(b"other")
    page.locator('[data-upload="files"]').set_input_files([folder / "f1", folder / "f2"])
    answer_uploads = page.get_by_role("dialog")
    expect(page.get_by_text("2 of 2 files were uploaded.")).to_be_visible()
    row(page, "dropped").click()
    page.locator('[data-upload="files"]').set_input_files([folder / "f1", folder / "f2"])
    expect(answer_uploads).to_contain_text("is there already")
    answer(page, "Replace all")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(row(page, "f2", 2)).to_contain_text("5 bytes")
    assert other.files.read("dropped/f1") == b"new"
    (tmp_path / "deep").write_bytes(b"a file where there is a folder")
    page.locator('[data-upload="files"]').set_input_files([tmp_path / "deep"])
    answer(page, "Replace")
    failed = page.get_by_role("alert").filter(has_text="1 of 1 files were not uploaded")
    expect(failed).to_contain_text("dropped/deep")
    failed.get_by_role("button", name="Dismiss").click()

    row(page, "deep").click()
    row(page, "ä b.bin").click()
    with page.expect_download() as download:
        page.get_by_role("toolbar", name="Selected").get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "ä b.bin"
    assert Path(download.value.path()).read_bytes() == contents["deep/ä b.bin"]


def test_what_is_edited_is_never_replaced_silently(files: Page, other: Session) -> None:
    page = files
    page.get_by_role("button", name="New file").click()
    expect(page.get_by_label("Path in the workspace")).to_be_focused()
    page.get_by_label("Path in the workspace").fill("../a")
    expect(page.get_by_role("dialog")).to_contain_text("are not allowed")
    answer(page, "Create", "notes/a.txt")
    text(page).fill("one\ntwo\n")
    page.keyboard.press("Control+s")
    expect(status(page)).to_have_text("Saved.")
    assert other.files.read("notes/a.txt") == b"one\ntwo\n"

    # Without changes here, the new version is shown, and its line ends are kept.
    other.files.write("notes/a.txt", "theirs\r\n")
    expect(text(page)).to_have_value("theirs\n")
    text(page).fill("mine\n")
    other.files.write("notes/a.txt", "second\n")
    expect(status(page)).to_contain_text("Saving asks")
    save(page)
    expect(page.get_by_role("dialog")).to_contain_text("was changed elsewhere")
    expect(page.get_by_role("button", name="Go on editing")).to_be_focused()
    answer(page, "Go on editing")
    assert other.files.read("notes/a.txt") == b"second\n"
    expect(text(page)).to_have_value("mine\n")
    save(page)
    answer(page, "Keep mine")
    expect(status(page)).to_have_text("Saved.")
    assert other.files.read("notes/a.txt") == b"mine\r\n"

    text(page).fill("mine again\n")
    other.files.write("notes/a.txt", "third\n")
    save(page)
    answer(page, "Take theirs")
    expect(text(page)).to_have_value("third\n")
    text(page).fill("last\n")
    other.files.delete("notes/a.txt")
    expect(status(page)).to_contain_text("deleted elsewhere")
    save(page)
    expect(status(page)).to_have_text("Saved.")
    assert other.files.read("notes/a.txt") == b"last\n"

    text(page).fill("unsaved")
    page.get_by_role("button", name="Close file").click()
    answer(page, "Go on editing")
    expect(text(page)).to_have_value("unsaved")


def test_what_is_not_edited_is_offered(files: Page, other: Session) -> None:
    page = files
    other.files.write("large.txt", "x" * 3_000_000)
    other.files.write("binary", b"\x00\xff")
    other.sh("ln -s /etc/passwd link", check=True)
    for name, why in (("large.txt", "too large"), ("binary", "not text"), ("link", "link")):
        row(page, name).dblclick()
        expect(page.locator(".file-view").get_by_role("alert")).to_contain_text(why)
    row(page, "binary").dblclick()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download it").click()
    assert Path(download.value.path()).read_bytes() == b"\x00\xff"
