"""The user database of a sandbox, so that programs find a name for the user that they run as; pure.

git, ssh, `whoami` and python's `getpass` ask for one, and some end without it.
"""

from __future__ import annotations

from kernelbridge.runtimes.contract import WORKSPACE_PATH
from kernelbridge.runtimes.facts import Facts

_NAME = "sandbox"
_PASSWD_FIELDS, _GROUP_FIELDS = 7, 4


def passwd(facts: Facts, uid: int) -> str:
    """Give an image's /etc/passwd with `uid` in the place of its own user, which keeps its name; its HOME is ours."""
    rows = [line.split(":") for line in facts.passwd.splitlines()]
    rows = [row for row in rows if len(row) == _PASSWD_FIELDS and row[2] != str(uid)]
    own = next((row for row in rows if row[2] == str(facts.uid)), None)
    rows = [row for row in rows if row[2] != str(facts.uid)]
    name = own[0] if own is not None else _free_name({row[0] for row in rows})
    rows.append([name, "x", str(uid), str(facts.gid), own[4] if own is not None else "", WORKSPACE_PATH, facts.shell])
    return "".join(":".join(row) + "\n" for row in rows)


def group(facts: Facts) -> str:
    """Give an image's /etc/group, with a name for the user's group."""
    rows = [row for line in facts.group.splitlines() if len(row := line.split(":")) == _GROUP_FIELDS]
    if not any(row[2] == str(facts.gid) for row in rows):
        rows.append([_free_name({row[0] for row in rows}), "x", str(facts.gid), ""])
    return "".join(":".join(row) + "\n" for row in rows)


def _free_name(taken: set[str]) -> str:
    return next(
        name for name in (_NAME, *(f"{_NAME}{number}" for number in range(len(taken) + 1))) if name not in taken
    )
