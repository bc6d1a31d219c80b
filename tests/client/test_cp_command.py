"""`kernelbridge cp`: files and directories, in both directions, whole or not at all, and never elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from kernelbridge import Client, Session
from tests.client.person import Person
from tests.client.servers import PATIENCE, ServerProcess, environment

CONTENT = os.urandom(3_000_001)


@pytest.fixture
def session(server: ServerProcess, user: str) -> Iterator[Session]:
    with Client(server.url, user_id=user) as client:
        session = client.session("work")
        yield session
        session.close(delete_files=True)


@pytest.fixture(autouse=True)
def _own_user(user: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_USER", user)
    monkeypatch.setenv("TEST_URL", server.url)


def cp(*words: str | Path, cwd: Path | None = None) -> tuple[int, str]:
    """Give the exit code, and what was said."""
    command = [sys.executable, "-m", "kernelbridge", "cp", "--user", os.environ["TEST_USER"], *map(str, words)]
    environ = environment(KERNELBRIDGE_URL=os.environ["TEST_URL"])
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environ, cwd=cwd)
    assert not done.stdout
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_file_there_and_back(session: Session, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert cp(tmp_path / "a.bin", "work:") == (0, "")
    assert cp(tmp_path / "a.bin", "work:data/b.bin") == (0, "")
    assert cp(tmp_path / "a.bin", "work:data") == (0, "")
    assert sorted(entry.path for entry in session.files.list(recursive=True)) == [
        "a.bin",
        "data",
        "data/a.bin",
        "data/b.bin",
    ]
    (tmp_path / "back").mkdir()
    assert cp("work:data/b.bin", tmp_path / "back") == (0, "")
    assert cp("work:data/b.bin", tmp_path / "c.bin") == (0, "")
    assert (tmp_path / "back" / "b.bin").read_bytes() == (tmp_path / "c.bin").read_bytes() == CONTENT


@pytest.mark.usefixtures("session")
def test_a_directory_there_and_back(tmp_path: Path) -> None:
    source = tmp_path / "project"
    (source / "deep" / ".hidden").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "deep" / "x y.txt").write_text("é")
    (source / "deep" / ".hidden" / "z").write_bytes(b"")
    (source / "link").symlink_to("deep")
    code, said = cp(source, "work:")
    assert (code, "use -r" in said) == (125, True)
    code, said = cp("-r", source, "work:")
    assert code == 0
    assert cp("-r", "work:project", tmp_path / "back")[0] == 0
    assert tree(tmp_path / "back") == tree(source) == {"deep/.hidden/z": b"", "deep/x y.txt": "é".encode()}
    assert (tmp_path / "back" / "empty").is_dir()
    assert cp("-r", "work:", tmp_path / "all")[0] == 0
    assert "project/deep/x y.txt" in tree(tmp_path / "all")


@pytest.mark.usefixtures("session")
def test_progress_is_shown_on_a_terminal_and_removed(server: ServerProcess, user: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with Person(server, "--user", user, str(tmp_path / "a.bin"), "work:data.bin", command="cp") as person:
        assert person.leave() == 0
    screen = pyte.Screen(100, 30)
    pyte.Stream(screen).feed(person.all)
    assert ("data.bin" in person.all, "".join(screen.display).strip()) == (True, "")


def test_links_and_names_of_the_sandbox_lead_nowhere(session: Session, tmp_path: Path) -> None:
    session.files.write("d/f", b"x")
    session.sh("ln -s /etc/passwd d/passwd; ln -s ../.. d/up; mkfifo d/fifo")
    code, said = cp("-r", "work:d", tmp_path / "got")
    assert (code, tree(tmp_path / "got")) == (0, {"f": b"x"})
    assert all(f"left out: d/{name} is no file" in said for name in ("passwd", "up", "fifo"))
    code, said = cp("work:../../etc/passwd", tmp_path / "stolen")
    assert code == 125
    assert not (tmp_path / "stolen").exists()


def test_names_of_the_sandbox_say_nothing_to_the_terminal(session: Session, tmp_path: Path) -> None:
    session.sh(r"mkdir -p d/data[; ln -s x $'d/\e]52;c;eA==\a'; touch d/data[/x]")
    code, said = cp("-r", "work:d", tmp_path / "got")
    assert (code, "\x1b" in said, "\x07" in said) == (0, False, False)
    assert "]52;c;eA==" in said


def test_a_link_in_the_destination_is_not_followed(session: Session, tmp_path: Path) -> None:
    session.files.write("d/sub/f", b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "d").mkdir()
    (tmp_path / "got" / "d" / "sub").symlink_to(tmp_path / "elsewhere")
    code, said = cp("-r", "work:d", tmp_path / "got")
    assert (code, "is a link" in said) == (125, True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_tree_of_more_entries_than_the_server_lists_at_once_is_complete(session: Session, tmp_path: Path) -> None:
    session.sh("mkdir -p d/a d/b && for at in a b; do (cd d/$at && seq 5001 | xargs mkdir); done", check=True)
    session.files.write("d/b/5001/f", b"x")
    assert cp("-r", "work:d", tmp_path / "got") == (0, "")
    assert len(list((tmp_path / "got").rglob("*"))) == 10_005
    assert tree(tmp_path / "got") == {"b/5001/f": b"x"}
    session.sh("cd d/a && seq 5002 10001 | xargs mkdir", check=True)
    code, said = cp("-r", "work:d/a", tmp_path / "more")
    assert (code, "d/a has more than 10,000 entries" in said, (tmp_path / "more").exists()) == (125, True, False)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("absent", "work:"), 125, "absent cannot be read No such file"),
        (("work:absent", "here"), 125, "absent"),
        (("a", "b"), 2, "One of the two must be SESSION:PATH"),
        (("work:a", "work:b"), 2, "One of the two must be SESSION:PATH"),
        (("work:a", "no/such/directory"), 125, "cannot be written"),
    ],
)
def test_a_failure_leaves_nothing(
    session: Session, tmp_path: Path, words: tuple[str, str], code: int, said: str
) -> None:
    session.files.write("a", b"x")
    found, errors = cp(*words, cwd=tmp_path)
    assert (found, said in " ".join(errors.split())) == (code, True)
    assert list(tmp_path.iterdir()) == []
