"""What sandboxes share with the machine and with each other: the kernel's interface, and what is scarce in it."""

import errno
import signal

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import HIDDEN_PATHS, READ_ONLY_PATHS, Limits, Runtime, Sandbox
from kernelbridge.runtimes.processors import THREAD_VARIABLES
from tests.contract.conftest import MakeSandbox
from tests.contract.driving import ISOLATED, LIMITED, python, read_all, read_until, run, start_python

MIB = 1 << 20

CALLS = """if 1:
    import ctypes, errno, platform, socket
    libc = ctypes.CDLL(None, use_errno=True)
    REFUSED, ABSENT = (errno.EPERM,), (errno.ENOSYS,)
    names = {
        'ptrace': (101, 117), 'unshare': (272, 97), 'setns': (308, 268), 'mount': (165, 40), 'keyctl': (250, 219),
        'add_key': (248, 217), 'perf_event_open': (298, 241), 'bpf': (321, 280), 'userfaultfd': (323, 282),
        'process_vm_readv': (310, 270), 'pidfd_getfd': (438, 438), 'open_tree': (428, 428), 'mbind': (237, 235),
        'open_by_handle_at': (304, 265), 'quotactl': (179, 60), 'syslog': (103, 116), 'memfd_secret': (447, 447),
    }
    absent = {
        'io_setup': (206, 0), 'io_submit': (209, 2), 'io_destroy': (207, 1), 'io_getevents': (208, 4),
        'io_cancel': (210, 3), 'io_uring_setup': (425, 425), 'io_uring_enter': (426, 426),
        'io_uring_register': (427, 427), 'clone3': (435, 435),
    }
    machine = ('x86_64', 'aarch64').index(platform.machine())

    def call(name, number, expected, *arguments):
        result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        if result != -1 or ctypes.get_errno() not in expected:
            print(name, result, ctypes.get_errno())

    for name, numbers in names.items():
        call(name, numbers[machine], REFUSED, 0x10000000, 0, 0, 0, 0)  # CLONE_NEWUSER, for the one that takes it
    for name, numbers in absent.items():
        call(name, numbers[machine], ABSENT, 1, 0, 0, 0, 0, 0)
    personality, clone, ioctl = ((135, 92), (56, 220), (16, 29))
    for value in (0x0400000, 0x0040000, 0x0400008):  # READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE
        call('personality', personality[machine], REFUSED, value)
    call('clone', clone[machine], REFUSED, 0x10000000 | 17, 0, 0, 0, 0)
    for request in (0x5412, 0x541C, 0x7F00005412):  # TIOCSTI, TIOCLINUX
        call('ioctl', ioctl[machine], REFUSED, 0, request, 0)
    # The owner of a file must not take it out of a disk quota: FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS, file_setattr.
    attributes = ctypes.create_string_buffer(28)
    with open('own', 'w') as own:
        for request in (0x401C5820, 0x40086602, 0x1401C5820, 0xFFFFFFFF40086602 - (1 << 64)):
            call('ioctl', ioctl[machine], REFUSED, own.fileno(), request, ctypes.addressof(attributes))
    call('file_setattr', 469, REFUSED + ABSENT, -100, 0, 0, 0, 0)

    sockets = [(family, kind, 0) for family in (17, 30, 31, 38, 40, 44) for kind in (1, 2, 3, 5)]
    sockets += [(16, 3, family) for family in range(1, 23)]
    strange = ((1, 132), (2, 136), (1, 262), (3, 255))
    sockets += [(family, kind, number) for family in (2, 10) for kind, number in strange]
    for arguments in sockets:
        try:
            socket.socket(*arguments)
            print('socket', arguments)
        except PermissionError:
            pass
    try:
        socket.socketpair(30)
        print('socketpair')
    except PermissionError:
        pass
    print('tried')
"""


@ISOLATED
async def test_what_only_an_attacker_needs_of_the_kernel_is_refused(sandbox: Sandbox) -> None:
    assert (await python(sandbox, CALLS)).output == "tried\n"


