"""Short names of long paths, in a directory that other users of the machine can see."""

import os
from pathlib import Path

import pytest

from kernelbridge.runtimes.local.short_links import ShortLinks

LONG = Path("/", "long" * 40)


def test_links_are_made_in_one_directory_and_removed_with_it(tmp_path: Path) -> None:
    links = ShortLinks(tmp_path / "note")
    name, link = links.shorten(LONG)
    other, _ = links.shorten(LONG)
    assert link is not None
    assert (link.readlink(), Path(name).parent) == (LONG, Path(other).parent)
    links.close()
    assert not link.parent.exists()
    assert links.shorten(Path("/short")) == ("/short", None)


def test_a_directory_that_is_now_another_users_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart of the machine removed may have been made again by anybody."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "note").symlink_to(theirs)
    links = ShortLinks(tmp_path / "note")
    another = os.geteuid() + 1
    monkeypatch.setattr("kernelbridge.runtimes.local.short_links.os.geteuid", lambda: another)
    links.reclaim()
    _, link = links.shorten(LONG)
    monkeypatch.undo()
    assert link is not None
    assert (list(theirs.iterdir()), link.parent == theirs) == ([], False)
    links.close()
