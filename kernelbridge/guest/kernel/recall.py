"""Keeps the messages of the newest cell for the next server: part of the hooks, see `hooks.py`.

What a kernel publishes while no server is connected is lost, and so is a reply to a client that has gone. So both are
kept until the next cell begins, and a `kernelbridge_recall_request` on control is answered with them.
"""

import types
from collections import deque
from json import loads  # imported by name, because user code may replace it in its module
from threading import Event

KEPT = 1 << 20  # bytes of the newest messages that are kept
DELIMITER = b"<IDS|MSG>"
SHOWN = ("stream", "display_data", "update_display_data", "execute_result", "error")
KEPT_TEXT = 1 << 16  # characters that are kept of each text of a reply, and of a question
CUT = " [shortened: the server was replaced meanwhile]"
RECALL_TIMEOUT = 30  # seconds to wait for the publishing thread


class CellRecord:
    """The messages of one cell. Only the publishing thread adds some."""

    def __init__(self, cell):
        self.cell = cell
        self.messages = deque()  # (header, parent header, content, bytes of text or None)
        self.size = 0
        self.left_out = 0  # bytes of output in messages that are not kept any more
        self.reply = None
        self.figures = {}

    def add(self, frames, length):
        at = frames.index(DELIMITER)
        message = frames[at + 2], frames[at + 3], frames[at + 5], length
        try:
            self.messages.append(message)
        except Exception:  # the kernel's memory is full
            self.left_out += output_in(message)
            return
        self.size += size_of(message)
        while self.size > KEPT:
            message = self.messages.popleft()
            self.size -= size_of(message)
            self.left_out += output_in(message)

    def with_messages(self):
        """Return the content of a recall reply, but for the question."""
        messages, left_out = [], self.left_out
        for message in self.messages:
            try:
                messages.append(as_text(message))
            except Exception:  # it is not valid JSON, or the kernel's memory is full
                left_out += output_in(message)
        return dict(self.summary(), messages=messages, left_out=left_out)

    def summary(self):
        return {"cell": self.cell, "reply": self.reply, "figures": self.figures}


def size_of(message):
    header, parent, content, _ = message
    return len(header) + len(parent) + len(content)


def output_in(message):
    """Return the number of bytes of output in a message; if that is unknown, all of its bytes."""
    header, _, content, length = message
    if length is not None:
        return length
    try:
        return len(content) if loads(header)["msg_type"] in SHOWN else 0
    except Exception:  # the header is not valid JSON, or the kernel's memory is full
        return len(content)


def as_text(message):
    header, parent, content, _ = message
    header, parent = loads(header), loads(parent)
    return header["msg_type"], header["msg_id"], parent.get("msg_id", ""), bytes(content).decode("utf-8", "replace")


def shortened(text):
    """Return the beginning of a text that is too long to be kept."""
    return text if len(text) <= KEPT_TEXT else text[:KEPT_TEXT] + CUT


def shortened_reply(reply):
    """Return a reply with short texts: the next server refuses a recall reply that is too large."""
    kept = dict(reply)
    if "evalue" in kept:
        kept["evalue"] = shortened(str(kept["evalue"]))
    if "traceback" in kept:
        text = "\n".join(map(str, kept["traceback"]))
        kept["traceback"] = [text if len(text) <= KEPT_TEXT else CUT + text[-KEPT_TEXT:]]
    if len(repr(kept.get("payload"))) > KEPT_TEXT:
        kept["payload"] = []
    return kept


# What is kept for the next server: the newest cell's messages, the question for which it waits, and the number of bytes
# in the text that is being published.
recorder = types.SimpleNamespace(newest=CellRecord(None), asked=None, length=None)


def install_recall(kernel):
    pub_thread, session = kernel.iopub_thread, kernel.session
    really_send, init_metadata, finish_metadata = (
        pub_thread._really_send,
        kernel.init_metadata,
        kernel.finish_metadata,
    )
    publisher = types.SimpleNamespace(send_multipart=really_send)  # it publishes at once, in the publishing thread

    def send_and_keep(msg, *args, **kwargs):
        try:
            recorder.newest.add(msg, recorder.length)
        except Exception:  # it is not a Jupyter message, but is sent all the same
            pass
        return really_send(msg, *args, **kwargs)

    def begin(parent):
        recorder.newest = CellRecord(parent["header"]["msg_id"])
        return init_metadata(parent)

    def finish(parent, metadata, reply_content):
        metadata = finish_metadata(parent, metadata, reply_content)
        kept = recorder.newest
        if kept.cell == parent["header"]["msg_id"]:
            names = ("status", "execution_count", "ename", "evalue", "traceback", "payload")
            kept.figures = metadata.get("kernelbridge") or {}
            kept.reply = shortened_reply({name: reply_content[name] for name in names if name in reply_content})
        return metadata

    def recall(stream, ident, parent):
        done = Event()
        # The number of bytes left out is unknown until the publishing thread has answered.
        found = dict(recorder.newest.summary(), left_out=None, asked=recorder.asked)

        def look():
            # Runs between two messages, so the reply has all that are published before the mark, and none after it.
            try:
                found.update(recorder.newest.with_messages(), asked=recorder.asked)
            except Exception:  # the kernel's memory is full
                pass
            try:
                session.send(publisher, session.msg("kernelbridge_recalled", {}, parent=parent), ident=b"kernelbridge")
            finally:
                done.set()

        pub_thread.schedule(look)
        done.wait(RECALL_TIMEOUT)
        session.send(stream, "kernelbridge_recall_reply", dict(found), parent, ident=ident)

    pub_thread._really_send = send_and_keep
    kernel.init_metadata, kernel.finish_metadata = begin, finish
    kernel.control_handlers["kernelbridge_recall_request"] = recall