@ISOLATED
async def test_what_programs_need_of_the_kernel_is_there(sandbox: Sandbox) -> None:
    program = """if 1:
        import asyncio, ctypes, mmap, os, select, socket, subprocess, threading, time
        libc = ctypes.CDLL(None)
        assert [name for _, name in socket.if_nameindex()] == ['lo']
        addresses = ctypes.c_void_p()
        assert libc.getifaddrs(ctypes.byref(addresses)) == 0 and addresses.value
        assert socket.getaddrinfo('localhost', 80, flags=socket.AI_ADDRCONFIG)
        assert libc.personality(0xFFFFFFFF) == 0
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                socket.socket(family, kind).close()
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP).close()
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
        socket.socketpair()
        assert libc.inotify_init() >= 0
        thread = threading.Thread(target=time.sleep, args=(0,))
        thread.start(), thread.join()
        assert subprocess.run(['sh', '-c', 'exit 3']).returncode == 3
        assert asyncio.run(asyncio.to_thread(os.getpid)) == os.getpid()
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        with open('/tmp/f', 'wb+') as file:
            file.truncate(4096)
            mmap.mmap(file.fileno(), 4096)[0] = 1
        assert int(open('/proc/sys/kernel/pid_max').read()) > 0
        print('works')
    """
    assert (await python(sandbox, program)).output == "works\n"


@ISOLATED
async def test_what_tells_of_the_machine_is_empty_and_what_sets_it_up_is_read_only(sandbox: Sandbox) -> None:
    program = f"""if 1:
        import os
        hidden, fixed = {HIDDEN_PATHS!r}, {READ_ONLY_PATHS!r}
        for path in hidden:
            try:
                if os.path.isdir(path) and os.listdir(path) or os.path.isfile(path) and open(path, 'rb').read(1):
                    print('seen', path)
                if not os.path.isdir(path) and os.path.exists(path) and open(path, 'rb').read(1):
                    print('seen', path)
            except PermissionError:
                pass
        seen = 0
        for path in fixed:
            for home, _, names in [('', [], [path])] if not os.path.isdir(path) else os.walk(path):
                for name in names:
                    seen += 1
                    for flags in (os.O_WRONLY, os.O_RDWR):
                        try:
                            os.close(os.open(os.path.join(home, name), flags))
                            print('opened', home, name)
                        except OSError:
                            pass
                        if os.access(os.path.join(home, name), os.W_OK):
                            print('writable', home, name)
        print('tried', seen > 100)
    """
    assert (await python(sandbox, program)).output == "tried True\n"


SIGNALS = """
name=$(cat /proc/self/status | grep SigIgn)
blocked=$(cat /proc/self/status | grep SigBlk)
echo ${name#SigIgn:} ${blocked#SigBlk:}
"""


@pytest.fixture
def careless_start() -> object:
    """Ignore what `nohup` and a script's `&` do, while the sandbox is made."""
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTSTP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.usefixtures("careless_start")
async def test_every_signal_does_what_it_does_by_default(make_sandbox: MakeSandbox, *, tty: bool) -> None:
    sandbox = await make_sandbox()
    seen = await run(sandbox, "grep", "-E", "SigIgn|SigBlk", "/proc/self/status", tty=tty)
    masks = {name: int(value, 16) for name, _, value in (line.partition(":") for line in seen.output.splitlines())}
    assert masks == {"SigBlk": 0, "SigIgn": 0}
    for number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGINT, signal.SIGTSTP, signal.SIGPIPE, signal.SIGXFSZ):
        if number != signal.SIGTSTP:
            told = await run(sandbox, "sh", "-c", f"sh -c 'kill -{int(number)} $$; echo survived'; echo $?", tty=tty)
            assert told.output.splitlines()[-1] == str(128 + number)


@LIMITED
@pytest.mark.parametrize(("cpus", "count"), [(0.5, "1"), (1.5, "2")])
async def test_programs_see_how_many_processors_they_may_use(
    make_sandbox: MakeSandbox, cpus: float, count: str
) -> None:
    sandbox = await make_sandbox(cpus=cpus)
    program = f"import os; print({{os.environ.get(name) for name in {THREAD_VARIABLES!r}}})"
    assert (await python(sandbox, program)).output == f"{{'{count}'}}\n"
    own = await run(sandbox, "sh", "-c", "echo $OMP_NUM_THREADS $MKL_NUM_THREADS", env={"OMP_NUM_THREADS": "7"})
    assert own.output == f"7 {count}\n"


# -- memory ---------------------------------------------------------------------


