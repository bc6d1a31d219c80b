"""The first process of a local sandbox: starts, signals and reaps all others for the bridge.

    python -I -S agent.py '{"control": FD, "keep": [FD], "limits": {"nofile": N, …}}'

`control` is one end of an AF_UNIX SOCK_SEQPACKET pair; a packet is one JSON object. From the bridge:

    {"op": "spawn", "id": I, "tty": bool}   + descriptors: a file with {"argv", "env", "cwd"}, and the output
                                              (a pipe, or the terminal, which is then its stdin as well)
    {"op": "signal", "id": I, "signal": N}  to the process group that I leads
    {"op": "kill", "id": I}                 SIGKILL to its whole session; I is forgotten
    {"op": "sweep", "id": I, "mark": "…", "spare": P}   SIGKILL to everything but P with the mark in its environment
                                              or limits; I is new
    {"op": "pause", "id": I}                SIGSTOP to everything until all stands still; I is new
    {"op": "resume", "id": I}               SIGCONT to what that stopped; I is new

To the bridge:

    {"op": "ready"}                         + a descriptor (O_PATH) of this sandbox's /dev/ptmx
    {"op": "started", "id": I, "pid": P}
    {"op": "refused", "id": I, "step": "fork" | "cwd" | "program" | "terminal", "errno": E}
    {"op": "ended", "id": I, "code": C|null, "signal": S|null}
    {"op": "killed", "id": I}
    {"op": "done", "id": I, "all": bool}    after a sweep: whether none is left; a pause: whether all stand still

When the bridge closes its end (or dies), everything here ends. Standard library only.
"""

import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import termios
import time

PACKET = 4096
KILL_SECONDS = 5.0
PATIENT_SECONDS = 0.5
OOM_SCORE = b"500"


