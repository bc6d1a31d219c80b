"""A kernel with a fault: `python faulty_kernel.py FAULT CONNECTION_FILE`.

It answers `kernel_info_request` as it should, and to `execute_request` does what its fault says; or it drops some of
what it is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import zmq

FAULT, FILE = sys.argv[1:3]
INFO = json.loads(Path(FILE).read_text())
DELIMITER = b"<IDS|MSG>"
HELP = {"help is nonsense", "help is large", "help is too large", "help on another channel", "help never comes"}


def bind(context: zmq.Context[zmq.Socket[bytes]], kind: int, channel: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.bind(f"ipc://{INFO['ip']}-{INFO[channel + '_port']}")
    return socket


class Kernel:
    def __init__(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.shell = bind(context, zmq.ROUTER, "shell")
        self.control = bind(context, zmq.ROUTER, "control")
        self.stdin = bind(context, zmq.ROUTER, "stdin")
        self.iopub = bind(context, zmq.PUB, "iopub")
        self.hb = bind(context, zmq.REP, "hb")
        self.executed: list[dict[str, Any]] = []
        self.seen: dict[tuple[int, str], int] = {}

    def serve(self) -> None:
        poller = zmq.Poller()
        for socket in (self.shell, self.control):
            poller.register(socket, zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                identity, _, _, header, _, _, content = socket.recv_multipart()
                request = json.loads(header)
                if self.drops(socket, request):
                    continue
                self.iopub_send("status", request, {"execution_state": "busy"})
                if request["msg_type"] == "execute_request" and json.loads(content).get("silent"):
                    self.install(identity, request)
                    continue
                if request["msg_type"] == "execute_request":
                    self.execute(identity, request)
                    continue
                reply = request["msg_type"].replace("_request", "_reply")
                if FAULT in HELP and reply == "complete_reply":
                    self.help(identity, request)
                    continue
                self.send(socket, [identity], reply, request, {"status": "ok"})
                self.iopub_send("status", request, {"execution_state": "idle"})

    def drops(self, socket: zmq.Socket[bytes], request: dict[str, Any]) -> bool:
        """Return whether it drops a request, as a kernel may that is not up yet."""
        seen = self.seen[id(socket), request["msg_type"]] = self.seen.get((id(socket), request["msg_type"]), 0) + 1
        match FAULT:
            case "drops its first requests":
                return request["msg_type"] == "kernel_info_request" and seen <= 2
            case "drops its first execution":
                return request["msg_type"] == "execute_request" and seen == 1
            case "deaf on control" | "deaf on control, never answers":
                return socket is self.control
            case "deaf":
                return True
            case "slow at first":
                time.sleep(1.0 if seen == 1 else 0)
        return False

    def install(self, identity: bytes, request: dict[str, Any]) -> None:
        """Answer that the program of the expression has run."""
        content = {"status": "ok", "execution_count": 0, "user_expressions": {"hooks": {"status": "ok"}}}
        self.send(self.shell, [identity], "execute_reply", request, content)
        self.iopub_send("status", request, {"execution_state": "idle"})

    def frames(
        self,
        msg_type: str,
        parent: dict[str, Any],
        content: bytes,
        key: bytes = INFO["key"].encode(),
        header: bytes | None = None,
    ) -> list[bytes]:
        if header is None:
            header = json.dumps({"msg_id": os.urandom(8).hex(), "msg_type": msg_type, "version": "5.3"}).encode()
        parts = [header, json.dumps(parent).encode(), b"{}", content]
        mac = hmac.new(key, digestmod=hashlib.sha256)
        for part in parts:
            mac.update(part)
        return [DELIMITER, mac.hexdigest().encode(), *parts]

    def send(self, socket: Any, prefix: list[bytes], msg_type: str, parent: dict[str, Any], content: Any) -> None:
        if FAULT == "mute" and socket is self.iopub:
            return
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        socket.send_multipart([*prefix, *self.frames(msg_type, parent, raw)])

    def iopub_send(self, msg_type: str, parent: dict[str, Any], content: Any) -> None:
        self.send(self.iopub, [b"topic"], msg_type, parent, content)

    def finish(self, identity: bytes, request: dict[str, Any]) -> None:
        self.send(self.shell, [identity], "execute_reply", request, {"status": "ok", "execution_count": 1})
        self.iopub_send("status", request, {"execution_state": "idle"})

    def help(self, identity: bytes, request: dict[str, Any]) -> None:
        good = {"status": "ok", "matches": ["good"], "cursor_start": 0, "cursor_end": 1}
        match FAULT:
            case "help is nonsense":
                good["matches"] = 5
            case "help is large":
                good["matches"] = ["x" * 5000, *("y" * 50 for _ in range(20_000))]
                good["cursor_start"], good["cursor_end"] = -5, 10**9
                good["metadata"] = {"deep": "z" * 300_000}
            case "help is too large":
                good["matches"] = ["x" * (3 << 20)]
            case "help on another channel":
                self.send(self.control, [identity], "complete_reply", request, good)
                self.iopub_send("complete_reply", request, good)
                self.send(self.shell, [identity], "inspect_reply", request, good)
                self.send(self.shell, [identity], "complete_reply", {"msg_id": "another"}, good)
            case "help never comes":
                return
        if FAULT != "help on another channel":
            self.send(self.shell, [identity], "complete_reply", request, good)

    def execute(self, identity: bytes, request: dict[str, Any]) -> None:  # noqa: C901, PLR0912 - one case per fault
        self.executed.append(request)
        if FAULT != "aborts the second" or len(self.executed) != 2:
            self.iopub_send("stream", request, {"name": "stdout", "text": "before the fault\n"})
        deep = b'{"name":"stdout","text":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        match FAULT:
            case "no delimiter":
                self.iopub.send_multipart([b"topic", b"nothing", b"of", b"the", b"kind"])
            case "one empty frame":
                self.shell.send_multipart([identity, b""])
            case "wrong signature":
                self.shell.send_multipart([identity, *self.frames("execute_reply", request, b'{"status":"ok"}', b"no")])
            case "deep json":
                self.iopub_send("stream", request, deep)
            case "deep header":
                frames = self.frames("stream", request, b"{}")
                self.iopub.send_multipart([frames[0], frames[1], b"[" * 100_000, *frames[3:]])
            case "header that is not utf-8":
                header = b'{"msg_id":"\xff","msg_type":"stream"}'
                self.iopub.send_multipart([b"topic", *self.frames("stream", request, b"{}", header=header)])
            case "text is a number":
                self.iopub_send("stream", request, {"name": "stdout", "text": 5})
            case "reply is a list":
                self.send(self.shell, [identity], "execute_reply", request, [])
            case "frame over the limit":
                self.iopub_send("stream", request, {"name": "stdout", "text": "x" * (2 << 20)})
            case "many frames":
                self.iopub.send_multipart([b"x" * 1000] * 10_000)
            case "closes its channels":
                for socket in (self.shell, self.iopub, self.control):
                    socket.close(linger=1000)
                time.sleep(3600)
            case "forged":
                stranger = {"msg_id": "somebody else's"}
                for parent in (stranger, {}, request, request):
                    self.send(self.shell, [identity], "execute_reply", parent, {"status": "ok", "execution_count": 7})
                    self.send(self.iopub, [], "execute_reply", parent, {"status": "ok", "execution_count": 8})
                for parent in (stranger, request, request):
                    self.iopub_send("status", parent, {"execution_state": "idle"})
                self.finish(identity, request)
            case "aborts the second":
                if len(self.executed) == 2:
                    self.send(self.shell, [identity], "execute_reply", request, {"status": "aborted"})
                    self.iopub_send("status", request, {"execution_state": "idle"})
                else:
                    self.finish(identity, request)
            case "output after the reply":
                self.send(self.shell, [identity], "execute_reply", request, {"status": "ok", "execution_count": 1})
                self.iopub_send("stream", request, {"name": "stdout", "text": "after the reply\n"})
                self.iopub_send("status", request, {"execution_state": "idle"})
            case "never answers" | "deaf on control, never answers":
                pass
            case "asks and asks":
                forged = {"prompt": "p" * 100_000, "password": False}
                for parent in ({}, {"msg_id": "another"}, *[request] * 100):
                    self.send(self.stdin, [identity], "input_request", parent, forged)
                self.stdin.recv_multipart()
                self.finish(identity, request)
            case "asks nonsense":
                self.send(self.stdin, [identity], "input_request", request, {"prompt": 5})
            case "drops its first requests" | "drops its first execution" | "deaf on control" | "slow at first":
                self.finish(identity, request)
            case "never idle":
                self.send(self.shell, [identity], "execute_reply", request, {"status": "ok", "execution_count": 1})
            case "idle without a reply":
                self.iopub_send("status", request, {"execution_state": "idle"})
            case "large messages":
                junk = b"[]," * ((45 << 20) // 3)
                self.iopub_send(
                    "display_data", request, b'{"metadata":{},"data":{"text/plain":"a","x":[' + junk + b"1]}}"
                )
                self.iopub_send("stream", request, b'{"name":"stdout","text":"kept\\n","junk":[' + junk + b"1]}")
                reply = b'{"status":"ok","execution_count":7,"payload":[' + b"{}," * ((30 << 20) // 3) + b"{}]}"
                self.send(self.shell, [identity], "execute_reply", request, reply)
                self.iopub_send("status", request, {"execution_state": "idle"})
            case _:
                raise SystemExit(f"unknown fault {FAULT!r}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Kernel().serve()
