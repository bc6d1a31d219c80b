"""`kernelbridge bench`, `open`, `images` and `completion` in this process, and servers of a command's own."""

import asyncio
import http.client
import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from kernelbridge.cli import own_server, screen
from kernelbridge.cli.bench import _figure
from kernelbridge.cli.left_session import LeftSession
from kernelbridge.cli.state import state_directory
from kernelbridge.images import build
from kernelbridge.images.build import BuiltImage
from tests.unit.cli.conftest import Command
from tests.unit.serving import answers_in_thread


def test_all_figures_are_measured(command: Command) -> None:
    found = json.loads(command("bench", "--user", "ada", "--seconds", "0.1", "--json").out)
    assert (found["runtime"], found["image"], found["ownServer"]) == ("local", None, False)
    assert found["firstResult"]["ms"] > 0
    for name in ("cell", "line"):
        assert 0 < found[name]["p50Ms"] <= found[name]["p95Ms"]
        assert found[name]["samples"] >= 1
    for name in ("output", "upload", "download"):
        assert found[name]["bytes"] > 0
        assert found[name]["bytesPerSecond"] > 0


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({"ms": 12.4}, "12 ms"),
        ({"p50Ms": 1.25, "p95Ms": 2.0}, "p50 1.2 ms, p95 2.0 ms"),
        ({"bytesPerSecond": 2048.0, "leftOutBytes": 0}, "2.0 KiB/s"),
        ({"bytesPerSecond": 2048.0, "leftOutBytes": 1024}, "2.0 KiB/s (1.0 KiB left out)"),
    ],
)
def test_a_figure_is_shown_with_its_unit(found: dict[str, float], shown: str) -> None:
    assert _figure(found) == shown


def page(status: int = 200, kind: str = "text/html") -> object:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text="x", content_type=kind)

    return answer


@pytest.mark.parametrize(
    ("status", "kind", "why"),
    [(404, "text/html", "has no page"), (200, "text/plain", "has no page"), (500, "text/html", "HTTP status 500")],
)
def test_a_server_without_a_page_is_not_opened(command: Command, status: int, kind: str, why: str) -> None:
    with answers_in_thread(page(status, kind)) as address:  # type: ignore[arg-type]
        done = command("open", "--url", address)
    assert (done.code, why in done.err, done.out) == (1, True, "")


