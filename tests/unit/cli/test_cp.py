"""`kernelbridge cp` in this process: what goes where, and what is left out."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from kernelbridge import Client
from kernelbridge.cli.cp import Place, _make_directory
from kernelbridge.errors import KernelBridgeError
from tests.unit.cli.conftest import Command, Done


@pytest.fixture(scope="module")
def _session(url: str) -> Iterator[None]:
    """Keep the session open: each command would start a sandbox and end it."""
    with Client(url, user_id="shared") as client, client.session("s", linger=600) as session:
        session.sh("true")
        yield


@pytest.fixture
def cp(_session: None, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Copy in a directory with a tree of files; `s:` is a directory of the test's own in the session."""
    (tmp_path / "tree/sub/empty").mkdir(parents=True)
    (tmp_path / "tree/a").write_text("a")
    (tmp_path / "tree/sub/b").write_text("bb")
    monkeypatch.chdir(tmp_path)
    own = f"s:{tmp_path.name}/"

    def copy(*words: str) -> Done:
        return command("cp", "--user", "shared", *(word.replace("s:", own, 1) for word in words))

    return copy


def tree(root: Path) -> dict[str, str | None]:
    """Return what is below a directory, with the content of files."""
    return {str(path.relative_to(root)): path.read_text() if path.is_file() else None for path in root.rglob("*")}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("work:a/b", Place("work", "a/b")),
        ("work:", Place("work", "")),
        ("./work:a", Place(None, "./work:a")),
        ("a/b:c", Place(None, "a/b:c")),
        (":a", Place(None, ":a")),
        ("a", Place(None, "a")),
    ],
)
def test_a_place_is_in_a_session_or_here(text: str, place: Place) -> None:
    assert Place.read(text) == place


@pytest.mark.parametrize("words", [("a", "b"), ("s:a", "s:b")])
def test_one_end_is_in_a_session(cp: Command, words: tuple[str, ...]) -> None:
    done = cp(*words)
    assert (done.code, "One of the two must be SESSION:PATH" in done.err) == (2, True)


def test_a_file_gets_its_own_name_in_a_directory_and_another_where_it_is_given(cp: Command, tmp_path: Path) -> None:
    assert cp("tree/a", "s:").code == 0
    assert cp("tree/a", "s:new/").code == 0
    assert cp("tree/a", "s:new/c").code == 0
    assert cp("tree/sub/b", "s:new").code == 0
    assert cp("-r", "s:", "back").code == 0
    assert tree(tmp_path / "back") == {"a": "a", "new": None, "new/a": "a", "new/b": "bb", "new/c": "a"}


def test_a_fetched_file_gets_its_own_name_in_a_directory(cp: Command, tmp_path: Path) -> None:
    assert cp("tree/a", "s:d/a").code == 0
    (tmp_path / "here").mkdir()
    assert cp("s:d/a", "here").code == 0
    assert cp("s:d/a", "named").code == 0
    assert (tree(tmp_path / "here"), (tmp_path / "named").read_text()) == ({"a": "a"}, "a")


def test_a_directory_is_copied_whole_both_ways(cp: Command, tmp_path: Path) -> None:
    assert cp("-r", "tree", "s:").code == 0
    assert cp("-r", "s:tree", ".").code == 0  # over what is there
    (tmp_path / "in").mkdir()
    assert cp("-r", "s:tree", "in").code == 0
    assert tree(tmp_path / "in/tree") == {"a": "a", "sub": None, "sub/b": "bb", "sub/empty": None}


@pytest.mark.parametrize("words", [("tree", "s:"), ("s:d", "here"), ("s:", "here")])
def test_a_directory_is_only_copied_when_that_is_wanted(cp: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert cp("tree/a", "s:d/a").code == 0
    done = cp(*words)
    assert (done.code, "use -r to copy it" in done.err) == (125, True)
    assert not (tmp_path / "here").exists()


def test_links_are_left_out_of_directories(cp: Command, tmp_path: Path) -> None:
    (tmp_path / "tree/link").symlink_to("a")
    (tmp_path / "tree/leads").symlink_to("sub")
    os.mkfifo(tmp_path / "tree/fifo")
    done = cp("-r", "tree", "s:t")
    assert done.code == 0
    assert {line.split("/")[1] for line in done.err.splitlines()} == {"link is no file", "fifo is no file"}
    assert cp("-r", "s:t", "back").code == 0
    assert set(tree(tmp_path / "back")) == {"a", "sub", "sub/b", "sub/empty"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("none", "s:"), "none cannot be read No such file"),
        (("s:none", "here"), "there is no such file"),
        (("s:a", "no/where"), "cannot be written No such file"),
    ],
)
def test_what_cannot_be_copied_says_why_and_leaves_nothing(
    cp: Command, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    assert cp("tree/a", "s:a").code == 0
    done = cp(*words)
    assert done.code == 125
    assert why in " ".join(done.err.split())
    assert {path.name for path in tmp_path.iterdir()} <= {"tree", "state"}


def test_directories_are_made_below_and_no_link_is_followed(tmp_path: Path) -> None:
    _make_directory(tmp_path / "new", PurePosixPath("a/b"))
    _make_directory(tmp_path / "new", PurePosixPath("a/b"))
    assert (tmp_path / "new/a/b").is_dir()
    (tmp_path / "new/link").symlink_to(tmp_path)
    with pytest.raises(KernelBridgeError, match="is a link"):
        _make_directory(tmp_path / "new", PurePosixPath("link/c"))
    assert not (tmp_path / "c").exists()
