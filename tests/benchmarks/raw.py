"""The yardstick "raw": the smallest client that can run a cell.

Blocking pyzmq, signed frames, a stock ipykernel with no extra option over ipc sockets. Everything the
benchmarks compare themselves with is measured with it, in the same run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zmq

_PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
_DELIMITER = b"<IDS|MSG>"


class RawClient:
    """Talks to a kernel whose connection file is known; `prefix` is the path before `-<port>` as seen here."""

    def __init__(self, key: bytes, prefix: str, timeout: float = 60.0) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)
        self._session = uuid.uuid4().hex
        self._count = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._shell = self._context.socket(zmq.DEALER)
        self._shell.routing_id = self._session.encode()
        self._iopub = self._context.socket(zmq.SUB)
        self._iopub.rcvhwm = 0
        self._iopub.subscribe(b"")
        self._timeout = int(timeout * 1000)
        for socket, channel in ((self._shell, "shell"), (self._iopub, "iopub")):
            socket.linger = 0
            socket.connect(f"ipc://{prefix}-{_PORTS[channel]}")
        self._poller = zmq.Poller()
        self._poller.register(self._shell, zmq.POLLIN)
        self._poller.register(self._iopub, zmq.POLLIN)
        while not self._heard():
            pass

    def execute(self, code: str) -> list[tuple[str, dict[str, Any]]]:
        """Run a cell; give type and content of its output messages, after its reply and idle."""
        msg_id = self._send(
            "execute_request",
            {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": False},
        )
        output: list[tuple[str, dict[str, Any]]] = []
        replied = idle = False
        while not (replied and idle):
            for socket, _ in self._poll():
                header, parent, content = self._receive(socket)
                if parent.get("msg_id") != msg_id:
                    continue
                if socket is self._shell:
                    replied = True
                elif header["msg_type"] != "status":
                    output.append((header["msg_type"], content))
                elif content["execution_state"] == "idle":
                    idle = True
        return output

    def close(self) -> None:
        """Close the sockets."""
        self._context.destroy(linger=0)

    def _heard(self) -> bool:
        """Whether iopub is heard: a subscription takes effect some time after connect."""
        msg_id = self._send("kernel_info_request", {})
        heard = False
        while True:
            for socket, _ in self._poll():
                _, parent, _ = self._receive(socket)
                heard = heard or socket is self._iopub
                if socket is self._shell and parent.get("msg_id") == msg_id:
                    return heard

    def _poll(self) -> list[tuple[Any, int]]:
        ready = self._poller.poll(self._timeout)
        if not ready:
            raise TimeoutError("the kernel does not answer")
        return ready

    def _send(self, msg_type: str, content: dict[str, Any]) -> str:
        self._count += 1
        msg_id = f"{self._session}_{self._count}"
        header = {
            "msg_id": msg_id,
            "session": self._session,
            "username": "",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": msg_type,
            "version": "5.3",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self._shell.send_multipart([_DELIMITER, self._sign(parts), *parts])
        return msg_id

    def _receive(self, socket: zmq.Socket[bytes]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        frames = socket.recv_multipart()
        at = frames.index(_DELIMITER) + 1
        parts = frames[at + 1 : at + 5]
        if not hmac.compare_digest(frames[at], self._sign(parts)):
            raise ValueError("wrong signature")
        return json.loads(parts[0]), json.loads(parts[1]), json.loads(parts[3])

    def _sign(self, parts: Sequence[bytes]) -> bytes:
        mac = self._mac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()


class RawKernel:
    """A stock ipykernel on this host and its raw client; `with RawKernel(directory) as client: …`."""

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self._prefix = str(directory / "raw")
        self._key = uuid.uuid4().hex
        file = directory / "raw.json"
        ports = {f"{channel}_port": port for channel, port in _PORTS.items()}
        file.write_text(
            json.dumps(
                {"transport": "ipc", "ip": self._prefix, "key": self._key, "signature_scheme": "hmac-sha256", **ports}
            )
        )
        self._process = subprocess.Popen(
            [python, "-m", "ipykernel_launcher", "-f", str(file)], stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.client: RawClient | None = None

    def __enter__(self) -> RawClient:
        self.client = RawClient(self._key.encode(), self._prefix)
        return self.client

    def __exit__(self, *_: object) -> None:
        if self.client is not None:
            self.client.close()
        self._process.kill()
        self._process.wait()

    def __repr__(self) -> str:
        return f"<RawKernel {self._prefix}>"
