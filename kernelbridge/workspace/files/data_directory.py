"""The server's data directory: where each session's files are, and which server uses it.

    <data>/instance                 this server's id, made once
    <data>/lock                     held while a server uses the directory
    <data>/workspaces/<id>/files/   a session's files; they outlive its sandboxes
    <data>/workspaces/<id>/session.json   which session it is: its principal and sessionId
    <data>/workspaces/<id>/closed.json    how the session was closed, until it is used again (`closed_notes.py`)
    <data>/run/                     what running sandboxes share with the server (`runtimes/agent/host_directories.py`)
    <data>/egress-authority.pem     with `egress_secret`: a key that sandboxes trust (`egress/authority.py`)
    <data>/usage.json               with `retain`: when each session was used last
    <data>/state/<id>.…             what another server must know of an open session (`adoption/record.py`)

`<id>` is a hash of (principal, sessionId): neither a user's name nor a session's ever becomes a path. Only the server
has access to what is above `files/`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from errno import EDQUOT, EEXIST, ENOSPC, ENOTEMPTY
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import structlog

from kernelbridge.aio.threads import BlockingWork, finish
from kernelbridge.disk.limits import DiskLimits
from kernelbridge.disk.session_disks import SessionDisks
from kernelbridge.errors import ConfigError, DiskFull, FileError
from kernelbridge.identity.principal import Principal
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.trees import remove_tree
from kernelbridge.workspace.files.change_owner import change_owner
from kernelbridge.workspace.files.user_ids import Uids
from kernelbridge.workspace.files.versions import Commits
from kernelbridge.workspace.session_key import SessionKey

EXHAUSTED = 64 << 20
"""Bytes free on the data directory's file system that a server needs to work."""
_LABEL = "session.json"
_CLOSED = "closed.json"
_MOST_CLOSED = 1 << 16
"""Bytes of that file that are read; a sound one is smaller."""
_ASIDE = ".aside-"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """A session's files as they are stored now."""

    root: Path
    commits: Commits
    uid: int
    gid: int
    """Their owner, after `DataDirectory.change_owner` at the latest."""


