"""Cells: running, asking, stopping, moving; by keyboard."""

from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.driving import cell, done, quiet, ready, run, write


def test_a_morning_of_work(open_page: Open) -> None:
    """Everything with one page, because a session is costly to start."""
    page = open_page()
    is_quiet = quiet(page)
    ready(page)
    run_and_go_on(page)
    an_error(page)
    a_question(page)
    stop(page)
    restart(page)
    is_quiet()


def run_and_go_on(page: Page) -> None:
    write(page, 1, "print('hello')\n6 * 7")
    page.keyboard.press("Shift+Enter")
    done(cell(page, 1))
    expect(cell(page, 1).locator(".outputs")).to_have_text("hello\n42", use_inner_text=True)
    expect(cell(page, 1).locator(".gutter")).to_have_text("[1]")
    # The next cell has the keyboard.
    page.keyboard.type("x = 5")
    page.keyboard.press("Control+Enter")
    done(cell(page, 2))


def an_error(page: Page) -> None:
    found = run(page, "def f(): return 1/0\nf()", 2)
    done(found, "failed")
    expect(found.get_by_role("group", name="Error")).to_contain_text("ZeroDivisionError: division by zero")
    expect(found.locator(".traceback .ansi-red").last).to_be_visible()


def a_question(page: Page) -> None:
    code = "from getpass import getpass\nname = input('Your name? ')\nword = getpass('Word? ')\nprint(name, len(word))"
    found = run(page, code, 2)
    expect(found.get_by_label("Your name?")).to_be_focused()
    page.keyboard.type("Ann")
    page.keyboard.press("Enter")
    expect(found.get_by_label("Word?")).to_have_attribute("type", "password")
    expect(found.get_by_label("Word?")).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    done(found)
    expect(found.locator(".outputs")).to_contain_text("Ann 6")
    expect(found.locator(".outputs")).not_to_contain_text("secret")


def stop(page: Page) -> None:
    found = run(page, "import time\nprint('begun')\ntime.sleep(600)", 2)
    expect(found.locator(".outputs")).to_contain_text("begun")
    page.get_by_role("button", name="Stop cell 2").click()
    done(found, "failed")
    expect(found).to_contain_text("It was interrupted.")


def restart(page: Page) -> None:
    page.get_by_role("button", name="Restart").click()
    expect(page.get_by_text("The interpreter was restarted")).to_be_visible()
    done(run(page, "print('x' in globals())", 2))
    expect(cell(page, 2).locator(".outputs")).to_contain_text("False")


def test_keys_and_undo(open_page: Open) -> None:
    """Also what is undone after cells were moved or deleted: the one cell that was edited."""
    page = open_page()
    ready(page)
    write(page, 1, "one")
    page.keyboard.press("Escape")
    expect(cell(page, 1)).to_be_focused()
    page.keyboard.press("b")
    expect(cell(page, 2).locator(".cm-content")).to_be_focused()
    page.keyboard.type("two")
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+ArrowUp")
    expect(cell(page, 1).locator(".cm-content")).to_have_text("two")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Z")
    expect(cell(page, 1).locator(".cm-content")).to_have_text("")
    expect(cell(page, 2).locator(".cm-content")).to_have_text("one")
    page.keyboard.press("Control+Y")
    page.keyboard.press("Escape")
    page.keyboard.press("Delete")
    expect(page.locator("section.cell")).to_have_count(1)
    expect(cell(page, 1)).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("section.cell")).to_have_count(2)
    expect(cell(page, 1).locator(".cm-content")).to_have_text("two")
    # Tab leaves the editor.
    page.keyboard.press("Enter")
    expect(cell(page, 1).locator(".cm-content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Run cell 1")).to_be_focused()


