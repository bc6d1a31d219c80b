"""The first process of every sandbox: starts, signals, pauses and ends all other programs for the bridge.

    python3 -I -S agent.py '{"directory": D, "start": S, "limits": {"nofile": N, …}, "keep": [FD], "proxy": PORT|null}'

It listens on D/socket (AF_UNIX, SOCK_SEQPACKET); a packet is one JSON object. One bridge at a time: a new connection
replaces the old one. Where the agent is process 1 of a PID namespace, it accepts only peers outside of that; under
gVisor, which hides that, any peer.

    agent ── keeper ── program ── whatever it starts          Each program that the bridge starts has a keeper, which
      └───── keeper ── program ── …                           is a subreaper: daemons and orphans stay below it.

From the bridge:

    {"op": "spawn", "id": I, "name": N, "tty": bool}    start a program. Comes with three descriptors: a file with
                                                        {"argv", "env", "cwd"}; the output (a pipe, or the terminal,
                                                        which then is its stdin as well); and a duplicate of the
                                                        bridge's own end, which is kept until I is forgotten. With
                                                        "member" in the file it leads no session, so no terminal ever
                                                        becomes its controlling one
    {"op": "signal", "id": I, "signal": N}              send a signal to the process group that I leads
    {"op": "kill", "id": I}                             SIGKILL I and everything that it ever started, and forget I
    {"op": "prune", "id": R, "program": I, "since": M}  SIGKILL everything that I ever started, but not I; with a moment
                                                        M only what began after it; M may be null
    {"op": "moment", "id": R}                           ask for the time, for "prune"
    {"op": "list", "id": R}                             ask for all programs that run, or ended and were not killed
    {"op": "attach", "id": R, "program": I}             ask for the descriptor that was kept
    {"op": "hold", "name": N}                           keep the descriptor that comes with it, the bridge's end of a
                                                        terminal, under this name
    {"op": "take", "id": R, "name": N}                  ask for that descriptor
    {"op": "drop", "name": N}                           close it
    {"op": "pause", "id": R}                            SIGSTOP everything, until nothing runs
    {"op": "resume", "id": R}                           SIGCONT everything but what was stopped before "pause"
    {"op": "room", "id": R, "pid": P}                   ask whether hardly any process can be started, and whether P
                                                        waits for that
    {"op": "relay", "count": N}                         accept N more connections at the proxy's port, and pass them on
    {"op": "outlive", "seconds": S}                     how long to live without a bridge, from now on
    {"op": "end"}                                       end everything, and the agent

To the bridge; R is the number of a request, I that of a program:

    {"op": "ready", "relay": bool}          first on each connection, with a descriptor (O_PATH) of this sandbox's ptmx;
                                            whether it listens at the proxy's port
    {"op": "connection"}                    with the descriptor of a connection that a program has made to that port
    {"op": "started", "id": I, "pid": P}
    {"op": "refused", "id": I, "step": "fork" | "cwd" | "program" | "terminal", "errno": E}
    {"op": "ended", "id": I, "code": C|null, "signal": S|null}
    {"op": "killed", "id": I, "all": bool}  whether nothing is left of it; otherwise it is not forgotten
    {"op": "known", "id": R, "program": I, "name": N, "pid": P, "tty": bool, "running": bool, "code": …, "signal": …}
    {"op": "attached", "id": R}             with the descriptor; "ended" follows if the program has ended
    {"op": "room", "id": R, "crowded": bool|null, "waits": bool}
    {"op": "moment", "id": R, "ticks": N, "last": P, "kills": K}
                                            hundredths of a second of CLOCK_BOOTTIME, the latest pid, and how many
                                            processes were killed because memory was exhausted; 0 if that is unknown
    {"op": "done", "id": R, "all": bool}    the last answer to any other request; whether it was done completely

The agent listens at 127.0.0.1:PORT for the bridge's proxy and keeps none of the connections. What is more than the
bridge has asked for, or comes while there is no bridge, waits until it is accepted.

Without a bridge for `outlive` seconds (at first: S seconds) it ends everything and itself; where it is not process 1,
also on SIGTERM. What a program writes meanwhile stays in its pipe or terminal, and the program waits when that is full:
nothing is lost.

It is one file because it is mounted into sandboxes of any image: nothing is installed there. For Python 3.8 and later,
standard library only. It must not import anything that a user could have replaced (-I -S).
"""