@LIMITED
async def test_shared_memory_may_be_as_large_as_memory(sandbox: Sandbox) -> None:
    program = """if 1:
        from multiprocessing import shared_memory
        import os
        block = shared_memory.SharedMemory(create=True, size=100 << 20)
        block.buf[:] = b'x' * len(block.buf)
        print(bytes(block.buf[-3:]), os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize)
        block.unlink()
    """
    assert (await python(sandbox, program)).output == f"b'xxx' {Limits().memory}\n"


@LIMITED
async def test_shared_memory_counts_as_memory(runtime: Runtime, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(memory=96 * MIB)
    ran = await run(sandbox, "sh", "-c", "exec head -c 200M /dev/zero >/dev/shm/all")
    if "RLIMIT_DATA" in runtime.info.isolation:  # no cgroup for this user: only the size of the file system holds
        assert ran.status.code == 1
    else:
        assert ran.status.oom or ran.status.code == 1  # killed, or no room: its own memory is little


SOCKETS = """if 1:
    import socket
    listener = socket.create_server(('127.0.0.1', 0), backlog=512)
    held, total = [], 0
    piece = bytes(1 << 16)
    for _ in range(200):
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        held += [client, server]
        client.setblocking(False)
        try:
            while sent := client.send(piece):
                total += sent
        except BlockingIOError:
            pass
    print(total >> 20, flush=True)
"""


DATAGRAMS = """if 1:
    import socket
    held, total = [], 0
    for _ in range(400):
        receiver, sender = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
        receiver.bind(('127.0.0.1', 0))
        sender.setblocking(False)
        held += [receiver, sender]
        for _ in range(100):
            sender.sendto(bytes(60_000), receiver.getsockname())
    for receiver in held[::2]:
        receiver.setblocking(False)
        try:
            while piece := receiver.recv(1 << 16):
                total += len(piece)
        except BlockingIOError:
            pass
    print(total >> 20, flush=True)
"""


@LIMITED
@pytest.mark.parametrize("program", [SOCKETS, DATAGRAMS], ids=["tcp", "udp"])
async def test_unread_data_of_sockets_counts(make_sandbox: MakeSandbox, program: str) -> None:
    sandbox = await make_sandbox(memory=64 * MIB)
    process = await start_python(sandbox, program)
    output = await read_all(process)
    status = await process.wait()
    await process.aclose()
    assert status.oom or int(output) <= 64
    assert (await python(sandbox, "print('goes on')")).output == "goes on\n"


# -- terminals ------------------------------------------------------------------

TERMINALS = """if 1:
    import os, signal
    held = []
    try:
        while len(held) < 2000:
            held.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))
    except OSError as exc:
        print(exc.errno)
    print(len(held), flush=True)
    signal.pause()
"""


@LIMITED
async def test_terminals_are_a_sandboxs_own(make_sandbox: MakeSandbox) -> None:
    sandbox, other = await make_sandbox(ptys=10), await make_sandbox(ptys=10)
    before = await sandbox.exec(["cat"], tty=True)
    process = await start_python(sandbox, TERMINALS)
    output = await read_until(process, b"\n9\n")
    assert output == f"{errno.ENOSPC}\n9\n".encode()
    with pytest.raises(SandboxError, match="the session has reached its limit of terminals"):
        await sandbox.exec(["cat"], tty=True)
    assert (await run(other, "echo", "served", tty=True)).output == "served\r\n"
    await before.write(b"still\n")
    await read_until(before, b"still\r\nstill\r\n")
    await process.aclose()
    assert (await run(sandbox, "echo", "again", tty=True)).output == "again\r\n"
    await before.aclose()


# -- limits of each process -----------------------------------------------------


async def test_the_limits_of_processes_are_the_same_in_every_runtime(make_sandbox: MakeSandbox) -> None:
    limits = Limits(nofile=321)
    sandbox = await make_sandbox(nofile=321)
    names = sorted(limits.rlimits)
    program = f"import resource; print([resource.getrlimit(getattr(resource, 'RLIMIT_' + n.upper())) for n in {names}])"
    assert (await python(sandbox, program)).output == f"{[(limits.rlimits[name],) * 2 for name in names]}\n"
    assert {"core", "nofile", "sigpending", "memlock", "msgqueue"} <= set(names)
