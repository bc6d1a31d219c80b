"""Questions that a cell asks on stdin (`input()`, `getpass()`, debuggers): part of the hooks, see `hooks.py`."""

import contextlib
import signal
import threading

POLL = 50  # milliseconds between two looks for signals that another thread has received


def install_input(kernel):
    from IPython.core.error import StdinNotImplementedError
    from ipykernel import kernelbase

    def refuse(name, original):
        def ask(*args, **kwargs):
            if kernel.kernelbridge_outbox.forked:
                # No answer reaches it: it only has a copy of the kernel's socket.
                raise StdinNotImplementedError("%s() is not available in a forked process" % name)
            if not kernel._allow_stdin:
                raise StdinNotImplementedError("%s() is not available here: pass the value in the code" % name)
            return original(*args, **kwargs)

        ask.__name__ = ask.__qualname__ = name
        ask.__doc__ = original.__doc__
        return ask

    socket, session = kernel.stdin_socket, kernel.session

    def request(prompt, ident, parent, password=False):
        """Ask, and return the answer: what ipykernel does, but exceptions of signal handlers end it.

        So a program can give up a question after a while, and the server learns it. An answer that comes too late names
        the question that it is for, and is dropped. Servers of earlier versions name none.
        """
        for name in ("stdout", "stderr"):
            stream = getattr(kernelbase.sys, name)  # not those of user code, which may be anything (`streams.py`)
            if stream is not None:
                stream.flush()
        while socket.poll(0):
            socket.recv_multipart()  # the answer to a question that was given up, or the rest of one
        prompt = str(prompt)
        question = session.msg("input_request", {"prompt": prompt, "password": password}, parent=parent)
        msg_id = question["header"]["msg_id"]
        given_up = True
        recorder.asked = {"prompt": shortened(prompt), "password": password, "msg_id": msg_id}
        try:
            with uninterrupted():
                session.send(socket, question, ident=ident)
            while True:
                reply = session.recv(socket)[1] if socket.poll(POLL) else None
                if reply is not None and reply["parent_header"].get("msg_id", msg_id) == msg_id:
                    given_up = False
                    break
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Interrupted by user") from None  # without the lines of zmq
        finally:
            recorder.asked = None
            if given_up:
                with uninterrupted():
                    session.send(socket, "kernelbridge_given_up", {}, parent, ident=ident)
        if reply["content"]["value"] == "\x04":
            raise EOFError
        return reply["content"]["value"]

    kernel._input_request = request
    kernel.raw_input = refuse("input", kernel.raw_input)
    kernel.getpass = refuse("getpass", kernel.getpass)


@contextlib.contextmanager
def uninterrupted():
    """Delay an interrupt until a message is sent: cut between two frames, it would damage the next message, too."""
    if threading.current_thread() is not threading.main_thread():  # no signal arrives in other threads
        yield
        return
    came = []
    saved = signal.signal(signal.SIGINT, lambda *seen: came.append(seen))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, saved)
    if came and callable(saved):
        saved(*came[-1])
