"""Commands in cells (`!command`, `found = !command`): part of the hooks, see `hooks.py`."""

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

# A process group of its own, in the kernel's session: it ends with the kernel, and has no /dev/tty.
OWN_GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


def install_commands(kernel):
    """Run `!command` as the session's shell runs commands: stdout is a terminal, and stdin is empty.

    IPython would give it a terminal as stdin, at which nobody types: a program that asks there would wait for ever. And
    an interrupt would end only the command: the cell would continue, and the user would not know that it was cut short.
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
        process = start_command(cmd, stdout=slave, stderr=slave)
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    try:
        show_output(process, master)
        code = process.wait()
    except BaseException:
        end_command(process, lambda: show_output(process, master, 0.5))
        raise
    finally:
        os.close(master)
    return 128 - code if code > 128 else code


def getoutput(cmd):
    """Return what a command writes to stdout and stderr."""
    return captured(cmd, subprocess.STDOUT)[0]


def get_output_error_code(cmd):
    """Return what a command writes to stdout, what it writes to stderr, and its exit status."""
    return captured(cmd, subprocess.PIPE)


def captured(cmd, stderr):
    process = start_command(cmd, stdout=subprocess.PIPE, stderr=stderr)
    try:
        out, err = process.communicate()
    except BaseException:
        end_command(process, lambda: process.wait(0.5))
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        raise
    return out.decode("utf-8", "replace"), (err or b"").decode("utf-8", "replace"), process.returncode


def start_command(cmd, **streams):
    if isinstance(cmd, str):
        cmd = [os.environ.get("SHELL") or "sh", "-c", cmd]
    return subprocess.Popen(cmd, stdin=subprocess.DEVNULL, **streams, **OWN_GROUP)


def show_output(process, master, seconds=None):
    """Print what the command writes to its terminal, until its end or for `seconds`."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    poll = select.poll()
    poll.register(master, select.POLLIN)
    began, after = monotonic(), 0
    # Background jobs of it may continue to write: of their output, print only what a terminal holds.
    while after < 1 << 16 and (seconds is None or monotonic() < began + seconds):
        ended = process.poll() is not None
        if poll.poll(0 if ended else 50):
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # no process has the terminal open any more
                break
            print(decoder.decode(data), end="", flush=True)
            after += len(data) if ended else 0
        elif ended:
            break
    print(decoder.decode(b"", True), end="", flush=True)


def end_command(process, wait):
    """Send SIGINT to the process group of a command, call `wait` for half a second, and send SIGKILL."""
    for signum in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
            wait()
        except ProcessLookupError:
            break
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            pass  # an impatient user, who interrupts again, gets the next step at once
    process.wait()
