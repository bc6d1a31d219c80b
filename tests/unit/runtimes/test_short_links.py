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


def test_what_was_adopted_or_left_stays_and_the_rest_is_reclaimed(tmp_path: Path) -> None:
    first = ShortLinks(tmp_path / "note")
    links = [first.shorten(LONG)[1] for _ in range(3)]
    for link in links:
        assert link is not None
        first.leave(link)
    first.close()
    kept, lost, left = links
    assert kept is not None
    assert lost is not None
    assert left is not None
    second = ShortLinks(tmp_path / "note")
    second.adopt(kept)
    second.adopt(left)
    second.reclaim()
    assert (kept.is_symlink(), lost.is_symlink()) == (True, False)
    second.leave(left)
    second.close()
    assert (kept.is_symlink(), left.is_symlink()) == (False, True)
    second.release(left)
    second.release(left)
    second.close()
    assert not (tmp_path / "note").is_symlink()


def test_a_name_is_short_up_to_a_length(tmp_path: Path) -> None:
    links = ShortLinks(tmp_path / "note")
    assert links.shorten(Path("/" + "x" * 59))[1] is None
    assert links.shorten(Path("/" + "x" * 60))[1] is not None
    links.close()