def test_the_page_is_opened_with_the_token_which_is_not_shown(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_in_browser(address: str) -> bool:
        where = urlsplit(address)
        connection = http.client.HTTPConnection(where.netloc)
        connection.request("GET", where.path)
        opened.append(connection.getresponse().headers["Location"])
        connection.close()
        return True

    monkeypatch.setattr("webbrowser.open", open_in_browser)
    with answers_in_thread(page()) as address:  # type: ignore[arg-type]
        done = command("open", "work", "--url", address, "--token", "t")
        assert (done.code, done.out) == (0, f"{address}/#session=work\n")
        assert opened == [f"{address}/#token=t&session=work"]
        assert command("open", "--url", address, "--token", "t", "--print").out == f"{address}/#token=t\n"
        monkeypatch.setattr("webbrowser.open", lambda _: False)
        assert "No browser could be started" in command("open", "--url", address).err
    assert command("open", "--url", "http://127.0.0.1:1").code == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_images_are_listed_with_those_that_are_absent(
    command: Command, monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    slim = BuiltImage("slim", "kernelbridge-slim:latest", "sha256:1", 1 << 20)
    monkeypatch.setattr(build, "find_images", lambda _: {slim.reference: slim})
    done = command("images", "list", *(["--json"] if as_json else []))
    assert done.code == 0
    if as_json:
        found = {image["name"]: (image["id"], image["size"]) for image in json.loads(done.out)["images"]}
        assert (found["slim"], found["workspace"]) == (("sha256:1", 1 << 20), (None, None))
    else:
        states = {line.split()[0]: line.split()[1] for line in done.out.splitlines()}
        assert (states["slim"], states["workspace"]) == ("1.0", "absent")


def test_images_are_built_as_the_options_say(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def note(names: tuple[str, ...], **options: object) -> list[BuiltImage]:
        options.pop("progress")
        asked.append((names, options))
        return [BuiltImage("slim", "kernelbridge-slim:latest", "sha256:1", 1 << 20)]

    monkeypatch.setattr(build, "build", note)
    options = ("--base", "b", "--network", "host", "--mirror", "http://m")
    assert command("images", "build", "slim", *options).out == "Built kernelbridge-slim:latest, 1.0 MiB, sha256:1\n"
    assert command("images", "build").code == 0
    given = {"base": "b", "network": "host", "mirror": "http://m"}
    assert asked[0][1].items() >= given.items()  # type: ignore[index]
    assert [each[0] for each in asked] == [("slim",), ("workspace",)]  # type: ignore[index]
    done = command("images", "build", "slim", "none")
    assert (done.code, "There is no image called 'none'" in done.err) == (2, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(command: Command, shell: str) -> None:
    assert "_KERNELBRIDGE_COMPLETE" in command("completion", shell).out
    assert command("completion", "csh").code == 2


def test_without_a_server_a_command_starts_its_own(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KERNELBRIDGE_URL")
    monkeypatch.setenv("KERNELBRIDGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(own_server, "USUAL", "ws://127.0.0.1:1")
    done = command("run", "--no-isolation", "--session", "s", "--keep", "-c", "open('f', 'w').close(); print(1)")
    assert (done.code, done.out) == (0, "1\n")
    assert "WITHOUT isolation: the code has all your rights" in done.err
    assert "The session ends now nevertheless" in done.err
    assert [path.name for path in (tmp_path / "data").rglob("f")] == ["f"]


def test_the_usual_server_is_used_if_it_runs(url: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELBRIDGE_URL")
    usual = url.removesuffix("/ws")
    monkeypatch.setattr(own_server, "USUAL", usual)
    done = command("run", "--user", "ada", "-c", "print(1)")
    assert (done.code, done.out, done.err) == (0, "1\n", f"Using the server at {usual}.\n")


@pytest.mark.parametrize("answer", ["[]", "{}", "nothing"])
def test_something_else_at_the_usual_address_is_no_server(answer: str) -> None:
    async def show(_request: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    with answers_in_thread(show) as address:
        assert not asyncio.run(own_server._runs(address.replace("http", "ws")))


# -- what is kept for a later command --------------------------------------------------


def test_a_note_holds_for_one_session_of_one_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    note = LeftSession("ws://a", "ada", "s")
    assert note.read("t1") is None
    note.write("t1", delete_files=True)
    LeftSession("ws://a", "bob", "s").write("t1", delete_files=False)
    kept, other = note.read("t1"), LeftSession("ws://a", "bob", "s").read("t1")
    assert kept is not None
    assert other is not None
    assert (kept.delete_files, other.delete_files) == (True, False)
    assert note.read("t2") is None
    for different in (LeftSession("ws://b", "ada", "s"), LeftSession("ws://a", "ada", "t")):
        assert different.read("t1") is None
    note.forget()
    note.forget()
    assert note.read("t1") is None
    assert len(list((tmp_path / "kernelbridge/left").iterdir())) == 1


def test_old_and_damaged_notes_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    old, young = LeftSession("ws://a", "ada", "old"), LeftSession("ws://a", "ada", "young")
    for each, age in ((old, 7.1), (young, 6.9)):
        each.write("t", delete_files=True)
        then = time.time() - age * 86_400
        os.utime(each._path, (then, then))
    LeftSession("ws://a", "ada", "new").write("t", delete_files=True)
    assert (old.read("t"), young.read("t") is None) == (None, False)
    young._path.write_text("{")
    assert young.read("t") is None
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/x")
    young.write("t", delete_files=True)
    assert young.read("t") is None


def test_the_directory_is_the_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_directory() == tmp_path / ".local/state/kernelbridge"
    assert state_directory().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "own"))
    assert state_directory() == tmp_path / "own/kernelbridge"


def test_what_a_terminal_would_obey_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert screen.plain("a\tb\n\x1b[31m\x9b\r\x7f") == "a\tb\n\ufffd[31m\ufffd\ufffd\ufffd"
    screen.say("[bold]x[/bold] \x1b")
    assert capsys.readouterr().err == "[bold]x[/bold] \ufffd\n"
    screen.write_error(screen.errors(), "a\x1b", "b\x1b\nc")
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == ["error: a\ufffd", "b\ufffd", "c"]
    assert screen._own("ws://0.0.0.0:1/ws") == screen._own("ws://[::]:1/ws") == "ws://localhost:1/ws"
    assert screen._own("ws://10.0.0.0:1/ws") == "ws://10.0.0.0:1/ws"
