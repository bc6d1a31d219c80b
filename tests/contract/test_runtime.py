"""What every runtime promises of a sandbox: what it is, what it may use."""

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import SHARED_PATH, WORKSPACE_PATH, Runtime, Sandbox
from tests.contract.conftest import MakeSandbox, MakeSpec
from tests.contract.driving import (
    IN_SANDBOX_PROCESSES,
    ISOLATED,
    LIMITED,
    PATIENCE,
    python,
    read_all,
    read_until,
    run,
    start_python,
)

MIB = 1 << 20


# -- what a sandbox is ----------------------------------------------------------


@ISOLATED
async def test_the_user_is_the_one_of_the_facts_and_not_root(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "sh", "-c", "id -u; id -g; id -G")
    uid, gid, groups = ran.output.splitlines()
    assert (int(uid), int(gid)) == (sandbox.facts.uid, sandbox.facts.gid)
    assert "0" not in {uid, gid, *groups.split()}


@ISOLATED
async def test_home_is_the_workspace(sandbox: Sandbox) -> None:
    assert sandbox.workspace_path == WORKSPACE_PATH
    assert sandbox.shared.path == SHARED_PATH
    assert (await run(sandbox, "sh", "-c", "cd; pwd")).output.strip() == WORKSPACE_PATH


async def test_the_facts_have_a_kernel(runtime: Runtime) -> None:
    facts = await runtime.prepare()
    assert facts is await runtime.prepare()
    assert facts.kernelspec("python3").language == "python"
    assert facts.python.version >= (3, 8)


async def test_the_kernels_packages_can_be_imported(sandbox: Sandbox) -> None:
    ran = await python(sandbox, "import ipykernel.kernelapp, IPython, zmq; print('imported')")
    assert ran.output == "imported\n"


async def test_files_are_shared_both_ways(sandbox: Sandbox, files: Path) -> None:
    (files / "in.txt").write_text("from outside")
    assert (await run(sandbox, "cat", "in.txt")).output == "from outside"
    assert (await run(sandbox, "sh", "-c", "printf inside >out.txt")).status.code == 0
    written = files / "out.txt"
    assert written.read_text() == "inside"
    assert (written.stat().st_uid, written.stat().st_gid) == (sandbox.facts.uid, sandbox.facts.gid)


async def test_a_socket_bound_inside_can_be_connected_to_outside(sandbox: Sandbox) -> None:
    sockets = await sandbox.shared.make_sockets("k1", {"words": "from the server\n"})
    assert not sockets.bound(["s"])
    assert (await run(sandbox, "cat", f"{sockets.path}/words")).output == "from the server\n"
    process = await start_python(
        sandbox,
        f"""if 1:
        import os, socket
        os.chdir({sockets.path!r})  # the path itself may be too long for an address
        server = socket.socket(socket.AF_UNIX)
        server.bind('s')
        server.listen()
        print('ready', flush=True)
        server.accept()[0].sendall(b'hello')
        """,
    )
    await read_until(process, b"ready")
    assert sockets.bound(["s"])
    with pytest.raises(SandboxError, match="its socket words is not a socket"):
        sockets.endpoints(["words"])
    address = sockets.endpoints(["s"])["s"]
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(address)
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
    await process.aclose()
    sockets.release()
    again = sandbox.shared.reopen_sockets("k1")
    assert again.endpoints(["s"])
    await again.aclose()
    await again.aclose()
    assert (await run(sandbox, "ls", sandbox.shared.path)).output == "agent\n"
    with pytest.raises(SandboxError):
        sandbox.shared.reopen_sockets("k1")


@ISOLATED
async def test_bound_sockets_cannot_be_changed(sandbox: Sandbox) -> None:
    """Where the server is root: any other has sandboxes of its own user, and can close nothing to itself."""
    root = os.geteuid() == 0
    assert (sandbox.facts.uid == os.geteuid()) != root
    sockets = await sandbox.shared.make_sockets("k1", {})
    bind = "import socket; socket.socket(socket.AF_UNIX).bind('s')"
    change = "touch new; rm -f s; mv s t; chmod 777 .; ls"
    ran = await run(sandbox, "sh", "-c", f'cd {sockets.path}; {sandbox.facts.python.executable} -c "{bind}"; ls')
    assert ran.output == "s\n"
    sockets.endpoints(["s"])
    ran = await run(sandbox, "sh", "-c", f"cd {sockets.path}; {change}")
    assert ran.output.endswith("\ns\n" if root else "new\n")
    await sockets.aclose()


