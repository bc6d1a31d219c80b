"""Terminals in the page: attached again, in two tabs, in floods, by keyboard, and what their programs may do."""

import re
import shlex
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.page.conftest import Open

Terminal = Callable[..., Page]


@pytest.fixture
def open_terminal(open_page: Open) -> Terminal:
    """Open a tab with the first terminal of a session, ready for keys."""

    def opened(session: str = "main") -> Page:
        page = open_page(session)
        page.locator("#terminal-tab").click()
        expect(screen(page)).to_contain_text("$")
        focus(page)
        return page

    return opened


def screen(page: Page) -> Locator:
    return page.locator(".terminal-screen:visible .xterm-rows")


def focus(page: Page) -> None:
    """Give the terminal the focus, when it takes keys."""
    area = page.locator(".terminal-screen:visible .xterm-helper-textarea")
    expect(area).to_be_editable()
    area.focus()


def enter(page: Page, line: str) -> None:
    page.keyboard.insert_text(line)
    page.keyboard.press("Enter")


def ask_emulator(page: Page, label: str) -> None:
    """Ask the emulator for its kind, and wait for its one answer."""
    read = "read -rs -d c -t 60 first; read -rs -n 9 -t 1 second"
    enter(page, f"stty -echo; printf '\\033[c'; {read}; stty echo; echo {label}=${{first#?}}-$second.")
    expect(screen(page)).to_contain_text(re.compile(rf"{label}=\[\?[\d;]+-\."))


def interrupt(page: Page) -> None:
    """Press Ctrl-C, and wait for the prompt: what is typed before it may be dropped with the signal."""
    page.keyboard.press("Control+c")
    expect(screen(page)).to_contain_text(re.compile(r"\^C.*\$\s*$"))


def size(page: Page, label: str) -> str:
    enter(page, f"echo {label}-$(stty size | tr ' ' x)-")
    expect(screen(page)).to_contain_text(re.compile(rf"{label}-\d+x\d+-"))
    return str(re.findall(rf"{label}-(\d+x\d+)-", screen(page).inner_text())[-1])


def test_a_terminal_is_attached_again(open_terminal: Terminal) -> None:
    page = open_terminal()
    violations: list[str] = []
    page.on("console", lambda message: violations.append(message.text) if message.type == "error" else None)
    ask_emulator(page, "live")
    # The answers that come now are read. The questions stay in the terminal's output.
    enter(page, "printf '\\033[c\\033[6n'; read -rs -t 1 -n 99 rest; kept=7; echo kept-$kept")
    expect(screen(page)).to_contain_text("kept-7")
    page.get_by_role("button", name="New terminal").click()
    expect(screen(page)).to_contain_text("$")
    page.reload()
    page.locator("#terminal-tab").click()
    expect(page.get_by_role("tab", name="Terminal 2")).to_be_visible()
    expect(screen(page)).to_contain_text("kept-7")
    focus(page)
    enter(page, "echo mark-$((kept * 6))")
    expect(screen(page)).to_contain_text("mark-42")
    # An answer to a question that came again would have been typed into the shell.
    assert "$ echo mark-$((kept * 6))" in screen(page).inner_text(), screen(page).inner_text()
    ask_emulator(page, "again")
    assert violations == []


def test_the_colours_of_programs_under_the_policy(open_terminal: Terminal) -> None:
    page = open_terminal()
    violations: list[str] = []
    page.on("console", lambda message: violations.append(message.text) if message.type == "error" else None)
    enter(page, "clear; printf '\\033[38;2;0;90;200mtrue\\033[0m \\033[31mred\\033[0m\\n'")
    true = screen(page).get_by_text("true", exact=True)
    expect(true).to_have_css("color", "rgb(0, 90, 200)")
    red = screen(page).get_by_text("red", exact=True)
    light = red.evaluate("element => getComputedStyle(element).color")
    page.emulate_media(color_scheme="dark")
    expect(red).not_to_have_css("color", light)
    assert violations == []


def test_one_terminal_in_two_tabs(open_terminal: Terminal, open_page: Open) -> None:
    """A session is in one tab at a time, and so are the answers to its programs and the size of its terminals."""
    first = open_terminal()
    before = size(first, "first")
    second = open_page("main")
    second.set_viewport_size({"width": 700, "height": 500})
    second.get_by_role("button", name="Continue here").click()
    second.locator("#terminal-tab").click()
    expect(screen(second)).to_contain_text("first-")
    focus(second)
    ask_emulator(second, "one")
    assert size(second, "second") != before
    expect(first.locator(".xterm")).to_have_count(0)
    first.bring_to_front()
    first.get_by_role("button", name="Continue here").click()
    first.locator("#terminal-tab").click()
    expect(screen(first)).to_contain_text("second-")
    focus(first)
    assert size(first, "back").partition("x")[2] == before.partition("x")[2]


def test_a_flood(open_terminal: Terminal) -> None:
    page = open_terminal()
    enter(page, "yes flooding")
    expect(screen(page)).to_contain_text("flooding" * 5)
    interrupt(page)
    enter(page, "echo mark-$((6 * 7))")
    expect(screen(page)).to_contain_text("mark-42")
    assert page.locator(".xterm-rows *").count() < 2_000