import ctypes
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import termios
import time

PACKET = 4096
PATIENT_SECONDS = 0.5
"""How long processes are killed one by one, before all are stopped for it."""
KILL_SECONDS = 5.0
SEND_SECONDS = 10.0
"""How long a bridge may take to read; then it is dropped, and the next one asks again."""
STILL_SECONDS = 2.0
"""How often it is checked during a pause that everything is still stopped."""
MOMENT = 5
"""Milliseconds between two looks at processes that were signalled to end or stop."""
OOM_SCORE = b"500"
STEPS = ("fork", "cwd", "program", "terminal")
NAME, KEEPER_NAME = b"kb-agent", b"kb-keeper"

PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 4, 15, 36
WALL = 0x40000000  # waitpid(2): whatever signal a child was to end with
TICKS = os.sysconf("SC_CLK_TCK")
ALL = (-1, 0)
"""A moment before everything."""

try:
    with open("/proc/sys/kernel/pid_max", "rb") as stream:
        PIDS = int(stream.read())
except FileNotFoundError:  # under gVisor, which has this limit
    PIDS = 1 << 16

libc = ctypes.CDLL(None, use_errno=True)


def oom_kills():
    """Return how many processes were killed because memory was exhausted, by the control group; 0 if that is unknown."""
    for path in ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events"):
        try:
            with open(path, "rb") as stream:
                return int(stream.read(PACKET).partition(b"\noom_kill ")[2].split(None, 1)[0])
        except (OSError, IndexError, ValueError):
            continue
    return 0


def prctl(option, value):
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Program:
    """A program that the bridge has started, and that is not forgotten yet."""

    def __init__(self, id, name, tty, keeper, report, kept):
        self.id, self.name, self.tty = id, name, tty
        self.keeper = keeper  # a pid
        self.report = report  # the end of a channel from the keeper, which ends with the keeper; then -1
        self.kept = kept  # the bridge's end of its pipe or terminal
        self.unparsed = b""
        self.pid = 0  # until it has started
        self.status = None  # (code, signal) when it has ended


