"""What runs in sandboxes must run on any Python from 3.8 on, with its standard library only."""

import ast
import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernelbridge.guest
from kernelbridge.runtimes.contract import ExitStatus
from tests.contract.driving import PATIENCE, read_all, read_until
from tests.unit.runtimes.agent_house import agent_house, alive, until, until_alive

OLDEST = (3, 8)
GUEST = Path(kernelbridge.guest.__file__).parent
FILES = sorted(GUEST.rglob("*.py"))


def pythons() -> dict[str, str]:
    """Find this machine's interpreters by version; there is at least the one that runs the tests."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    names = [f"python3.{minor}" for minor in range(OLDEST[1], 30)]
    installed = sorted(str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python3"))
    for program in [*filter(None, map(shutil.which, ("python3", *names))), *installed]:
        asked = subprocess.run(
            [program, "-ISc", "import ctypes, sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        version = asked.stdout.strip()
        if asked.returncode == 0 and tuple(map(int, version.split("."))) >= OLDEST:
            found.setdefault(version, program)
    return dict(sorted(found.items(), key=lambda item: int(item[0].partition(".")[2])))


PYTHONS = pythons()


@pytest.mark.parametrize("python", PYTHONS.values(), ids=PYTHONS)
async def test_an_agent_does_all_that_it_is_for(tmp_path: Path, python: str) -> None:
    async with agent_house(tmp_path, python=python) as house:
        first = await house.connect()
        job = house.link("job")
        shell = await house.start(first, f"setsid -f {job} 999; echo up; read x; echo got $x; read y", tty=True)
        await read_until(shell, b"up")
        await until_alive(job)
        signalled = await house.start(first, "trap 'echo caught; exit 5' USR1; echo up; while :; do sleep 0.05; done")
        await read_until(signalled, b"up")
        await first.pause()
        await first.resume()
        await signalled.signal(signal.SIGUSR1)
        assert (await read_all(signalled)).endswith(b"caught\n")
        assert await signalled.wait() == ExitStatus(code=5)
        first.leave()
        second = await house.connect(again=True)
        again = await second.attach(next(known for known in await second.known() if known.pid == shell.pid))
        again.resize(7, 9)
        await again.write(b"word\n")
        await read_until(again, b"got word")
        await again.prune()
        assert alive(job) == []
        await again.kill()
        assert (await again.wait()).signal == signal.SIGKILL
        terminal = second.open_terminal(24, 80)
        crowded, waits = await second.room()
        assert (crowded in {None, False}, waits) == (True, False)
        terminal.close()
        second.outlive(0.1)
        second.leave()
        async with asyncio.timeout(PATIENCE):
            assert await house.agent.wait() == 0
        await until(lambda: not Path(f"/proc/{shell.pid}").exists())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GUEST)))
def test_its_grammar_is_that_of_the_oldest_python(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=OLDEST)


HAS = """
import importlib, json, sys
missing = []
for module, name in json.load(sys.stdin):
    try:
        if name and not hasattr(importlib.import_module(module), name):
            importlib.import_module(module + "." + name)
    except ImportError:
        missing.append([module, name])
print(json.dumps(missing))
"""


def used(path: Path) -> Iterator[tuple[str, str]]:
    """The (module, name) pairs of the standard library that a file uses."""
    modules: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update({alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


def test_the_agent_uses_nothing_that_an_old_library_does_not_have() -> None:
    """On the oldest and the newest Python that this machine has."""
    names = sorted(set(used(GUEST / "agent.py")))
    assert ("os", "fork") in names
    programs = list(PYTHONS.values())
    for python in (programs[0], programs[-1]):
        asked = subprocess.run(
            [python, "-ISc", HAS], input=json.dumps(names), capture_output=True, text=True, check=True
        )
        assert json.loads(asked.stdout) == []
