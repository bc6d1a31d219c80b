"""What every runtime promises: one suite, passed by docker and local alike."""

import asyncio
import contextlib
import errno
import hashlib
import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.base import SOCKETS_PATH, WORKSPACE_PATH, Runtime, Sandbox, SandboxSpec
from tests.contract.conftest import MakeSandbox, MakeSpec
from tests.contract.driving import (
    IN_SANDBOX_PROCESSES,
    PATIENCE,
    children,
    descriptors,
    on_host,
    python,
    read_all,
    read_until,
    run,
    start_python,
)

MIB = 1 << 20


# -- starting and ending a process ---------------------------------------------


async def test_output_is_stdout_and_stderr_in_order(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "sh", "-c", "echo one; echo two >&2; echo three")
    assert ran.output == "one\ntwo\nthree\n"
    assert ran.status.code == 0


async def test_exit_code_is_told(sandbox: Sandbox) -> None:
    status = (await run(sandbox, "sh", "-c", "exit 7")).status
    assert (status.code, status.signal, status.oom) == (7, None, False)


async def test_the_signal_that_ended_it_is_told(sandbox: Sandbox) -> None:
    status = (await python(sandbox, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")).status
    assert (status.code, status.signal, status.oom) == (None, signal.SIGTERM, False)


async def test_environment_is_laid_over_the_sandboxs_own(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "sh", "-c", 'echo "$GREETING|$HOME|$PATH"', env={"GREETING": "hallo, wörld"})
    assert ran.output.strip() == f"hallo, wörld|{sandbox.workspace_path}|{sandbox.facts.env['PATH']}"


async def test_an_overlay_replaces_a_variable(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "/bin/sh", "-c", "echo $HOME", env={"HOME": "/elsewhere"})
    assert ran.output == "/elsewhere\n"


async def test_working_directory(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "pwd")).output.strip() == WORKSPACE_PATH
    process = await sandbox.exec(["pwd"], cwd="/tmp")
    assert await read_all(process) == b"/tmp\n"
    await process.aclose()


@pytest.mark.parametrize("tty", [False, True])
async def test_no_such_program(sandbox: Sandbox, tty: bool) -> None:  # noqa: FBT001 - a parameter of the test
    with pytest.raises(SandboxError, match="no-such-program"):
        await sandbox.exec(["no-such-program"], tty=tty)
    assert (await run(sandbox, "true")).status.code == 0


async def test_an_output_of_a_mebibyte_arrives_whole(sandbox: Sandbox) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096)"
    process = await start_python(sandbox, program)
    output = await read_all(process)
    assert (await process.wait()).code == 0
    await process.aclose()
    assert len(output) == MIB
    assert hashlib.sha256(output).digest() == hashlib.sha256(bytes(range(256)) * 4096).digest()


async def test_stdin_is_empty_without_a_terminal(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "sh", "-c", "cat; echo done")).output == "done\n"


