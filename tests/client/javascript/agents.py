"""Node and Chromium, in which scenarios of the JavaScript client run, and the faults that these ask for."""

import json
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.client.servers import PATIENCE

CLIENT = Path(__file__).parents[3] / "clients" / "javascript"
TYPES = {".js": "text/javascript", ".html": "text/html"}
POLL = 5.0
"""Seconds after which a page asks again what to do."""

Control = Callable[[str, Any], dict[str, Any]]


def node_modules() -> Path:
    """Return the packages that the tests need; raises if they are not installed."""
    modules = CLIENT / "node_modules"
    if not (modules / "ws").is_dir():
        raise AssertionError(f"the packages of the JavaScript client are missing: npm ci --prefix {CLIENT}")
    return modules


class Agent:
    """A process that runs scenarios, one after the other: it asks an HTTP server for them, and tells it what came out.

    `kind` is `node` or `chromium`.
    """

    def __init__(self, kind: str) -> None:
        node_modules()
        self.control: Control | None = None
        """Does what a scenario asks for."""
        self._todo: queue.Queue[dict[str, Any]] = queue.Queue()
        self._done: queue.Queue[dict[str, Any]] = queue.Queue()
        self._number = 0
        self._ended = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="agent's server")
        self._thread.start()
        home = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._profile = tempfile.mkdtemp(prefix="kernelbridge-chromium-")
        self.process = subprocess.Popen(_command(kind, home, self._profile), stderr=subprocess.DEVNULL)

    def run(self, scenario: str, control: Control, **options: Any) -> None:
        """Run a scenario. Raises `AssertionError` with what it said when it failed."""
        self.control = control
        self._number += 1
        self._todo.put({"scenario": scenario, "options": options, "number": self._number})
        done: dict[str, Any] = {"number": 0}
        try:
            while done["number"] != self._number:  # or it is from a scenario that took too long
                done = self._done.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"{scenario} did not end") from None
        assert done["error"] is None, done["error"]

    def close(self) -> None:
        self._ended = True
        self.process.terminate()
        self.process.wait(PATIENCE)
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()
        shutil.rmtree(self._profile, ignore_errors=True)

    # -- for the HTTP server --------------------------------------------------------

    def get(self, path: str) -> tuple[int, str, bytes]:
        """Return the answer to a GET: status, type and body."""
        if path == "/next":
            if self._ended:
                return 410, "text/plain", b""
            try:
                return 200, "application/json", json.dumps(self._todo.get(timeout=POLL)).encode()
            except queue.Empty:
                return 204, "text/plain", b""
        # The page of the documentation has the client beside it.
        file = (CLIENT / path.replace("/tests/kernelbridge/", "/src/").lstrip("/")).resolve()
        if not file.is_relative_to(CLIENT) or file.suffix not in TYPES or not file.is_file():
            return 404, "text/plain", b""
        return 200, TYPES[file.suffix], file.read_bytes()

    def post(self, path: str, body: Any) -> tuple[int, str, bytes]:
        """Return the answer to a POST."""
        if path == "/done":
            self._done.put(body)
            return 200, "application/json", b"null"
        assert self.control is not None
        try:
            return 200, "application/json", json.dumps(self.control(body["what"], body["argument"])).encode()
        except Exception as exc:  # noqa: BLE001 - the scenario fails with it
            return 500, "text/plain", repr(exc).encode()


def _command(kind: str, home: str, profile: str) -> list[str]:
    if kind == "node":
        return ["node", str(CLIENT / "tests" / "agent.js"), home]
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-dev-shm-usage")
    words = [f"--{flag}" for flag in (*flags, "no-first-run", f"user-data-dir={profile}")]
    return ["chromium", *words, f"{home}/tests/agent.html"]


def _handler(agent: Agent) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(*agent.get(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(*agent.post(self.path, json.loads(body)))

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