class DataDirectory:
    """The data directory of one running server; `close` releases it."""

    def __init__(self, root: Path, instance: str, lock_fd: int) -> None:
        self.root = root
        self.directories = HostDirectories(root)
        """Those of it that sandboxes see."""
        self.instance = instance
        self._lock_fd = lock_fd
        self._sharing = Lock()
        self._in_hand: set[Path] = set()
        self._commits: WeakValueDictionary[SessionKey, Commits] = WeakValueDictionary()
        self._uids: Uids | None = None
        self._stored: dict[Principal, set[str]] = {}
        """The ids of each principal's sessions that have files."""
        self._noting = Lock()
        """Not `_sharing`, for which a session's own lock may be waited for."""
        self.disk = SessionDisks(DiskLimits())
        """What each session may use of the disk, and uses."""

    @classmethod
    def open(cls, root: Path) -> DataDirectory:
        """Make the directory if necessary and lock it; raises `ConfigError` if it cannot be used."""
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("workspaces", "run", "state"):
                (root / name).mkdir(mode=0o700, exist_ok=True)
            lock_fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(
                f"The data directory {root} cannot be used",
                f"{exc.strerror}; choose another with --data-dir or make it writable for this user",
            ) from exc
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            instance = _instance(root / "instance")
        except BlockingIOError as exc:
            os.close(lock_fd)
            raise ConfigError(
                f"The data directory {root} is in use by another kernelbridge server",
                "stop that server, or give this one its own with --data-dir",
            ) from exc
        except BaseException:
            os.close(lock_fd)
            raise
        found = cls(root, instance, lock_fd)
        for key in found.sessions():
            found._note_stored(key)
        return found

    def limit_disk(self, limits: DiskLimits) -> None:
        """From now on, limit what each session uses of the disk; blocking."""
        self.disk = SessionDisks.open(self.root / "workspaces", limits, instance=self.instance)
        if self.disk.enforced:
            log.info("disk_quotas_enforced", size=limits.size, files=limits.files)

    @property
    def state(self) -> Path:
        """The directory of the records of open sessions."""
        return self.root / "state"

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._lock_fd >= 0:
            self.disk.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def files(self, key: SessionKey) -> Path:
        """Return the directory of a session's files; makes nothing."""
        return self.directories.files(key.workspace_id)

    def assign_uids(self, first: int, last: int, open_now: Callable[[], Collection[SessionKey]] = tuple) -> None:
        """From now on, assign each session a user id of its own, from `first` to `last`.

        `open_now` returns, in any thread, the sessions that may have a sandbox: no two of them have the same id.
        """
        self.disk.own_uids = True
        self._uids = Uids(
            first,
            last,
            instance=self.instance,
            owner=self._owner,
            open_now=lambda: {key.workspace_id for key in open_now()},
        )

    def _owner(self, workspace_id: str) -> int | None:
        try:
            return (self.root / "workspaces" / workspace_id / "files").lstat().st_uid
        except OSError:  # it is being made or removed
            return None

    def prepare_files(self, key: SessionKey, uid: int, gid: int, *, own_uid: bool = False) -> StoredFiles:
        """Make the session's files directory, owned by the sandbox's user; blocking. Raises `FileError`.

        That user is `uid` or, with `own_uid` and after `assign_uids`, an id of the session's own. A directory that
        exists may have another owner: see `change_owner`.
        """
        if own_uid and self._uids is not None:
            uid = self._uids.of(key.workspace_id)
        while True:
            commits = self._commits_of(key)
            try:
                files = self._prepare_files(key, uid, gid, commits)
            except OSError as exc:
                if not commits.deleted:
                    raise _failed("The session's files cannot be prepared", exc) from exc
            else:
                if not commits.deleted:
                    return StoredFiles(files, commits, uid, gid)
            # They were deleted at the same moment: make them again.

    def change_owner(self, stored: StoredFiles) -> BlockingWork[None]:
        """Change the owner of all files to the sandbox's user, if it is another; only while nothing runs there.

        Files that are older than the session's disk quota are counted from now on. Raises `FileError`.
        """
        try:
            if os.geteuid() == 0 and stored.root.stat().st_uid != stored.uid:
                yield from change_owner(stored.root, stored.uid, stored.gid)
            yield from self.disk.apply_limits(stored.root.parent.name, stored.root)
        except OSError as exc:
            raise stored.commits.explain(_failed("The session's files cannot be prepared", exc)) from exc

    def _prepare_files(self, key: SessionKey, uid: int, gid: int, commits: Commits) -> Path:
        files = self.files(key)
        home = files.parent
        if not files.is_dir():
            # Made aside and then renamed: nobody sees an unfinished one, and no failure has to be undone.
            with self._aside() as new:
                new.mkdir(mode=0o700)
                _write_label(new, key)
                (new / "files").mkdir(mode=0o755)
                if os.geteuid() == 0:
                    os.chown(new / "files", uid, gid)
                finish(self.disk.apply_limits(home.name, new / "files"))
                self._place(new, key, commits)
        if not (home / _LABEL).exists():
            with commits:  # not into a directory that is being deleted
                _write_label(home, key)
                self._note_stored(key)
        return files

    def _place(self, new: Path, key: SessionKey, commits: Commits) -> None:
        """Rename the new directory, or the part of it that is missing, unless another thread was faster."""
        home = self.files(key).parent
        with commits:
            try:
                new.rename(home)
            except OSError as exc:
                if exc.errno not in {ENOTEMPTY, EEXIST}:
                    raise
                if not (home / "files").exists():
                    (new / "files").rename(home / "files")
            self._note_stored(key)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Path]:
        """Return an unused name beside the workspaces; remove what has this name in the end."""
        path = self.root / "workspaces" / f"{_ASIDE}{secrets.token_hex(8)}"
        self._in_hand.add(path)
        try:
            yield path
            remove_tree(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the error under way matters more
                remove_tree(path)
            raise
        finally:
            self._in_hand.discard(path)

    def write_closed_note(self, key: SessionKey, content: bytes) -> None:
        """Write how the session was closed beside its files, if it has files; blocking. Raises `OSError`."""
        with contextlib.suppress(FileNotFoundError), self._commits_of(key):
            write_atomically(self.files(key).parent / _CLOSED, content)

    def read_closed_note(self, key: SessionKey) -> bytes | None:
        """Return what `write_closed_note` has written, or None; blocking. Raises `OSError`."""
        try:
            with (self.files(key).parent / _CLOSED).open("rb") as file:
                return file.read(_MOST_CLOSED)
        except FileNotFoundError:
            return None

    def remove_closed_note(self, key: SessionKey) -> None:
        """Remove what `write_closed_note` has written. Idempotent; blocking. Raises `OSError`."""
        (self.files(key).parent / _CLOSED).unlink(missing_ok=True)

    def has_files(self, key: SessionKey) -> bool:
        """Whether the session's files directory exists."""
        return self.files(key).is_dir()

    def delete_files(self, key: SessionKey) -> bool:
        """Remove everything that is stored of a session; return whether there was anything. Raises `FileError`.

        Blocking.
        """
        home = self.files(key).parent
        # Renamed aside first: if the server ends meanwhile, nobody finds half of the files.
        try:
            with self._aside() as deleted, self._commits_of(key).deletion():
                home.rename(deleted)
                # Under the lock, because the next session of this name gets a quota of its own.
                self.disk.release(key.workspace_id)
                self._forget_stored(key)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise _failed("The session's files cannot all be deleted", exc) from exc
        return True

    def remove_leftovers(self) -> None:
        """Remove directories that an earlier server had not completely made or deleted; blocking."""
        for path in (self.root / "workspaces").glob(f"{_ASIDE}*"):
            if path in self._in_hand:
                continue
            try:
                remove_tree(path)
            except OSError as exc:
                log.warning("files_left", path=str(path), error=str(exc))

    def stored(self, principal: Principal) -> AbstractSet[str]:
        """Return the ids of a principal's sessions that have files. It changes as they do; copy it to walk it."""
        return self._stored.get(principal, frozenset())

    def _note_stored(self, key: SessionKey) -> None:
        with self._noting:
            self._stored.setdefault(key.principal, set()).add(key.session_id)

    def _forget_stored(self, key: SessionKey) -> None:
        with self._noting:
            stored = self._stored.get(key.principal, set())
            stored.discard(key.session_id)
            if not stored:
                self._stored.pop(key.principal, None)

    def sessions(self) -> list[SessionKey]:
        """Return all sessions that have files; blocking."""
        found = []
        for home in (self.root / "workspaces").iterdir():
            try:
                label = json.loads((home / _LABEL).read_text(encoding="utf-8"))
                key = SessionKey(Principal.of_key(label["principal"]), label["sessionId"])
                # The name of the directory decides which session it is.
                if key.workspace_id == home.name:
                    found.append(key)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it is being made or removed
        return found

    def _commits_of(self, key: SessionKey) -> Commits:
        """Return the lock for changes to the session's present files; thread-safe."""
        with self._sharing:
            commits = self._commits.get(key)
            if commits is None or commits.deleted:
                commits = self._commits[key] = Commits()
            return commits


def _write_label(home: Path, key: SessionKey) -> None:
    write_atomically(home / _LABEL, json.dumps({"principal": key.principal.key, "sessionId": key.session_id}))


def _failed(message: str, exc: OSError) -> FileError:
    if exc.errno in {ENOSPC, EDQUOT}:
        reason = (
            "the disk of the server's data directory is full; delete files that are not needed (delete_file needs no"
        )
        return DiskFull(message, f"{reason} container), or ask the server's operator for more space")
    why = exc.strerror or str(exc)
    return FileError(message, f"{why} in the server's data directory; ask the server's operator to correct that")


def _instance(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        if known := path.read_text(encoding="ascii").strip():
            return known
    instance = secrets.token_hex(4)
    write_atomically(path, instance + "\n")
    return instance


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file of the server's own completely or not at all; blocking. Raises `OSError`."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # another thread may write it, too
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error under way matters more
            part.unlink(missing_ok=True)
        raise