class Agent:
    def __init__(self, config):
        self.first = os.getpid() == 1
        self.programs = {}  # by id
        self.held = {}  # descriptors of terminals, by their names
        self.reports = {}  # programs whose keepers live, by the descriptor of their channel
        self.stopped_before = None  # during a pause: the pids of what was stopped before it
        self.stopped = set()  # pids that got SIGSTOP since then
        self.stopped_at = 0.0  # when everything was last found stopped
        self.bridge = None
        self.outlive = config["start"]
        self.alone_since = time.monotonic()
        self.poll = select.poll()
        self.wake, wake_write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to PID 1 from its own namespace: never delivered
        self.terminated = False
        if not self.first:  # with a handler, that would be delivered to it as well
            signal.signal(signal.SIGTERM, self.on_sigterm)
        self.poll.register(self.wake, select.POLLIN)
        port = config.get("proxy")
        self.proxy = None if port is None else listen_for_proxy(port)  # before any program could take the port
        self.wanted = 0  # connections that the bridge wants to have from there
        self.listener = listen(config["directory"])
        self.poll.register(self.listener, select.POLLIN)

    def on_sigterm(self, *_):
        self.terminated = True

    def run(self):
        while not self.terminated:
            waits = []
            if self.bridge is None:
                waits.append(self.alone_since + self.outlive - time.monotonic())
                if waits[0] <= 0:
                    return
            if self.stopped_before is not None:
                waits.append(self.stopped_at + STILL_SECONDS - time.monotonic())
                if waits[-1] <= 0:
                    self.stop_again()
                    continue
            ready = self.poll.poll(min([*waits, 3600.0]) * 1000 + 1)
            # Before the deadline is checked again: a bridge may have connected while the whole sandbox was frozen.
            for fd, _ in ready:
                if fd == self.wake:
                    self.reap()
                elif fd in self.reports:
                    self.take_report(self.reports[fd])
                elif fd == self.listener.fileno():
                    self.accept()
                elif self.proxy is not None and fd == self.proxy.fileno():
                    if self.wanted:  # otherwise the bridge was lost just now
                        self.pass_connection()
                elif self.bridge is not None and fd == self.bridge.fileno() and not self.receive():
                    return

    # -- the bridge -------------------------------------------------------------

    def accept(self):
        try:
            peer, _ = self.listener.accept()
        except OSError:
            return  # it has closed the connection already
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        # A process outside of our PID namespace has no number in it; gVisor says of every peer that it is the process
        # that asks. Without a namespace, the user may do anyway what we do.
        if pid not in (0, os.getpid()) if self.first else uid not in (0, os.geteuid()):
            peer.close()
            return
        self.lose_bridge()
        peer.setblocking(False)
        self.bridge = peer
        self.poll.register(peer, select.POLLIN)
        try:
            ptmx = [os.open("/dev/pts/ptmx" if self.first else "/dev/ptmx", os.O_PATH)]
        except OSError:
            ptmx = []
        if not self.send(ptmx, op="ready", relay=self.proxy is not None):
            if self.proxy is not None:  # so that programs which connect do not wait in vain
                self.proxy.close()
                self.proxy = None
            self.send(op="ready", relay=False)
        for fd in ptmx:
            os.close(fd)

    def lose_bridge(self):
        """Drop the bridge, and undo the starts that were not reported to it."""
        if self.bridge is None:
            return
        self.poll.unregister(self.bridge)
        self.bridge.close()
        self.bridge = None
        self.want_connections(0)
        self.alone_since = time.monotonic()
        for program in [program for program in self.programs.values() if not program.pid]:
            self.kill(program)
            self.forget(program)

    def send(self, fds=(), **message):
        """Send a message; return False if it was not sent because no descriptors can be: gVisor lets none out."""
        if self.bridge is None:
            return True
        data = json.dumps(message).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("%di" % len(fds), *fds))] if fds else []
        try:
            try:
                self.bridge.sendmsg([data], rights)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.bridge, select.POLLOUT)
                poll.poll(SEND_SECONDS * 1000)
                self.bridge.sendmsg([data], rights)
        except BlockingIOError:
            self.lose_bridge()
        except OSError as exc:
            # Otherwise it has closed the connection; `receive` reads that after all that it has sent.
            return not fds or exc.errno != errno.EINVAL
        return True

    def receive(self):
        """Handle a packet of the bridge; return whether to continue."""
        try:
            data, ancillary, _, _ = self.bridge.recvmsg(PACKET, socket.CMSG_SPACE(3 * 4), socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, ConnectionResetError):
            return True  # it closed without reading everything; what it sent before that can still be read
        except OSError:
            data, ancillary = b"", []
        fds = [
            fd
            for level, kind, content in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (fd,) in struct.iter_unpack("i", content[: len(content) - len(content) % 4])
        ]
        if not data:
            self.lose_bridge()
            return True
        try:
            message = json.loads(data.decode())
            op = message.pop("op")
            if op == "end":
                return False
            if op in ("spawn", "hold"):
                getattr(self, "on_" + op)(fds=fds, **message)
            else:
                getattr(self, "on_" + op)(**message)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def pass_connection(self):
        """Pass a connection that a program has made to the proxy's port to the bridge."""
        try:
            connection, _ = self.proxy.accept()
        except OSError:
            return  # the program has closed it already
        self.want_connections(self.wanted - 1)
        self.send([connection.fileno()], op="connection")
        connection.close()

    def want_connections(self, count):
        if self.proxy is not None and bool(count) != bool(self.wanted):
            if count:
                self.poll.register(self.proxy, select.POLLIN)
            else:
                self.poll.unregister(self.proxy)
        self.wanted = count

    # -- requests ---------------------------------------------------------------

    def on_relay(self, count):
        self.want_connections(self.wanted + count)

    def on_outlive(self, seconds):
        self.outlive = seconds

    def on_spawn(self, id, name, tty, fds):
        body = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0).decode())
        report, report_write = channel()
        try:
            keeper = os.fork()
        except OSError as exc:
            os.close(report)
            os.close(report_write)
            self.send(op="refused", id=id, step="fork", errno=exc.errno)
            return
        if keeper == 0:
            keep(body, fds[1], tty, report_write)
        os.close(report_write)
        os.set_blocking(report, False)
        program = Program(id, name, tty, keeper, report, fds.pop())
        self.programs[id] = self.reports[report] = program
        self.poll.register(report, select.POLLIN)

    def on_signal(self, id, signal):
        program = self.programs.get(id)
        if program is not None and program.pid and program.status is None:
            try:
                os.killpg(program.pid, signal)
            except ProcessLookupError:
                pass

    def on_kill(self, id):
        program = self.programs.get(id)
        everything = program is None or self.kill(program)
        if program is not None and everything:
            self.forget(program)
        self.send(op="killed", id=id, all=everything)

    def on_prune(self, id, program, since):
        pruned = self.programs.get(program)
        self.send(op="done", id=id, all=pruned is None or self.prune(pruned, since))

    def on_moment(self, id):
        # The pid first: what begins in between counts as earlier.
        with open("/proc/loadavg", "rb") as stream:
            last = int(stream.read(PACKET).split()[-1])
        ticks = time.clock_gettime_ns(time.CLOCK_BOOTTIME) * TICKS // 10**9
        # Elsewhere the control group is shared with the server and other sandboxes.
        self.send(op="moment", id=id, ticks=ticks, last=last, kills=oom_kills() if self.first else 0)

    def on_list(self, id):
        for program in list(self.programs.values()):
            if program.pid:
                code, number = program.status or (None, None)
                self.send(
                    op="known",
                    id=id,
                    program=program.id,
                    name=program.name,
                    pid=program.pid,
                    tty=program.tty,
                    running=program.status is None,
                    code=code,
                    signal=number,
                )
        self.send(op="done", id=id, all=True)

    def on_attach(self, id, program):
        known = self.programs.get(program)
        if known is None or not self.send([known.kept], op="attached", id=id):
            self.send(op="done", id=id, all=False)
        elif known.status is not None:
            self.send(op="ended", id=known.id, code=known.status[0], signal=known.status[1])

    def on_hold(self, name, fds):
        self.on_drop(name)
        self.held[name] = fds.pop()

    def on_take(self, id, name):
        if name not in self.held or not self.send([self.held[name]], op="attached", id=id):
            self.send(op="done", id=id, all=False)

    def on_drop(self, name):
        if name in self.held:
            os.close(self.held.pop(name))

    def on_pause(self, id):
        end = time.monotonic() + KILL_SECONDS
        if self.stopped_before is None:
            self.stopped_before = {pid for pid, state in self.states() if state in b"Tt"}
        if self.first:
            # One signal to all reaches also a process that is just being forked, which a list may miss.
            to_all(signal.SIGSTOP)
            for keeper in self.keepers():
                send_signal(keeper, signal.SIGCONT)  # they reap what is killed meanwhile
            self.stopped |= {pid for pid, _ in self.states()}
        while running := self.running():
            if time.monotonic() > end:
                self.go_on()
                break
            for pid in running:
                if send_signal(pid, signal.SIGSTOP):
                    self.stopped.add(pid)
            self.turn(MOMENT)
        self.stopped_at = time.monotonic()
        self.send(op="done", id=id, all=not running)

    def stop_again(self):
        """Stop what runs during a pause: a program can have the kernel send it SIGCONT, by a timer for example."""
        for pid in self.running():
            if send_signal(pid, signal.SIGSTOP):
                self.stopped.add(pid)
        self.stopped_at = time.monotonic()

    def running(self):
        """Return the pids of what is not stopped yet. What waits in the kernel (D) stops before it runs any code."""
        return [
            pid for pid, state in self.states() if state not in b"Tt" and not (state == b"D" and pid in self.stopped)
        ]

    def states(self):
        """Return (pid, state) of every living process but keepers."""
        keepers = self.keepers()
        return [(pid, row[2]) for pid, row in self.table().items() if pid not in keepers and row[2] not in b"ZX"]

    def keepers(self):
        return {program.keeper for program in self.reports.values() if program.keeper > 0}

    def on_resume(self, id):
        self.go_on()
        self.send(op="done", id=id, all=True)

    def on_room(self, id, pid):
        self.send(op="room", id=id, crowded=is_crowded(), waits=waits_to_fork(pid))

    # -- programs ---------------------------------------------------------------

    def take_report(self, program):
        """Handle what a keeper reports about its program, or that the keeper is gone."""
        try:
            data = os.read(program.report, PACKET)
        except BlockingIOError:
            return
        *lines, program.unparsed = (program.unparsed + data).split(b"\n")
        for line in lines:
            message = json.loads(line.decode())
            if message["op"] == "started":
                program.pid = message["pid"]
            elif message["op"] == "ended":
                program.status = (message["code"], message["signal"])
            elif message["op"] == "refused":
                self.forget(program)
            self.send(id=program.id, **message)
        if data:
            return
        self.poll.unregister(program.report)
        os.close(program.report)
        del self.reports[program.report]
        program.report = -1
        if program.id not in self.programs or program.status is not None:
            return
        # Somebody killed the keeper. Its processes are our children now, and belong to no known program.
        if program.pid:
            program.status = (None, signal.SIGKILL)
            self.send(op="ended", id=program.id, code=None, signal=int(signal.SIGKILL))
        else:
            self.forget(program)
            self.send(op="refused", id=program.id, step="fork", errno=errno.EAGAIN)
        self.kill_strays()

    def forget(self, program):
        if self.programs.pop(program.id, None) is not None:
            os.close(program.kept)

    def kill(self, program):
        """SIGKILL a program and all that it ever started; return whether nothing is left.

        A keeper ends when it has no child any more: that is certain, while a list of processes is not.
        """
        return self.end(lambda: self.below(program.keeper), lambda: program.report < 0)

    def prune(self, program, since):
        """SIGKILL what a program has started, or has started since; return whether nothing of that is left."""
        main = program.pid if program.status is None else 0
        return self.end(lambda: self.below(program.keeper, main, since or ALL))

    def kill_strays(self):
        """SIGKILL everything that is below no keeper."""
        return self.end(lambda: self.below(os.getpid(), spare=self.keepers()))

    def kill_all(self):
        """SIGKILL everything, keepers included."""
        return self.end(lambda: self.below(os.getpid()))

    def end(self, victims, gone=None):
        """SIGKILL repeatedly, because processes may be forked meanwhile; return whether all are gone."""
        if self.rounds(victims, PATIENT_SECONDS, gone):
            return True
        # What forks without end is faster than any list of it, and among hundreds of running processes we hardly get
        # the processor. One signal to all reaches everything. But it has side effects, so it is the last resort: what
        # the user had stopped is continued with the rest, and a shell in a terminal believes that its program was
        # stopped. Without a PID namespace, it would reach other processes than ours.
        if self.first and self.stopped_before is None:
            to_all(signal.SIGSTOP)
            try:
                self.rounds(victims, KILL_SECONDS)
            finally:
                to_all(signal.SIGCONT)
        return self.rounds(victims, KILL_SECONDS, gone)

    def rounds(self, victims, seconds, gone=None):
        """Kill until `gone()`; without `gone`, until two lists in a row are empty: a list is not made in one moment."""
        end = time.monotonic() + seconds
        quiet = 0
        while gone is None or not gone():
            left, torn = victims()
            for pid in left:
                send_signal(pid, signal.SIGKILL)
            quiet = 0 if left or torn else quiet + 1
            if gone is None and quiet > 1:
                return True
            if time.monotonic() > end:
                return False
            self.turn(MOMENT if left or gone is not None else 0)
        return True

    def below(self, root, main=0, since=ALL, spare=()):
        """Return the pids of everything alive below `root`, and whether some process has a parent that was not found.

        Left out are `main`, and with all below them, the processes that began before the moment `since` or are in
        `spare`."""
        table = self.table()
        children = {}
        torn = False
        for pid, (parent, _, _) in table.items():
            children.setdefault(parent, []).append(pid)
            torn = torn or (parent not in table and parent not in (0, os.getpid(), os.getppid()))
        found = []
        ahead = [root]
        while ahead:
            for pid in children.get(ahead.pop(), ()):
                if pid in spare or (pid != main and not began_since(pid, table[pid][1], since)):
                    continue
                ahead.append(pid)
                if pid != main and table[pid][2] not in b"ZX":
                    found.append(pid)
        return found, torn and self.first

    def table(self):
        """Return every process below this one, or in its PID namespace: pid -> (parent, start in ticks, state)."""
        found = {}
        own = os.getpid()
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == own:
                continue
            try:
                with open("/proc/%s/stat" % name, "rb", buffering=0) as stream:
                    fields = stream.read(PACKET).rpartition(b")")[2].split()
            except OSError:
                continue
            if fields:
                found[int(name)] = (int(fields[1]), int(fields[19]), fields[0])
        if self.first:
            return found
        below = set()
        size = -1
        while size != len(below):
            size = len(below)
            below |= {pid for pid, (parent, _, _) in found.items() if parent == own or parent in below}
        return {pid: found[pid] for pid in below}

    def go_on(self):
        """SIGCONT what was not stopped before the pause, children first: otherwise a shell reports its jobs as stopped.

        No list of what got SIGSTOP would do: a process that was just being forked got it from the kernel, unseen.
        """
        table = self.table()

        def depth(pid):
            steps = 0
            while pid in table:
                pid = table[pid][0]
                steps += 1
            return steps

        if self.stopped_before is not None:
            for pid in sorted(table.keys() - self.stopped_before, key=depth, reverse=True):
                send_signal(pid, signal.SIGCONT)
        self.stopped_before = None
        self.stopped.clear()

    def turn(self, milliseconds):
        """Handle what happens to programs, and wait for it up to `milliseconds`."""
        poll = select.poll()
        for fd in (self.wake, *self.reports):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(milliseconds):
            if fd == self.wake:
                self.reap()
            elif fd in self.reports:
                self.take_report(self.reports[fd])

    def reap(self):
        try:
            while os.read(self.wake, PACKET):
                pass
        except BlockingIOError:
            pass
        try:
            while pid := os.waitpid(-1, os.WNOHANG | WALL)[0]:
                for program in self.reports.values():
                    if program.keeper == pid:
                        program.keeper = -1  # the pid may be reused now; the end of its channel is handled later
        except ChildProcessError:
            pass