class Agent:
    def __init__(self, config):
        self.control = socket.socket(fileno=config["control"])
        self.control.set_inheritable(False)
        self.alone = os.getpid() == 1
        self.running = {}  # pid -> id, of processes that have not ended
        self.sessions = {}  # id -> pid, until killed
        self.stopped = set()  # pids, by on_pause
        self.wake, wake_write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to PID 1 from its own namespace: never delivered

    def send(self, fds=(), **message):
        socket.send_fds(self.control, [json.dumps(message).encode()], list(fds))

    def run(self):
        ptmx = os.open("/dev/pts/ptmx" if self.alone else "/dev/ptmx", os.O_PATH)
        self.send([ptmx], op="ready")
        os.close(ptmx)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            self.reap()
            if self.control.fileno() in ready and not self.receive():
                return

    def receive(self):
        data, ancillary, _, _ = self.control.recvmsg(PACKET, socket.CMSG_SPACE(2 * 4), socket.MSG_CMSG_CLOEXEC)
        fds = [
            int.from_bytes(content[i : i + 4], sys.byteorder)
            for level, kind, content in ancillary
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
            for i in range(0, len(content), 4)
        ]
        if not data:
            return False
        message = json.loads(data)
        try:
            getattr(self, "on_" + message.pop("op"))(fds=fds, **message)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    # -- requests ---------------------------------------------------------------

    def on_spawn(self, id, tty, fds):
        body = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
        report, report_write = os.pipe()
        try:
            pid = os.fork()
        except OSError as exc:
            os.close(report)
            os.close(report_write)
            self.send(op="refused", id=id, step="fork", errno=exc.errno)
            return
        if pid == 0:
            become(body, fds[1], tty, report_write, alone=self.alone)
        os.close(report_write)
        with open(report, "rb") as stream:  # ends at once when exec closes the child's copy
            failure = stream.read()
        if failure:
            os.waitpid(pid, 0)
            self.send(op="refused", id=id, **json.loads(failure))
            return
        self.sessions = {other: leader for other, leader in self.sessions.items() if leader != pid}
        self.sessions[id] = pid
        self.running[pid] = id
        self.send(op="started", id=id, pid=pid)

    def on_signal(self, id, signal, fds):
        pid = self.sessions.get(id)
        if self.running.get(pid) == id:
            try:
                os.killpg(pid, signal)
            except ProcessLookupError:
                pass

    def on_kill(self, id, fds):
        leader = self.sessions.pop(id, None)
        if leader is not None:
            self.kill(lambda member, _parent, session: session == leader)
        self.send(op="killed", id=id)

    def on_sweep(self, id, mark, spare, fds):
        mark = mark.encode()
        others = {spare}  # what has no mark cannot have children with one
        blank = set()

        def marked(pid, _parent, _session):
            if pid in others:
                return False
            environment = look(pid, "environ")  # at once: it ends where a process becomes another program
            # A process that has ended still has its limits.
            if mark in environment or ((environment or look(pid, "cmdline")) and mark in look(pid, "limits")):
                return True
            (others if environment else blank).add(pid)
            return False

        everything = False
        # Nothing to read: a process was becoming another program, or ended, perhaps after a fork.
        for _ in range(10):
            blank.clear()
            everything = self.kill(marked)
            if not everything or not blank:
                break
        self.send(op="done", id=id, all=everything)

    def on_pause(self, id, fds):
        end = time.monotonic() + KILL_SECONDS
        if self.alone:
            # One signal to all leaves out no process that is just being forked, as any list may.
            already = {pid for pid, _, _, state in self.processes() if state in b"Tt"}
            to_all(signal.SIGSTOP)
            self.stopped |= {pid for pid, *_ in self.processes()} - already
        while running := [pid for pid, _, _, state in self.processes() if state not in b"Tt"]:
            if time.monotonic() > end:
                self.go_on()
                break
            for pid in running:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except (ProcessLookupError, PermissionError):
                    continue
                self.stopped.add(pid)
            self.wait_a_moment()
        self.send(op="done", id=id, all=not running)

    def on_resume(self, id, fds):
        self.go_on()
        self.send(op="done", id=id, all=True)

    def go_on(self):
        """SIGCONT to what was stopped, children first: a shell shall not see that they were."""
        parents = {pid: parent for pid, parent, _, _ in self.processes()}

        def depth(pid):
            steps = 0
            while pid in parents:
                pid = parents[pid]
                steps += 1
            return steps

        for pid in sorted(self.stopped & parents.keys(), key=depth, reverse=True):
            try:
                os.kill(pid, signal.SIGCONT)
            except (ProcessLookupError, PermissionError):
                pass
        self.stopped.clear()

    # -- processes --------------------------------------------------------------

    def reap(self):
        try:
            while os.read(self.wake, PACKET):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            id = self.running.pop(pid, None)
            if id is None:
                continue  # an orphan that was left to us
            if os.WIFSIGNALED(status):
                self.send(op="ended", id=id, code=None, signal=os.WTERMSIG(status))
            else:
                self.send(op="ended", id=id, code=os.WEXITSTATUS(status), signal=None)

    def kill(self, chosen):
        """SIGKILL until no chosen process is left: one may have been forking meanwhile. Say whether none is."""
        if self.kill_until_gone(chosen, PATIENT_SECONDS):
            return True
        # What forks without end is faster than any list of it, and where hundreds want to run we hardly get a turn.
        # One signal to all leaves nothing out, a process that is forking included. What a user had stopped goes on with
        # the rest afterwards, and a shell in a terminal takes its program for stopped: so not before it has to be.
        # Without a PID namespace, all would be more than ours.
        held = self.alone and not self.stopped
        if held:
            to_all(signal.SIGSTOP)
        try:
            return self.kill_until_gone(chosen, KILL_SECONDS)
        finally:
            if held:
                to_all(signal.SIGCONT)

    def kill_until_gone(self, chosen, seconds):
        end = time.monotonic() + seconds
        while True:
            victims = [pid for pid, parent, session, _ in self.processes() if chosen(pid, parent, session)]
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
            self.reap()
            if not victims or time.monotonic() > end:
                return not victims
            self.wait_a_moment()

    def wait_a_moment(self):
        """Let processes do what they were told; not all of them are our children, which would wake us."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.poll(5)

    def processes(self):
        """Everything alive below this process: (pid, parent, session, state)."""
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as stream:
                    fields = stream.read().rpartition(b")")[2].split()
            except OSError:
                continue
            found[int(name)] = (fields[0], int(fields[1]), int(fields[3]))
        below = set() if not self.alone else set(found) - {1}
        size = -1
        while not self.alone and size != len(below):
            size = len(below)
            below |= {pid for pid, (_, parent, _) in found.items() if parent == os.getpid() or parent in below}
        return [
            (pid, parent, session, state)
            for pid, (state, parent, session) in found.items()
            if pid in below and state not in (b"Z", b"X")
        ]


def to_all(number):
    """Signal everything but this process."""
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        pass


def look(pid, name):
    """Read a file of a process; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as stream:
            return stream.read(1 << 20)
    except OSError:
        return b""


def become(body, output, tty, report, alone):
    """Turn this fork into the program; never returns."""
    step = "terminal"
    try:
        os.setsid()
        if tty:
            fcntl.ioctl(output, termios.TIOCSCTTY, 0)
            os.dup2(output, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # What is ignored stays so in the program: two by Python, and whatever the server was started with (`nohup`, `&`).
        for number in range(1, signal.NSIG):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass  # SIGKILL, SIGSTOP, and two that belong to the C library
        prefer_as_victim()
        step = "cwd"
        os.chdir(body["cwd"])
        step = "program"
        os.execvpe(body["argv"][0], body["argv"], body["env"])
    except BaseException as exc:
        number = exc.errno if isinstance(exc, OSError) else errno.EINVAL
        os.write(report, json.dumps({"step": step, "errno": number}).encode())
    finally:
        os._exit(127)


def prefer_as_victim():
    """Out of memory, the kernel shall take a program before the agent."""
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


def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def adopt_orphans():
    import ctypes  # only without a PID namespace, which adopts by itself

    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main():
    config = json.loads(sys.argv[1])
    keep = {0, 1, 2, config["control"], *config["keep"]}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own descriptor
    for fd in config["keep"]:
        os.set_inheritable(fd, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for name, value in config["limits"].items():
        limit(getattr(resource, "RLIMIT_" + name.upper()), value)
    if os.getpid() != 1:
        adopt_orphans()
    agent = Agent(config)
    try:
        agent.run()
    except OSError as exc:
        if exc.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
    finally:
        if not agent.alone:
            agent.kill(lambda *_: True)
    os._exit(0)


if __name__ == "__main__":
    main()
