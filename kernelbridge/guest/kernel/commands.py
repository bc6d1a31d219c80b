"""Commands of cells (`!command`, `found = !command`): part of the program of `hooks.py`, which see."""

import codecs
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
from time import monotonic

# A group of its own, in the kernel's session: it ends with the kernel, and has no /dev/tty.
APART = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


def install_commands(kernel):
    """Run `!command` as the session's shell runs commands: with a terminal to write on and none to read from.

    IPython's own way gives it one to read from, at which nobody types: what asks there waits for ever. And
    an interrupt ends only the command there: the cell goes on, and nobody learns that it was cut short.
    """
    from IPython.core import interactiveshell
    from ipykernel import zmqshell

    zmqshell.system = system
    interactiveshell.getoutput = getoutput
    if hasattr(interactiveshell, "get_output_error_code"):
        interactiveshell.get_output_error_code = get_output_error_code


def system(cmd):
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = started(cmd, stdout=slave, stderr=slave)
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    try:
        show(process, master)
        code = process.wait()
    except BaseException:
        end(process, lambda: show(process, master, 0.5))
        raise
    finally:
        os.close(master)
    return 128 - code if code > 128 else code


def getoutput(cmd):
    """Give what a command writes on stdout and stderr."""
    return captured(cmd, subprocess.STDOUT)[0]


def get_output_error_code(cmd):
    """Give what a command writes on stdout, on stderr, and its exit status."""
    return captured(cmd, subprocess.PIPE)


def captured(cmd, stderr):
    process = started(cmd, stdout=subprocess.PIPE, stderr=stderr)
    try:
        out, err = process.communicate()
    except BaseException:
        end(process, lambda: process.wait(0.5))
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        raise
    return out.decode("utf-8", "replace"), (err or b"").decode("utf-8", "replace"), process.returncode


def started(cmd, **streams):
    if isinstance(cmd, str):
        cmd = [os.environ.get("SHELL") or "sh", "-c", cmd]
    return subprocess.Popen(cmd, stdin=subprocess.DEVNULL, **streams, **APART)


def show(process, master, seconds=None):
    """Print what is written, until the command has ended; at most for so long."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    poll = select.poll()
    poll.register(master, select.POLLIN)
    began, after = monotonic(), 0
    # Jobs that it leaves may go on writing: of theirs, what a terminal holds.
    while after < 1 << 16 and (seconds is None or monotonic() < began + seconds):
        ended = process.poll() is not None
        if poll.poll(0 if ended else 50):
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # what Linux says when nobody can write any more
                break
            print(decoder.decode(data), end="", flush=True)
            after += len(data) if ended else 0
        elif ended:
            break
    print(decoder.decode(b"", True), end="", flush=True)


def end(process, wait):
    """SIGINT, and half a second later SIGKILL, to all that a command started in its group."""
    for signum in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
            wait()
        except ProcessLookupError:
            break
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            pass  # who is impatient gets the next step at once
    process.wait()
