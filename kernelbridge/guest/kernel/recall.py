"""What the newest cell has told, for a server that was not there: part of the program of `hooks.py`, which see.

What a kernel publishes while nobody listens is lost, and so is the reply to a client that has gone. So both are kept
until the next cell begins, and given upon a `kernelbridge_recall_request` on control.
"""

from collections import deque
from json import loads  # not by way of its module, where user code may replace it
from threading import Event

KEPT = 1 << 20  # bytes of the newest messages
DELIMITER = b"<IDS|MSG>"
SHOWN = ("stream", "display_data", "update_display_data", "execute_result", "error")
KEPT_TEXT = 1 << 16  # characters of each text of a reply, and of a question
CUT = " [shortened: the server was replaced meanwhile]"
RECALL_TIMEOUT = 30  # seconds that the publishing thread may take


class Kept:
    """Of one cell. Messages come from the publishing thread only."""

    def __init__(self, cell):
        self.cell = cell
        self.messages = deque()  # (header, parent header, content, bytes of text or None)
        self.size = 0
        self.left_out = 0
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

    def written(self):
        messages, left_out = [], self.left_out
        for message in self.messages:
            try:
                messages.append(as_text(message))
            except Exception:  # nobody could have read it, or the kernel's memory is full
                left_out += output_in(message)
        return dict(self.known(), messages=messages, left_out=left_out)

    def known(self):
        return {"cell": self.cell, "reply": self.reply, "figures": self.figures}


def size_of(message):
    header, parent, content, _ = message
    return len(header) + len(parent) + len(content)


def output_in(message):
    """Bytes of output in a message; in doubt all of it is."""
    header, _, content, length = message
    if length is not None:
        return length
    try:
        return len(content) if loads(header)["msg_type"] in SHOWN else 0
    except Exception:
        return len(content)


def as_text(message):
    header, parent, content, _ = message
    header, parent = loads(header), loads(parent)
    return header["msg_type"], header["msg_id"], parent.get("msg_id", ""), bytes(content).decode("utf-8", "replace")


def kept_beginning(text):
    """As much of a text as is kept."""
    return text if len(text) <= KEPT_TEXT else text[:KEPT_TEXT] + CUT


def kept_short(reply):
    """A reply that fits into a recollection: the next server refuses one that is too large."""
    kept = dict(reply)
    if "evalue" in kept:
        kept["evalue"] = kept_beginning(str(kept["evalue"]))
    if "traceback" in kept:
        text = "\n".join(map(str, kept["traceback"]))
        kept["traceback"] = [text if len(text) <= KEPT_TEXT else CUT + text[-KEPT_TEXT:]]
    if len(repr(kept.get("payload"))) > KEPT_TEXT:
        kept["payload"] = []
    return kept


class Recollection:
    """What a kernel remembers for the next server."""

    kept = Kept(None)
    asked = None  # what the cell waits for an answer to
    length = None  # bytes of the text that is being published


recollection = Recollection()


class Publisher:
    """Publishes at once; for the publishing thread."""

    def __init__(self, send):
        self.send_multipart = send


def install_recall(kernel):
    pub_thread, session = kernel.iopub_thread, kernel.session
    really_send, init_metadata, finish_metadata = (
        pub_thread._really_send,
        kernel.init_metadata,
        kernel.finish_metadata,
    )
    publisher = Publisher(really_send)

    def send_and_keep(msg, *args, **kwargs):
        try:
            recollection.kept.add(msg, recollection.length)
        except Exception:  # no message of this protocol: it is sent all the same
            pass
        return really_send(msg, *args, **kwargs)

    def begin(parent):
        recollection.kept = Kept(parent["header"]["msg_id"])
        return init_metadata(parent)

    def finish(parent, metadata, reply_content):
        metadata = finish_metadata(parent, metadata, reply_content)
        kept = recollection.kept
        if kept.cell == parent["header"]["msg_id"]:
            names = ("status", "execution_count", "ename", "evalue", "traceback", "payload")
            kept.figures = metadata.get("kernelbridge") or {}
            kept.reply = kept_short({name: reply_content[name] for name in names if name in reply_content})
        return metadata

    def recall(stream, ident, parent):
        done = Event()
        # What is missing is not known before the publishing thread has said it.
        found = dict(recollection.kept.known(), left_out=None, asked=recollection.asked)

        def look():
            # Between two messages: what is published behind the mark is not in the answer, all before it is.
            try:
                found.update(recollection.kept.written(), asked=recollection.asked)
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
