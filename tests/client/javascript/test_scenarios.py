"""The scenarios of the JavaScript client, in Node and in a page of Chromium, against a real server."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.client.javascript.agents import CLIENT, Agent
from tests.client.servers import PATIENCE, ServerProcess, Wire
from tests.integration.lessons import SavedFile, steps

FLAGS = {"journal_size": "2k", "linger": "60s"}
"""Few answers are kept, so that a test can push one out."""

TOKEN = "t" * 43
SOURCE = (CLIENT / "tests" / "scenarios.js").read_text(encoding="utf-8")
SCENARIOS = re.findall(r"^  async (\w+)\(", SOURCE, re.MULTILINE)
OF_PAGES = [scenario for scenario in SCENARIOS if scenario.startswith("a_page_")]
OF_THE_CORE = (
    "an_answer_that_nobody_has_any_more_is_unknown",
    "a_session_that_is_closed_meanwhile_is_lost",
    "a_run_outlives_a_server_that_is_killed",
    "a_run_that_nobody_waits_for_is_interrupted_or_withdrawn",
)
"""Those in which it matters nothing whose socket it is, so Node alone plays them."""
PLAYED = [("node", each) for each in SCENARIOS if each not in OF_PAGES]
PLAYED += [("chromium", each) for each in SCENARIOS if each not in OF_THE_CORE]
GUIDE = CLIENT.parents[1] / "docs" / "how-to" / "javascript-client.md"


@pytest.fixture(scope="module")
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    made = Agent(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants a token."""
    directory = tmp_path_factory.mktemp("guarded")
    tokens = directory / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"ada {TOKEN}\n")
    made = ServerProcess(directory / "data", auth="token", token_file=str(tokens))
    yield made
    made.end()


class Redirector:
    """A server that leads every request to another address of itself, and keeps what arrives there."""

    def __init__(self) -> None:
        self.arrived = b""
        redirector = self

        class Handler(BaseHTTPRequestHandler):
            def do_OPTIONS(self) -> None:
                self._answer(204)

            def do_HEAD(self) -> None:
                self._answer(307)

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                redirector.arrived += content if "/there/" in self.path else b""
                self._answer(201 if "/there/" in self.path else 307)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                for name in ("Origin", "Methods", "Headers"):
                    self.send_header(f"Access-Control-Allow-{name}", "PUT, HEAD" if name == "Methods" else "*")
                self.send_header("Location", f"/there{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


class Faults:
    """What scenarios may ask for."""

    redirector: Redirector

    def __init__(self, server: ServerProcess, wire: Wire, token_wire: Wire | None) -> None:
        self._server = server
        self._wire = wire
        self._token_wire = token_wire

    def __call__(self, what: str, argument: Any) -> dict[str, Any]:  # noqa: C901, PLR0912 - one branch for each
        wire, token_wire = self._wire, self._token_wire
        match what:
            case "look":
                return {"connections": wire.connections, "ranges": wire.heard.lower().count(b"\r\nrange: bytes=")}
            case "cut" | "stall" | "flow":
                getattr(wire, what)()
            case "refuse" | "accept":
                wire.refuses = what == "refuse"
            case "garble":
                wire.garbles = True
            case "cutBefore" | "cutBeforeAndRefuse":
                wire.cut_before, wire.refuses_then = argument.encode(), what != "cutBefore"
            case "cutAfterAndRefuse":
                wire.cut_after, wire.refuses_then = len(wire.heard) + argument, True
            case "untilCut":
                wire.cuts.get(timeout=PATIENCE)
            case "kill" | "start" | "freeze" | "thaw":
                getattr(self._server, what)()
            case "cutToken" if token_wire is not None:
                token_wire.cut()
            case "tokenRequests" if token_wire is not None:
                lines = [line for line in bytes(token_wire.heard).split(b"\r\n") if b" HTTP/1.1" in line]
                return {"requests": len(lines), "withToken": sum(b"ttt" in line or b"www" in line for line in lines)}
            case "redirect":
                return {"url": self.redirector.url}
            case "arrived":
                return {"there": self.redirector.arrived.decode()}
            case _:
                raise ValueError(what)
        return {}


@pytest.mark.parametrize(("agent", "scenario"), PLAYED, indirect=["agent"])
def test_a_scenario(agent: Agent, wire: Wire, user: str, scenario: str, request: pytest.FixtureRequest) -> None:
    server = wire.target
    token_wire = None
    options = {"user": user, "url": server.url, "wireUrl": wire.url}
    if "token" in scenario:
        token_wire = Wire(request.getfixturevalue("guarded"))
        request.addfinalizer(token_wire.close)
        options |= {"token": TOKEN, "tokenUrl": token_wire.url}
    if "documentation" in scenario:
        [page] = [step for step in steps(GUIDE) if isinstance(step, SavedFile) and step.name == "index.html"]
        options |= {"html": page.text}
    faults = Faults(server, wire, token_wire)
    if "redirect" in scenario:
        faults.redirector = Redirector()
        request.addfinalizer(faults.redirector.close)
    agent.run(scenario, faults, **options)


def test_the_scenarios_are_found() -> None:
    assert len(SCENARIOS) > len(OF_PAGES) + 12
    assert len(OF_PAGES) > 1
    assert set(OF_THE_CORE) <= set(SCENARIOS)
