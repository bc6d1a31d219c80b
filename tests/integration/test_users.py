"""Each session has a user of its own: it has a name, owns the files, and shares no limit with another session."""

import os
import shutil
from pathlib import Path

import pytest

from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.session_key import SessionKey
from tests.integration.conftest import Client, RunningServer, StartServer

ALONE = os.geteuid() != 0
"""Not root: every sandbox runs as the server's own user."""

WHO = "import os, getpass, subprocess\nprint(os.getuid(), os.getgid(), os.stat('.').st_uid, getpass.getuser())"

INOTIFY = """if True:
    import ctypes
    held = 0
    while ctypes.CDLL(None).inotify_init() >= 0:
        held += 1
    print(held)
"""

SIGNALS = """if True:
    import subprocess, sys
    program = '''if True:
        import ctypes, os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
        libc, sent = ctypes.CDLL(None), 0
        while sent < 100_000 and libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None) == 0:
            sent += 1
        print(sent, flush=True)
        signal.pause()
    '''
    queueing = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE)
    print(queueing.stdout.readline().decode())
"""

PIPES = """if True:
    import fcntl, os
    pipes = []
    while len(pipes) < 200:
        pipes.append(os.pipe())
        try:
            fcntl.fcntl(pipes[-1][1], fcntl.F_SETPIPE_SZ, 1 << 20)
        except PermissionError:
            break
    print(len(pipes) - 1)
"""


def files_of(server: RunningServer, session: str) -> Path:
    return server.data_dir / "workspaces" / SessionKey(Principal("u"), session).workspace_id / "files"


async def who(client: Client, session: str) -> tuple[int, int, int, str]:
    uid, gid, owner, name = (await client.run(WHO, session=session))["output"].split()
    return int(uid), int(gid), int(owner), name


async def test_two_sessions_have_two_users_with_names(server: RunningServer) -> None:
    async with server.connect("u") as client:
        first, second = await who(client, "a"), await who(client, "b")
        assert first[0] == first[2]
        assert second[0] == second[2]
        assert (first[0] == second[0]) == ALONE
        for session, uid in (("a", first[0]), ("b", second[0])):
            told = await client.shell("id -u; whoami; echo ~; touch mine; stat -c %u mine", session=session)
            shown = told["output"].split()
            assert (shown[0], shown[2], shown[3]) == (str(uid), "/workspace", str(uid)), told
            assert shown[1].isidentifier()
            await client.ask(type="save_file", sessionId=session, filename="d/saved", content="x")
            told = await client.shell("stat -c %u d d/saved; echo more >>d/saved && cat d/saved", session=session)
            assert told["output"] == f"{uid}\n{uid}\nxmore\n"


async def test_a_session_keeps_its_user(start_server: StartServer) -> None:
    server = await start_server()
    async with server.connect("u") as client:
        before = await who(client, "a")
        await client.run("open('kept', 'w').write('1')", session="a")
        await client.ask(type="close_session", sessionId="a")
        assert await who(client, "a") == before
        assert (await client.run("print(open('kept', 'a+').seek(0))", session="a"))["output"] == "0\n"


async def test_the_limits_of_a_user_are_those_of_a_session(server: RunningServer) -> None:
    async with server.connect("u") as client:
        taken = int((await client.run(INOTIFY, session="greedy"))["output"])
        assert taken > 10
        assert int((await client.run(SIGNALS, session="greedy"))["output"]) > 1000
        assert (int((await client.run(INOTIFY, session="other"))["output"]) > taken // 2) != ALONE
        assert (int((await client.run(SIGNALS, session="other"))["output"]) > 1000) != ALONE
        enlarged = int((await client.run(PIPES, session="greedy"))["output"])
        assert 10 < enlarged < 199
        assert (int((await client.run(PIPES, session="other"))["output"]) > enlarged // 2) != ALONE


async def test_files_of_an_earlier_version_are_handed_over(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(uid_range="off")
    async with server.connect("u") as client:
        before = await who(client, "a")
        await client.run(
            "import os; os.makedirs('p/q'); open('p/q/f', 'w').write('1'); os.chmod('p', 0o700)", session="a"
        )
    files = files_of(server, "a")
    assert files.stat().st_uid == before[0]
    # As the next server finds them.
    shutil.copytree(server.data_dir, tmp_path / "copy", symlinks=True, ignore=lambda *_: {"lock", "run", "state"})
    for path in [files, *files.rglob("*")]:
        if not ALONE:
            os.lchown(tmp_path / "copy" / path.relative_to(server.data_dir), before[0], before[1])
    later = await start_server(data_dir=str(tmp_path / "copy"))
    async with later.connect("u") as client:
        after = await who(client, "a")
        assert (after[0] == before[0]) == ALONE
        ran = await client.run(
            "print(open('p/q/f').read(), open('p/q/f', 'a').write('2'), os.stat('p/q').st_uid)", session="a"
        )
        assert ran["output"] == f"1 1 {after[0]}\n", ran
    assert {path.lstat().st_uid for path in files_of(later, "a").rglob("*")} == {after[0]}


@pytest.mark.parametrize("uids", ["off", "3000000-3000009"])
async def test_the_operator_chooses(start_server: StartServer, uids: str) -> None:
    server = await start_server(uid_range=uids)
    async with server.connect("u") as client:
        uid, *_ = await who(client, "a")
    assert (3_000_000 <= uid <= 3_000_009) == (uids != "off" and not ALONE)
