"""The user database of a sandbox, in which its user has a name; pure.

git, ssh, `whoami` and python's `getpass` look it up, and some fail without it.
"""

from __future__ import annotations

from kernelbridge.runtimes.contract import WORKSPACE_PATH
from kernelbridge.runtimes.facts import Facts

_NAME = "sandbox"
_PASSWD_FIELDS, _GROUP_FIELDS = 7, 4


def passwd(facts: Facts, uid: int) -> str:
    """Return an image's /etc/passwd with `uid` for its user, who keeps the name and has HOME in the workspace."""
    rows = [line.split(":") for line in facts.passwd.splitlines()]
    rows = [row for row in rows if len(row) == _PASSWD_FIELDS and row[2] != str(uid)]
    own = next((row for row in rows if row[2] == str(facts.uid)), None)
    rows = [row for row in rows if row[2] != str(facts.uid)]
    name = own[0] if own is not None else _free_name({row[0] for row in rows})
    rows.append([name, "x", str(uid), str(facts.gid), own[4] if own is not None else "", WORKSPACE_PATH, facts.shell])
    return "".join(":".join(row) + "\n" for row in rows)


def group(facts: Facts) -> str:
    """Return an image's /etc/group, with a name for the user's group."""
    rows = [row for line in facts.group.splitlines() if len(row := line.split(":")) == _GROUP_FIELDS]
    if not any(row[2] == str(facts.gid) for row in rows):
        rows.append([_free_name({row[0] for row in rows}), "x", str(facts.gid), ""])
    return "".join(":".join(row) + "\n" for row in rows)


def _free_name(taken: set[str]) -> str:
    return next(
        name for name in (_NAME, *(f"{_NAME}{number}" for number in range(len(taken) + 1))) if name not in taken
    )