async def test_a_process_without_a_terminal_takes_no_input(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sleep", "1000"])
    with pytest.raises(BrokenPipeError):
        await process.write(b"x")
    await process.aclose()


async def test_reads_after_the_end_give_nothing(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["echo", "x"])
    assert await read_all(process) == b"x\n"
    assert await process.read() == b""
    await process.aclose()
    assert await process.read() == b""


async def test_any_number_may_wait_for_the_end(sandbox: Sandbox) -> None:
    process = await start_python(sandbox, "import signal; signal.pause()")
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        waiting = [group.create_task(process.wait()) for _ in range(5)]
        await process.kill()
    assert {task.result().signal for task in waiting} == {signal.SIGKILL}
    assert (await process.wait()).signal == signal.SIGKILL
    await process.aclose()


async def test_a_cancelled_waiter_takes_nobody_along(sandbox: Sandbox) -> None:
    process = await start_python(sandbox, "import signal; signal.pause()")
    first, second = asyncio.create_task(process.wait()), asyncio.create_task(process.wait())
    reader = asyncio.create_task(process.read())
    for task in (first, reader):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await process.aclose()
    async with asyncio.timeout(PATIENCE):
        assert (await second).signal == signal.SIGKILL


async def test_two_processes_at_once(sandbox: Sandbox) -> None:
    async with asyncio.TaskGroup() as group:
        ran = [group.create_task(run(sandbox, "sh", "-c", f"echo {n}")) for n in range(8)]
    assert [task.result().output for task in ran] == [f"{n}\n" for n in range(8)]


# -- sessions, groups, signals --------------------------------------------------


async def test_a_process_leads_its_session_and_its_group(sandbox: Sandbox) -> None:
    process = await start_python(sandbox, "import os; print(os.getpid(), os.getsid(0), os.getpgrp())")
    ids = (await read_all(process)).split()
    await process.aclose()
    assert ids == [str(process.pid).encode()] * 3


async def test_a_signal_reaches_the_whole_group(sandbox: Sandbox) -> None:
    process = await start_python(
        sandbox,
        """if 1:
        import os, signal
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            print('ready', flush=True)
            while True:
                signal.pause()
        print('child ended by', os.waitpid(child, 0)[1])
        """,
    )
    await read_until(process, b"ready")
    await process.signal(signal.SIGUSR1)
    assert await read_all(process) == b"child ended by %d\n" % signal.SIGUSR1
    await process.aclose()


async def test_sigint_is_a_keyboard_interrupt(sandbox: Sandbox) -> None:
    process = await start_python(
        sandbox,
        """if 1:
        import signal
        try:
            print('ready', flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print('interrupted')
        """,
    )
    await read_until(process, b"ready")
    await process.signal(signal.SIGINT)
    assert b"interrupted" in await read_all(process)
    await process.aclose()


async def test_a_signal_after_the_end_does_nothing(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["true"])
    await process.wait()
    await process.signal(signal.SIGTERM)
    await process.kill()
    await process.kill()
    assert (await process.wait()).code == 0
    await process.aclose()
    await process.aclose()


@pytest.mark.parametrize("tty", [False, True])
async def test_kill_takes_background_jobs_and_grandchildren(sandbox: Sandbox, tty: bool) -> None:  # noqa: FBT001 - as above
    script = "set -m; sleep 77777 & (sleep 77777; :) & sh -c 'sleep 77777; :' & echo rea''dy; wait"
    process = await sandbox.exec(["sh", "-c", script], tty=tty)
    await read_until(process, b"ready")
    await process.kill()
    assert (await process.wait()).signal == signal.SIGKILL
    await process.aclose()
    assert "77777" not in (await python(sandbox, IN_SANDBOX_PROCESSES)).output


async def test_kill_takes_jobs_that_outlived_their_leader(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sh", "-c", "sleep 66666 >/dev/null 2>&1 & exit 3"])
    assert (await process.wait()).code == 3
    await process.kill()
    await process.aclose()
    assert "66666" not in (await python(sandbox, IN_SANDBOX_PROCESSES)).output


async def test_orphans_are_reaped(sandbox: Sandbox) -> None:
    program = """if 1:
        import os
        r, w = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                os.setsid()
                while os.getppid() != 1:
                    os.sched_yield()
                os.write(w, str(os.getpid()).encode())
                os._exit(0)
            os._exit(0)
        os.wait()
        pid = os.read(r, 20).decode()
        while os.path.exists(f'/proc/{pid}'):
            os.sched_yield()
        print('reaped')
    """
    assert (await python(sandbox, program)).output == "reaped\n"


# -- terminals ------------------------------------------------------------------


async def test_a_terminal_is_one(sandbox: Sandbox) -> None:
    program = "import os; print([os.isatty(fd) for fd in range(3)], os.ttyname(0), open('/dev/tty', 'w').isatty())"
    process = await start_python(sandbox, program, tty=True)
    output = await read_all(process)
    await process.aclose()
    assert b"[True, True, True] /dev/pts/" in output
    assert output.endswith(b"True\r\n")


async def test_without_a_terminal_there_is_none(sandbox: Sandbox) -> None:
    assert (await python(sandbox, "import os; print([os.isatty(fd) for fd in range(3)])")).output == (
        "[False, False, False]\n"
    )


async def test_the_terminals_first_size(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["stty", "size"], tty=True, rows=33, cols=121)
    assert await read_all(process) == b"33 121\r\n"
    await process.aclose()


async def test_a_resize_is_seen_and_signalled(sandbox: Sandbox) -> None:
    process = await start_python(
        sandbox,
        """if 1:
        import signal, subprocess
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
        print('ready', flush=True)
        signal.sigwait({signal.SIGWINCH})
        subprocess.run(['stty', 'size'])
        """,
        tty=True,
    )
    await read_until(process, b"ready")
    await process.resize(50, 200)
    assert b"50 200\r\n" in await read_all(process)
    await process.wait()
    await process.resize(10, 10)
    await process.aclose()


async def test_what_is_written_is_echoed_and_read(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["cat"], tty=True)
    await process.write("grüß\n".encode())
    assert await read_until(process, "grüß\r\ngrüß\r\n".encode()) == "grüß\r\ngrüß\r\n".encode()
    await process.write(b"\x04")
    assert await read_all(process) == b""
    assert (await process.wait()).code == 0
    with pytest.raises(BrokenPipeError):
        await process.write(b"x")
    await process.aclose()


async def test_control_c_interrupts(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sh", "-c", "echo ready; exec sleep 1000"], tty=True)
    await read_until(process, b"ready")
    await process.write(b"\x03")
    assert b"^C" in await read_all(process)
    assert (await process.wait()).signal == signal.SIGINT
    await process.aclose()


async def test_a_large_input_arrives_whole(sandbox: Sandbox) -> None:
    program = "import sys, tty; tty.setraw(0); print('ready', flush=True); print(len(sys.stdin.buffer.read(300000)))"
    process = await start_python(sandbox, program, tty=True)
    await read_until(process, b"ready")
    async with asyncio.timeout(PATIENCE):
        await process.write(b"x" * 300_000)
    assert b"300000" in await read_all(process)
    await process.aclose()


# -- what a sandbox is ----------------------------------------------------------


async def test_the_user_is_the_one_of_the_facts_and_not_root(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "sh", "-c", "id -u; id -g; id -G")
    uid, gid, groups = ran.output.splitlines()
    assert (int(uid), int(gid)) == (sandbox.facts.uid, sandbox.facts.gid)
    assert "0" not in {uid, gid, *groups.split()}


async def test_home_is_the_workspace(sandbox: Sandbox) -> None:
    assert sandbox.workspace_path == WORKSPACE_PATH
    assert sandbox.sockets_path == SOCKETS_PATH
    assert (await run(sandbox, "sh", "-c", "cd; pwd")).output.strip() == WORKSPACE_PATH


async def test_the_facts_have_a_kernel(runtime: Runtime) -> None:
    facts = await runtime.prepare()
    assert facts is await runtime.prepare()
    assert facts.kernelspec().language == "python"
    assert facts.python.version >= (3, 8)
    assert facts.uid != 0


async def test_the_kernels_packages_can_be_imported(sandbox: Sandbox) -> None:
    ran = await python(sandbox, "import ipykernel.kernelapp, IPython, zmq; print('imported')")
    assert ran.output == "imported\n"


async def test_files_are_shared_both_ways(sandbox: Sandbox, spec: SandboxSpec) -> None:
    (spec.files / "in.txt").write_text("from outside")
    assert (await run(sandbox, "cat", "in.txt")).output == "from outside"
    assert (await run(sandbox, "sh", "-c", "printf inside >out.txt")).status.code == 0
    written = spec.files / "out.txt"
    assert written.read_text() == "inside"
    assert (written.stat().st_uid, written.stat().st_gid) == (sandbox.facts.uid, sandbox.facts.gid)


async def test_a_socket_bound_inside_can_be_connected_to_outside(sandbox: Sandbox, spec: SandboxSpec) -> None:
    process = await start_python(
        sandbox,
        f"""if 1:
        import socket
        server = socket.socket(socket.AF_UNIX)
        server.bind({sandbox.sockets_path!r} + '/s')
        server.listen()
        print('ready', flush=True)
        server.accept()[0].sendall(b'hello')
        """,
    )
    await read_until(process, b"ready")
    assert stat.S_ISSOCK((spec.sockets / "s").stat().st_mode)
    directory = os.open(spec.sockets, os.O_PATH)  # the path itself may be too long for an address
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/s")
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
    finally:
        os.close(directory)
    await process.aclose()


async def test_a_closed_sockets_directory_cannot_be_changed(sandbox: Sandbox, spec: SandboxSpec) -> None:
    if os.geteuid() != 0:
        assert sandbox.facts.uid == os.geteuid()  # only root can give it to somebody else
        return
    (spec.sockets / "s").touch()
    os.chown(spec.sockets, 0, 0)
    ran = await run(sandbox, "sh", "-c", f"cd {SOCKETS_PATH}; touch new; rm -f s; mv s t; chmod 777 .; ls")
    assert ran.output.endswith("\ns\n")
    assert [path.name for path in spec.sockets.iterdir()] == ["s"]


async def test_only_loopback(sandbox: Sandbox) -> None:
    lines = (await run(sandbox, "cat", "/proc/net/dev")).output.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


async def test_loopback_works(sandbox: Sandbox) -> None:
    program = """if 1:
        import socket
        server = socket.create_server(('127.0.0.1', 0))
        client = socket.create_connection(server.getsockname())
        server.accept()[0].sendall(b'over lo')
        print(client.recv(100).decode())
    """
    assert (await python(sandbox, program)).output == "over lo\n"


async def test_no_privilege(sandbox: Sandbox) -> None:
    lines = (await run(sandbox, "cat", "/proc/self/status")).output.splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


async def test_the_root_file_system_is_read_only(sandbox: Sandbox) -> None:
    program = """if 1:
        import errno, os
        for path in ('/x', '/usr/x', '/etc/x', '/usr/bin/x', '/run/x', '/dev/x', '/var/x', '/root/x', '/home/x'):
            try:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
                print('wrote', path)
            except OSError:
                pass
        print('tried')
    """
    assert (await python(sandbox, program)).output == "tried\n"


async def test_tmp_is_writable_executable_and_limited(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(tmp=8 * MIB)
    assert (await run(sandbox, "sh", "-c", "cp /bin/echo /tmp/e && /tmp/e runs; rm /tmp/e")).output == "runs\n"
    program = """if 1:
        import errno
        try:
            with open('/tmp/big', 'wb') as big:
                for _ in range(64):
                    big.write(bytes(1 << 20))
        except OSError as exc:
            print(errno.errorcode[exc.errno])
    """
    assert (await python(sandbox, program)).output == f"{errno.errorcode[errno.ENOSPC]}\n"


async def test_the_servers_environment_is_not_there(monkeypatch: pytest.MonkeyPatch, make_sandbox: MakeSandbox) -> None:
    monkeypatch.setenv("KERNELBRIDGE_CANARY", "a-secret-of-the-server")
    sandbox = await make_sandbox()
    seen = await python(
        sandbox,
        """if 1:
        import glob
        for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):
            try:
                print(open(path).read())
            except OSError:
                pass
        """,
    )
    assert "HOME=" in seen.output
    assert "a-secret-of-the-server" not in seen.output


async def test_the_hosts_secrets_are_not_there(sandbox: Sandbox) -> None:
    program = """if 1:
        import os
        print([p for p in ('/etc/shadow', '/var/run/docker.sock', '/run/docker.sock') if os.access(p, os.R_OK)])
        print(os.listdir('/home') if os.path.isdir('/home') and os.access('/home', os.R_OK) else [])
    """
    assert Path("/etc/shadow").exists()
    first, _ = (await python(sandbox, program)).output.splitlines()
    assert first == "[]"


# -- limits ---------------------------------------------------------------------


async def test_a_fork_bomb_ends_at_the_limit(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(pids=40)
    process = await start_python(
        sandbox,
        """if 1:
        import os, signal
        made = 0
        try:
            while made < 200:
                if os.fork() == 0:
                    os.close(1), os.close(2)
                    while True:
                        signal.pause()
                made += 1
        except OSError as exc:
            print(made, exc.strerror)
        """,
    )
    output = (await read_all(process)).decode()
    assert "Resource temporarily unavailable" in output
    assert 20 <= int(output.split()[0]) <= 40
    await process.aclose()
    assert (await run(sandbox, "true")).status.code == 0


async def test_out_of_memory_is_told(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(memory=128 * MIB)
    status = (await python(sandbox, "print(len(b'x' * (512 << 20)))")).status
    assert status.oom
    assert str(status) == "out of memory"


async def test_a_neighbour_in_the_sandbox_survives_out_of_memory(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(memory=128 * MIB)
    neighbour = await sandbox.exec(["cat"], tty=True)
    assert (await python(sandbox, "print(len(b'x' * (512 << 20)))")).status.oom
    await neighbour.write(b"alive\n")
    await read_until(neighbour, b"alive\r\nalive\r\n")
    await neighbour.aclose()
    assert not (await python(sandbox, "raise SystemExit(9)")).status.oom


async def test_open_files_are_limited(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(nofile=123)
    assert (await run(sandbox, "sh", "-c", "ulimit -n; ulimit -Hn")).output == "123\n123\n"


async def test_no_core_files(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "sh", "-c", "ulimit -c; ulimit -Hc")).output == "0\n0\n"


# -- two sandboxes --------------------------------------------------------------


async def test_sandboxes_do_not_see_each_other(make_sandbox: MakeSandbox) -> None:
    first, second = await make_sandbox(), await make_sandbox()
    assert first.id != second.id
    process = await first.exec(["sh", "-c", "echo mine >file; echo mine >/tmp/file; echo ready; exec sleep 55555"])
    await read_until(process, b"ready")
    assert "55555" in (await python(first, IN_SANDBOX_PROCESSES)).output
    assert "55555" not in (await python(second, IN_SANDBOX_PROCESSES)).output
    assert (await run(second, "sh", "-c", "ls /workspace; ls /tmp/file")).status.code != 0
    assert (await run(second, "ls", "/workspace")).output == ""
    await process.aclose()


# -- the end of a sandbox -------------------------------------------------------


async def test_destroy_is_idempotent_and_ends_wait(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    waiting = [asyncio.create_task(sandbox.wait()) for _ in range(3)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(sandbox.destroy(), sandbox.destroy())
        await sandbox.destroy()
        statuses = await asyncio.gather(*waiting)
        assert len(set(statuses)) == 1
        assert await sandbox.wait() == statuses[0]


async def test_destroy_ends_what_runs_and_what_escaped(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    marker = f"4444.{os.getpid()}"
    script = f"setsid sleep {marker} >/dev/null 2>&1 & echo started; exec sleep {marker}"
    plain = await sandbox.exec(["sh", "-c", script])
    terminal = await sandbox.exec(["sh", "-c", f"echo started; exec sleep {marker}"], tty=True)
    for process in (plain, terminal):
        await read_until(process, b"started")
    reading = [asyncio.create_task(read_all(process)) for process in (plain, terminal)]
    await sandbox.destroy()
    assert on_host(marker) == []
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*reading) == [b"", b""]
        for process in (plain, terminal):
            assert (await process.wait()).code != 0
            await process.signal(signal.SIGTERM)
            await process.resize(1, 1)
            await process.aclose()


async def test_nothing_starts_in_a_destroyed_sandbox(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    await sandbox.destroy()
    with pytest.raises(SandboxError):
        await sandbox.exec(["true"])


async def test_killing_everything_from_inside_is_told(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    victim = await sandbox.exec(["sleep", "1000"])
    killer = await start_python(sandbox, "import os; os.kill(-1, 9)")
    async with asyncio.timeout(PATIENCE):
        await killer.wait()
        assert (await victim.wait()).code != 0
        assert await victim.read() == b""
        # Whether the sandbox itself survives is the runtime's: but it is one or the other.
        try:
            assert (await run(sandbox, "echo", "lives")).output == "lives\n"
        except SandboxError:
            await sandbox.wait()
    await victim.aclose()
    await killer.aclose()


async def test_a_failed_create_leaves_nothing(runtime: Runtime, make_spec: MakeSpec, tmp_path: Path) -> None:
    good = make_spec()
    await (await runtime.create(good)).destroy()
    before = descriptors(), children()
    bad = SandboxSpec(good.workspace_id, tmp_path / "absent", good.sockets)
    with pytest.raises(SandboxError, match="absent"):
        await runtime.create(bad)
    assert (descriptors(), children()) == before
    await (await runtime.create(good)).destroy()


async def test_a_cancelled_create_leaves_nothing(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec()
    await (await runtime.create(spec)).destroy()
    before = children()
    creating = asyncio.create_task(runtime.create(spec))
    await asyncio.wait({creating}, timeout=0)
    creating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await creating
    assert children() == before
    await (await runtime.create(spec)).destroy()


async def test_the_runtimes_end_destroys_its_sandboxes(runtime: Runtime, make_spec: MakeSpec) -> None:
    sandboxes = [await runtime.create(make_spec()) for _ in range(2)]
    await runtime.aclose()
    async with asyncio.timeout(PATIENCE):
        for sandbox in sandboxes:
            await sandbox.wait()
    await runtime.aclose()
    with pytest.raises(SandboxError):
        await runtime.create(make_spec())


async def test_reclaim_leaves_the_living_alone(runtime: Runtime, sandbox: Sandbox) -> None:
    assert await runtime.reclaim() == 0
    assert (await run(sandbox, "true")).status.code == 0


async def test_twenty_sandboxes_leave_nothing(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec()

    async def cycle() -> None:
        sandbox = await runtime.create(spec)
        assert (await run(sandbox, "echo", "x")).output == "x\n"
        assert (await run(sandbox, "echo", "x", tty=True)).output == "x\r\n"
        await sandbox.destroy()

    for _ in range(3):  # what is made once and kept, such as a pool of threads
        await cycle()
    before = len(descriptors()), children(), threading.active_count()
    for _ in range(20):
        await cycle()
    assert (len(descriptors()), children(), threading.active_count()) == before


async def test_the_runtime_says_what_it_is(runtime: Runtime) -> None:
    assert runtime.info.name in {"docker", "local"}
    assert runtime.info.detail
    assert "\n" not in runtime.info.detail + runtime.info.isolation
    assert runtime.info.warning is None