def keep(body, output, tty, report):
    """Become the keeper of a program, in a fork; never returns.

    It keeps none of the program's descriptors, and ends with its last descendant.
    """
    try:
        signal.set_wakeup_fd(-1)
        close_all_but(0, 1, 2, output, report)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_NAME, KEEPER_NAME)
        os.setsid()
        for number in range(1, signal.NSIG):
            try:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
            except (OSError, ValueError):
                pass  # SIGKILL, SIGSTOP, and two of the C library
        born, born_write = channel()
        try:
            pid = os.fork()
        except OSError as exc:
            send_report(report, op="refused", step="fork", errno=exc.errno)
            return
        if pid == 0:
            os.close(report)
            os.close(born)
            become(body, output, tty, born_write)
        os.close(output)
        os.close(born_write)
        failure = os.read(born, 3)  # returns when exec closes the program's copy
        os.close(born)
        if len(failure) == 3 and failure[0] < len(STEPS):
            os.waitpid(pid, 0)
            send_report(report, op="refused", step=STEPS[failure[0]], errno=int.from_bytes(failure[1:], "big"))
            return
        send_report(report, op="started", pid=pid)
        while True:
            ended, status = os.waitpid(-1, WALL)
            if ended != pid:
                continue
            pid = 0  # from now on, one of its descendants may have that number
            if os.WIFSIGNALED(status):
                send_report(report, op="ended", code=None, signal=os.WTERMSIG(status))
            else:
                send_report(report, op="ended", code=os.WEXITSTATUS(status), signal=None)
    except ChildProcessError:
        pass  # it has no descendants any more
    finally:
        os._exit(0)