def test_what_programs_may_do(open_terminal: Terminal, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = open_terminal()
    clipboard = "() => navigator.clipboard.readText()"
    page.evaluate("() => navigator.clipboard.writeText('secret')")

    enter(page, "stty -echo; printf '\\033]52;c;?\\007'; read -rs -n 9 -t 1 a; stty echo; echo read=$a.")
    expect(screen(page)).to_contain_text("read=.")
    expect(page.get_by_text("asked for the clipboard")).to_be_visible()

    write = "printf '\\033]52;c;%s\\007' $(printf {} | base64)"
    enter(page, write.format("evil"))
    expect(page.get_by_text("tried to write the clipboard")).to_be_visible()
    assert page.evaluate(clipboard) == "secret"
    page.get_by_label("Programs may write the clipboard").check()
    focus(page)
    enter(page, write.format("wanted") + "; echo $((6 * 7))")
    expect(screen(page)).to_contain_text("42")
    expect_soon(lambda: page.evaluate(clipboard) == "wanted", page)

    link = "printf '\\033]8;;{}\\033\\\\{}\\033]8;;\\033\\\\\\n'"
    bad, good = "javascript:document.title=1", page.url.partition("#")[0] + "healthz"
    enter(page, f"clear; {link.format(bad, 'bad-link')}; echo; {link.format(good, 'good-link')}; echo there")
    expect(screen(page)).to_contain_text(re.compile("^bad-link.*there"))
    click(page, "bad-link", bad)
    expect(page.get_by_text("The link was not opened")).to_be_visible()
    with page.expect_popup() as popup:
        click(page, "good-link", good)
    assert popup.value.evaluate("() => window.opener") is None
    assert page.title() != "1"


def click(page: Page, text: str, address: str) -> None:
    """Click at a link of the screen, when the emulator has found it under the pointer."""
    link = screen(page).locator("span", has_text=re.compile(f"^{text}$"))
    box = link.bounding_box()
    while box is None:  # the emulator has drawn the line anew meanwhile
        expect(link).to_be_visible()
        box = link.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2, steps=3)
    expect(page.locator(".terminal-link")).to_have_text(address)
    page.mouse.down()
    page.mouse.up()


def expect_soon(condition: Callable[[], bool], page: Page) -> None:
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen")


def test_keyboard_and_input_methods(open_terminal: Terminal, context: BrowserContext) -> None:
    page = open_terminal()
    area = page.locator(".terminal-screen:visible .xterm-helper-textarea")
    expect(area).to_have_accessible_description(re.compile("Escape, then Tab"))
    cdp = context.new_cdp_session(page)
    page.keyboard.insert_text("echo one-")
    for text in ("に", "にほ", "にほん"):
        cdp.send("Input.imeSetComposition", {"text": text, "selectionStart": len(text), "selectionEnd": len(text)})
    cdp.send("Input.insertText", {"text": "日本"})
    page.keyboard.press("Enter")
    expect(screen(page)).to_contain_text("echo one-日本one-日本workspace")

    page.keyboard.press("Tab")
    expect(area).to_be_focused()

    # A hidden panel sends no size: the program sees one new size, that of the panel when it is shown again.
    # A shell that waits for a program ignores Ctrl-C when the program has just ended, unless it has a trap.
    loop = "trap exit INT; trap 'echo size-$(stty size | tr \" \" x)-' WINCH; echo ready; while sleep 0.02; do :; done"
    enter(page, f"clear; bash -c {shlex.quote(loop)}")
    expect(screen(page)).to_contain_text(re.compile("^ready"))
    page.locator("#files-tab").click()
    page.set_viewport_size({"width": 700, "height": 500})
    page.locator("#terminal-tab").click()
    expect(screen(page)).to_contain_text(re.compile(r"size-\d+x\d+-"))
    focus(page)
    interrupt(page)
    rows, cols = size(page, "end").split("x")
    assert set(re.findall(r"size-(\d+x\d+)-", screen(page).inner_text())) == {f"{rows}x{cols}"}
    assert 20 < int(cols) < 100

    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Screen reader mode")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator(".xterm-accessibility-tree")).to_be_attached()
    page.keyboard.press("Space")
    expect(page.locator(".xterm-accessibility-tree")).to_have_count(0)


def test_new_closed_and_ended(open_terminal: Terminal) -> None:
    page = open_terminal()
    page.get_by_role("button", name="New terminal").click()
    expect(page.get_by_role("tab", name="Terminal 2")).to_have_attribute("aria-selected", "true")
    expect(screen(page)).to_contain_text("$")
    expect(page.locator(".terminal-screen:visible .xterm-helper-textarea")).to_be_focused()
    enter(page, "exit 3")
    expect(page.get_by_text("The shell ended (exit code 3).")).to_be_visible()
    page.get_by_role("button", name="Start a new shell").click()
    expect(screen(page)).to_contain_text("$")
    focus(page)
    enter(page, "echo mark-$((6 * 7))")
    expect(screen(page)).to_contain_text("mark-42")
    page.get_by_role("button", name="Close Terminal 2").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Close Terminal 2").click()
    page.get_by_role("button", name="End it").click()
    expect(page.get_by_role("tab", name="Terminal 2")).to_have_count(0)
    page.reload()
    page.locator("#terminal-tab").click()
    expect(screen(page)).to_contain_text("$")
    expect(page.get_by_role("tab", name="Terminal 2")).to_have_count(0)