async def test_a_text_is_read_in_it_and_replaced_outside(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = replace(make_spec(), texts={"text": b"first\n"}, links={"link": "text"})
    sandbox = await runtime.create(spec)
    try:
        for content in (b"first\n", b"x" * 100_000, b"short\n"):
            sandbox.shared.put("text", content)
            assert (await run(sandbox, "cat", f"{sandbox.shared.path}/link")).output == content.decode()
    finally:
        await sandbox.destroy()
    with pytest.raises(SandboxError, match="the sandbox is gone"):
        sandbox.shared.put("text", b"late")


@ISOLATED
async def test_a_text_cannot_be_changed_in_it(runtime: Runtime, make_spec: MakeSpec) -> None:
    """Where the server is root, as above."""
    sandbox = await runtime.create(replace(make_spec(), texts={"text": b"text\n"}))
    try:
        script = f"cd {SHARED_PATH}; echo new >>text; rm -f text; touch other; ls; cat text"
        if os.geteuid() == 0:
            assert (await run(sandbox, "sh", "-c", f"({script}) 2>/dev/null")).output == "agent\ntext\ntext\n"
    finally:
        await sandbox.destroy()


@ISOLATED
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


@ISOLATED
async def test_no_privilege(sandbox: Sandbox) -> None:
    lines = (await run(sandbox, "cat", "/proc/self/status")).output.splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


@ISOLATED
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


@LIMITED
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


@ISOLATED
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


@ISOLATED
async def test_the_hosts_files_are_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secrets = ["/etc/shadow", "/etc/machine-id", "/var/run/docker.sock", "/run/docker.sock", str(secret), str(tmp_path)]
    homes = [f"/home/{path.name}" for path in Path("/home").iterdir()]
    assert Path("/etc/shadow").exists()
    program = f"import os; print([p for p in {secrets + homes!r} if os.access(p, os.R_OK) and os.stat(p).st_size])"
    assert (await python(sandbox, program)).output == "[]\n"


# -- limits ---------------------------------------------------------------------


@LIMITED
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


@LIMITED
async def test_out_of_memory_is_told(runtime: Runtime, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(memory=128 * MIB)
    await exhaust_memory(runtime, sandbox)


@LIMITED
async def test_a_neighbour_in_the_sandbox_survives_out_of_memory(runtime: Runtime, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(memory=128 * MIB)
    neighbour = await sandbox.exec(["cat"], tty=True)
    await exhaust_memory(runtime, sandbox)
    await neighbour.write(b"alive\n")
    await read_until(neighbour, b"alive\r\nalive\r\n")
    await neighbour.aclose()
    assert not (await python(sandbox, "raise SystemExit(9)")).status.oom


async def exhaust_memory(runtime: Runtime, sandbox: Sandbox) -> None:
    ran = await python(sandbox, "print(len(b'x' * (512 << 20)))")
    # Without a cgroup for this user the program is told, not killed.
    told = "RLIMIT_DATA" in runtime.info.isolation
    assert ("MemoryError" in ran.output) == told
    assert ran.status.oom != told
    assert (str(ran.status) == "out of memory") != told


@LIMITED
async def test_the_memory_that_is_used_is_known(runtime: Runtime, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(memory=512 * MIB)
    if "RLIMIT_DATA" in runtime.info.isolation:  # without a control group nobody counts it
        assert await sandbox.memory() is None
        return
    before = await sandbox.memory()
    assert before is not None
    process = await start_python(sandbox, "held = b'x' * (100 << 20); print('held', flush=True); input()", tty=True)
    await read_until(process, b"held")
    used = await sandbox.memory()
    assert used is not None
    assert before + 90 * MIB < used < 512 * MIB
    await process.aclose()


@LIMITED
async def test_processor_time_is_limited_however_many_want_it(runtime: Runtime, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(cpus=0.25)
    program = """if 1:
        import os, time
        children = [os.fork() for _ in range(2)]
        began = time.monotonic()
        while time.monotonic() - began < 2:
            pass
        if 0 in children:
            os._exit(0)
        for child in children:
            os.waitpid(child, 0)
        used = os.times()
        print((used.user + used.system + used.children_user + used.children_system) / (time.monotonic() - began))
    """
    used = float((await python(sandbox, program)).output)
    # Without a cgroup nothing limits it, and the server says so.
    limited = "no cgroup limit for" not in runtime.info.isolation or "cpu (" not in runtime.info.isolation
    assert (used < 0.4) == limited  # the quota counts by tenths of a second


async def test_open_files_are_limited(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(nofile=123)
    assert (await run(sandbox, "sh", "-c", "ulimit -n; ulimit -Hn")).output == "123\n123\n"


async def test_no_core_files(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "sh", "-c", "ulimit -c; ulimit -Hc")).output == "0\n0\n"


# -- two sandboxes --------------------------------------------------------------


@ISOLATED
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