def become(body, output, tty, born):
    """Become the program, in a fork; never returns."""
    step = "terminal"
    try:
        if body.get("member"):
            os.setpgid(0, 0)
        else:
            os.setsid()
            if tty:
                fcntl.ioctl(output, termios.TIOCSCTTY, 0)
        if tty:
            os.dup2(output, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Ignored signals stay ignored in a program: the keeper's, and those of the server (`nohup`, `&`).
        for number in range(1, signal.NSIG):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass  # as in a keeper
        prefer_as_victim()
        step = "cwd"
        os.chdir(body["cwd"])
        step = "program"
        os.execvpe(body["argv"][0], body["argv"], body["env"])
    except BaseException as exc:
        number = exc.errno if isinstance(exc, OSError) else errno.EINVAL
        os.write(born, bytes([STEPS.index(step)]) + number.to_bytes(2, "big"))
    finally:
        os._exit(127)


def prefer_as_victim():
    """Make the out-of-memory killer prefer this process to the agent."""
    prctl(PR_SET_DUMPABLE, 1)  # otherwise the file belongs to root; this process has no secrets any more
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, OOM_SCORE)
    except OSError:
        pass
    finally:
        os.close(fd)


def channel():
    """Return the two ends of a connection, to read and to write. Unlike a pipe, nobody can open it again by /proc."""
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


