"""What cells show: text of any length, pictures, formulas, tables, HTML in frames."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.driving import cell, done, quiet, ready, run

FLAGS = {"egress": "packages"}
DISPLAYS = """
from IPython.display import display, HTML, JSON, Latex, Markdown, SVG, Image, Javascript
import base64
dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
display(Image(data=base64.b64decode(dot)))
display(SVG('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><rect width="40" height="30"/></svg>'))
text = "# Title\\n\\n**bold** and $x^2$ and [link](https://a.example/)\\n\\n"
display(Markdown(text + "| a | b |\\n|---|---|\\n| 1 | 2 |"))
display(Latex(r"\\begin{align} a &= b \\end{align}"))
display(JSON({"list": [1, {"deep": None}]}, expanded=True))
display({"application/vnd.dataresource+json": {"schema": {"fields": [{"name": "n"}]}, "data": [{"n": 7}]}}, raw=True)
display({"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "IntSlider(value=3)"}, raw=True)
display(HTML("<p id=p>from html</p><script>document.getElementById('p').textContent += ', and a script'</script>"))
display(Javascript("document.body.append('drawn by javascript')"))
"""


@pytest.fixture
def page(open_page: Open) -> Page:
    made = open_page()
    ready(made)
    return made


def test_every_kind(page: Page) -> None:
    is_quiet = quiet(page)
    found = run(page, DISPLAYS)
    done(found)
    expect(found.locator("img.picture")).to_have_count(2)
    expect(found.locator('img[src^="data:image/svg+xml"]')).to_be_visible()
    expect(found.get_by_role("heading", name="Title")).to_be_visible()
    expect(found.locator(".katex")).to_have_count(2)
    expect(found.locator(".markdown td").first).to_have_text("1")
    found.get_by_text("list: [ 2 ]").click()
    found.get_by_text("1: { 1 }").click()
    expect(found.get_by_text("deep: null")).to_be_visible()
    expect(found.locator(".table td")).to_have_text("7")
    expect(found.get_by_text("This is an interactive widget (IntSlider(value=3))")).to_be_visible()
    frames = [found.frame_locator("iframe.frame").nth(number) for number in range(2)]
    expect(frames[0].locator("#p")).to_have_text("from html, and a script")
    expect(frames[1].get_by_text("drawn by javascript")).to_be_visible()
    # A frame is as high as its content.
    expect(found.locator("iframe.frame").first).to_have_attribute("style", re.compile(r"height: \d\dpx"))
    is_quiet()


def test_an_output_that_needs_the_network_says_so(page: Page) -> None:
    html = '<script src="https://cdn.example.org/lib.js"></script><a href="https://b.example.org">only a link</a>'
    found = run(page, f"from IPython.display import HTML\nHTML({html!r})")
    done(found)
    expect(found.get_by_text("This output loads something from cdn.example.org. Outputs")).to_be_visible()


def test_colours_and_progress_bars(page: Page) -> None:
    code = """
import sys, time
for part in ("\\x1b[3", "1mred\\x1b[0m plain\\n", "10 %", "\\r50", " %\\r100 %", "\\n", "\\x1b]8;;https://a.example/x\\x1b\\\\go\\x1b]8;;\\x1b\\\\\\n"):
    print(part, end="", flush=True)
print("bad", file=sys.stderr)
"""
    found = run(page, code)
    done(found)
    expect(found.locator(".ansi-red").first).to_have_text("red")
    expect(found.locator(".text")).to_contain_text("100 %")
    expect(found.locator(".text")).not_to_contain_text("50")
    link = found.get_by_role("link", name="go")
    expect(link).to_have_attribute("href", "https://a.example/x")
    expect(link).to_have_attribute("rel", "noopener noreferrer")
    expect(found.locator(".stderr")).to_have_text("bad")


def test_displays_that_change(page: Page) -> None:
    done(run(page, "bar = display('0 %', display_id='bar')"))
    expect(cell(page, 1).locator(".outputs")).to_have_text("'0 %'")
    page.get_by_role("button", name="+ Code").click()
    done(
        run(
            page,
            "bar.update('100 %')\nfrom IPython.display import clear_output\nprint('old')\nclear_output()\nprint('new')",
            2,
        )
    )
    expect(cell(page, 1).locator(".outputs")).to_have_text("'100 %'")
    expect(cell(page, 2).locator(".outputs")).to_have_text("new")


def test_a_hundred_thousand_lines(page: Page) -> None:
    """The page has the first and the last of them, and can be used meanwhile."""
    found = run(page, "for i in range(100_000): print('line', i)")
    done(found)
    expect(found.locator(".text")).to_contain_text("line 0\n")
    expect(found.locator(".text")).to_contain_text("line 99999")
    expect(found.locator(".dropped")).to_contain_text("lines between are not shown")
    lines = found.locator(".text").evaluate("element => element.textContent.split('\\n').length")
    assert lines < 2500
    done(run(page, "'still here'"))


def test_endless_printing_is_bounded_and_can_be_stopped(page: Page) -> None:
    found = run(page, "while True: print('x' * 60)")
    expect(found.locator(".dropped")).to_be_visible()
    assert page.evaluate("document.querySelectorAll('*').length") < 5000
    page.get_by_role("button", name="Stop", exact=True).click()
    done(found, "failed")
    assert found.locator(".text").first.evaluate("element => element.textContent.length") < 1_500_000


def test_the_end_is_followed_only_while_it_is_in_view(page: Page) -> None:
    found = run(page, "for i in range(300): print(i)\ninput('more? ')\nfor i in range(300): print(i)")
    text = found.locator(".text")
    at_end = "element => element.scrollTop + element.clientHeight >= element.scrollHeight - 10"
    expect(found.get_by_label("more?")).to_be_visible()
    page.wait_for_function(at_end, arg=text.element_handle())
    text.evaluate("element => { element.scrollTop = 50; }")
    expect(text).to_have_js_property("scrollTop", 50)
    found.get_by_label("more?").fill("")
    page.keyboard.press("Enter")
    done(found)
    expect(text).to_have_js_property("scrollTop", 50)


def test_limits_are_said_where_they_happen(page: Page) -> None:
    found = run(page, "print('x' * 11_999_999)")
    done(found)
    expect(found).to_contain_text("The output is larger than a message may be")
    expect(found).to_contain_text(".kernelbridge/output/")


def test_a_host_that_is_refused_is_named(page: Page) -> None:
    code = "import urllib.request\ntry: urllib.request.urlopen('https://example.org')\nexcept OSError: print('refused')"
    found = run(page, code)
    done(found)
    expect(found.locator(".outputs")).to_contain_text("refused")
    expect(found.locator(".note.warning").first).to_contain_text("example.org:443")
