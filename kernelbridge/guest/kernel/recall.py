"""Keeps the messages of the newest cell for the next server: part of the hooks, see `hooks.py`.

What a kernel publishes while no server is connected is lost, and so is a reply to a client that has gone. So both are
kept until the next cell begins. Upon a `kernelbridge_recall_request` on control, the messages are published again
between two marks, and the answer has the reply.
"""

import types
from collections import deque
from json import loads  # imported by name, because user code may replace it in its module

KEPT = 1 << 20  # bytes of the newest messages that are kept
DELIMITER = b"<IDS|MSG>"
PARTS = 6  # delimiter, signature, header, parent header, metadata, content
SHOWN = ("stream", "display_data", "update_display_data", "execute_result", "error")
KEPT_TEXT = 1 << 16  # characters that are kept of each text of a reply, and of a question
CUT = " [shortened: the server was replaced meanwhile]"


class CellRecord:
    """The messages of one cell. Only the publishing thread adds and reads them."""

    def __init__(self, cell):
        self.cell = cell
        self.messages = deque()  # (frames without buffers, bytes of text or None)
        self.size = 0
        self.left_out = 0  # bytes of output in messages that are not kept any more
        self.reply = None
        self.figures = {}

    def add(self, frames, length):
        frames = frames[: frames.index(DELIMITER) + PARTS]
        try:
            self.messages.append((frames, length))
        except MemoryError:
            self.left_out += output_in(frames, length)
            return
        self.size += sum(map(len, frames))
        while self.size > KEPT:
            frames, length = self.messages.popleft()
            self.size -= sum(map(len, frames))
            self.left_out += output_in(frames, length)

    def replay(self, send):
        """Send the kept messages, and return the number of bytes of output that are not kept."""
        for frames, _ in self.messages:
            send(frames)
        return self.left_out


def output_in(frames, length):
    """Return the number of bytes of output in a message; if that is unknown, all of its bytes."""
    if length is not None:
        return length
    try:
        return len(frames[-1]) if loads(frames[-4])["msg_type"] in SHOWN else 0
    except Exception:  # the header is not valid JSON, or the kernel's memory is full
        return len(frames[-1])


def shortened(text):
    """Return the beginning of a text that is too long to be kept."""
    return text if len(text) <= KEPT_TEXT else text[:KEPT_TEXT] + CUT


def shortened_reply(reply):
    """Return a reply with short texts: the next server refuses an answer that is too large."""
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

    def publish(msg_type, content, parent):
        session.send(publisher, session.msg(msg_type, content, parent=parent), ident=b"kernelbridge")

    def recall(stream, ident, parent):
        newest = recorder.newest
        answers = {"cell": newest.cell, "reply": newest.reply, "figures": newest.figures, "asked": recorder.asked}

        def replay():
            # In the publishing thread: nothing else is published between the marks.
            runs = newest.cell is not None and newest.reply is None
            publish("kernelbridge_replay_begins", {"cell": newest.cell, "runs": runs}, parent)
            try:
                left_out = newest.replay(really_send)
            except Exception:  # memory or the socket may have failed, and the server waits for the second mark
                left_out = None
            publish("kernelbridge_replay_ends", {"left_out": left_out}, parent)

        if parent["content"].get("replay"):
            pub_thread.schedule(replay)
        session.send(stream, "kernelbridge_recall_reply", answers, parent, ident=ident)

    pub_thread._really_send = send_and_keep
    kernel.init_metadata, kernel.finish_metadata = begin, finish
    kernel.control_handlers["kernelbridge_recall_request"] = recall
