"""The files that must exist before a sandbox starts: the session's own, its user database, and what `pip` needs.

`python_env.py` says what `pip` needs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from kernelbridge.aio.threads import in_thread, in_turns
from kernelbridge.errors import KernelBridgeError
from kernelbridge.runtimes.accounts import group, passwd
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.runtimes.facts import Facts
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.store import FileLimits, WorkspaceFiles
from kernelbridge.workspace.python_env import PythonEnvironment, python_environment
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.settings import WorkspaceSettings


async def prepare_files(
    data: DataDirectory,
    key: SessionKey,
    facts: Facts,
    settings: WorkspaceSettings,
    *,
    own_uid: bool,
    executor: Executor,
) -> WorkspaceFiles:
    """Return the files of a session, which belong to its sandbox's user; make them if necessary. Raises `FileError`.

    With `own_uid`, that user has an id of the session's own.
    """
    stored = await in_thread(executor, data.prepare_files, key, facts.uid, facts.gid, own_uid=own_uid)
    await in_turns(executor, data.change_owner(stored))
    limits = FileLimits(settings.max_file, settings.max_upload)
    return WorkspaceFiles(stored.root, uid=stored.uid, gid=stored.gid, limits=limits, commits=stored.commits)


async def prepare_user(
    data: DataDirectory, key: SessionKey, facts: Facts, files: WorkspaceFiles, *, executor: Executor
) -> tuple[int | None, Path | None]:
    """Return `SandboxSpec.uid` and `SandboxSpec.etc` for a sandbox with these files."""
    if not facts.any_uid:
        return None, None
    uid = files.owner.uid
    if not facts.passwd:
        return uid, None
    etc = {"passwd": passwd(facts, uid), "group": group(facts)}
    return uid, await in_thread(executor, data.prepare_etc, key, etc)


async def prepare_python(
    sandbox: Sandbox, files: WorkspaceFiles, *, executor: Executor, tell: Callable[[str], None]
) -> PythonEnvironment:
    """Return the environment for programs in a sandbox; call `tell` with a text if pip cannot install in it."""
    environment = python_environment(sandbox.facts, sandbox.workspace_path)
    try:
        await in_thread(executor, _install, files, environment)
    except KernelBridgeError as exc:
        # The user's own files are in the way, or the disk is full: the user needs a session to put that right.
        tell(f"kernelbridge: packages cannot be installed in this session: {exc}\n")
        return environment.without_installs()
    return environment


def _install(files: WorkspaceFiles, environment: PythonEnvironment) -> None:
    for directory in environment.directories:
        files.mkdir(directory)
    for path, (content, mode) in environment.files.items():
        files.write_private(path, content.encode(), mode)
    for path, target in environment.symlinks.items():
        files.symlink(path, target)