def test_help_of_the_kernel(open_page: Open) -> None:
    page = open_page()
    ready(page)
    done(run(page, "answer_to_everything = 42"))
    write(page, 1, "")
    page.keyboard.type("answer_to")
    expect(page.get_by_role("option", name="answer_to_everything")).to_be_visible()
    # A list that has only just come takes no keys, so that it does not take what was meant for the text.
    while page.get_by_role("option").count() > 0:
        page.keyboard.press("Tab")
    expect(cell(page, 1).locator(".cm-content")).to_have_text("answer_to_everything")
    page.keyboard.press("F1")
    expect(page.get_by_role("note")).to_contain_text("int")
    page.keyboard.press("Escape")
    expect(page.get_by_role("note")).to_have_count(0)
    expect(cell(page, 1).locator(".cm-content")).to_be_focused()


def test_what_the_text_is_when_a_completion_comes_late(open_page: Open) -> None:
    """An answer about what was typed before is not inserted into what is typed now."""
    page = open_page()
    ready(page)
    code = (
        "import time\nclass Slow:\n    def __dir__(self):\n        time.sleep(1)\n        return ['late']\ns = Slow()"
    )
    done(run(page, code))
    write(page, 1, "")
    page.keyboard.type("s.")
    page.keyboard.press("Control+Space")
    page.keyboard.type(" # quite another text")
    # The kernel answers in order, so the late answer has come when this one has.
    page.keyboard.press("F1")
    expect(page.get_by_role("note")).to_be_visible()
    expect(page.get_by_role("option")).to_have_count(0)
    expect(cell(page, 1).locator(".cm-content")).to_have_text("s. # quite another text")


FORMAT: Any = nbformat
"""Without annotations of its own."""
HOSTILE = "<img src=x onerror='parent.document.title = 1'><script>top.document.title = 2</script>"


def test_a_notebook_file(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    is_quiet = quiet(page)
    ready(page)
    done(run(page, "import sys; print('out'); print('err', file=sys.stderr); 6 * 7"))
    page.keyboard.press("Shift+Enter")  # once more, and another cell
    done(run(page, "1 / 0", 2), "failed")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export .ipynb").click()
    assert download.value.suggested_filename == "main.ipynb"
    file = tmp_path / "theirs.ipynb"
    download.value.save_as(file)
    notebook = FORMAT.read(file, as_version=4)
    FORMAT.validate(notebook)
    first, second = notebook.cells
    assert [(output.output_type, output.get("text") or output["data"]["text/plain"]) for output in first.outputs] == [
        ("stream", "out\n"),
        ("stream", "err\n"),
        ("execute_result", "42"),
    ]
    assert (second.outputs[0].ename, second.outputs[0].evalue) == ("ZeroDivisionError", "division by zero")
    is_quiet()

    shown = FORMAT.v4.new_output("display_data", data={"text/html": HOSTILE, "text/plain": "plain"})
    notebook.cells += [FORMAT.v4.new_code_cell("7 * 6", outputs=[shown]), FORMAT.v4.new_markdown_cell(HOSTILE)]
    FORMAT.write(notebook, file)
    page.get_by_label("A notebook to import").set_input_files(file)
    expect(page.get_by_text("4 cells of theirs.ipynb were added")).to_be_visible()
    expect(page.locator("section.cell")).to_have_count(6)
    expect(cell(page, 3).locator(".outputs")).to_contain_text("err")
    expect(cell(page, 4)).to_have_attribute("aria-label", "Cell 4, failed")
    expect(cell(page, 5).locator("iframe")).to_be_visible()
    cell(page, 5).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    done(cell(page, 5))
    expect(cell(page, 5).locator(".outputs")).to_have_text("42", use_inner_text=True)
    assert page.title() not in {"1", "2"}

    file.write_text('{"nbformat": 3, "cells": []}')
    page.get_by_label("A notebook to import").set_input_files(file)
    expect(page.get_by_text("theirs.ipynb was not imported: it has format 3")).to_be_visible()
    expect(page.locator("section.cell")).to_have_count(6)