def send_report(report, **message):
    os.write(report, json.dumps(message).encode() + b"\n")


def listen(directory):
    """Make the socket; it gets its name when it accepts connections."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.chdir(directory)  # the path of a socket ends at 107 bytes
    listener.bind("binding")
    os.chmod("binding", 0o666)  # the bridge may be another user; the directory decides who reaches it
    listener.listen(8)
    os.rename("binding", "socket")
    os.chdir("/")
    listener.setblocking(False)
    return listener


def listen_for_proxy(port):
    """Listen where programs find their proxy; return None if that is not possible."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        return None
    listener.listen(64)
    listener.setblocking(False)
    return listener


def is_crowded():
    """Return whether there are nine tenths of the processes that there may be; None without a limit."""
    for home in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids"):
        try:
            with open(home + "/pids.max") as most, open(home + "/pids.current") as now:
                most, now = most.read().strip(), now.read().strip()
        except OSError:
            continue
        return most != "max" and int(now) * 10 >= int(most) * 9
    return None


def waits_to_fork(pid):
    """Return whether a bash sleeps before it tries again to fork: only then it blocks SIGTERM and nothing else."""
    try:
        with open("/proc/%d/status" % pid, "rb") as stream:
            return any(line.startswith(b"SigBlk:") and line.rstrip().endswith(b"04000") for line in stream)
    except OSError:
        return False


def began_since(pid, ticks, moment):
    """Return whether a process began after a moment. Within one tick its pid decides: pids are given in order, and it
    takes longer than a tick until they start again."""
    if ticks != moment[0]:
        return ticks > moment[0]
    return 0 < (pid - moment[1]) % PIDS < PIDS // 2


def send_signal(pid, number):
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def to_all(number):
    """Signal everything but this process."""
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        pass


def close_all_but(*kept):
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing


def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def main():
    config = json.loads(sys.argv[1])
    close_all_but(0, 1, 2, *config["keep"])
    for fd in config["keep"]:
        os.set_inheritable(fd, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for name, value in config["limits"].items():
        limit(getattr(resource, "RLIMIT_" + name.upper()), value)
    prctl(PR_SET_DUMPABLE, 0)  # programs of the same user cannot read our memory or take our descriptors
    prctl(PR_SET_NAME, NAME)
    if os.getpid() != 1:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    agent = Agent(config)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    # Without garbage collection this memory is never written to, so keepers share it with us.
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        agent.run()
    finally:
        if not agent.first:
            agent.kill_all()
    os._exit(0)


if __name__ == "__main__":
    main()
