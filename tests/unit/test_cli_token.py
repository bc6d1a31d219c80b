"""`kernelbridge token new`, and servers that do not start without a way to log in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.identity.tokens import hash_of, parse_tokens

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kernelbridge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environ,
    )


def test_a_token_is_printed_and_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    first = run("token", "new", "Ada Lovelace", "--token-file", str(file), "--admin", "--expires", "2031-01-31")
    second = run("token", "new", "eve", KERNELBRIDGE_TOKEN_FILE=str(file))
    assert (first.returncode, first.stderr, second.returncode) == (0, "", 0)
    assert re.fullmatch(r"kb_[A-Za-z0-9_-]{43}\n", first.stdout)
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    token = first.stdout.strip()
    assert text.splitlines()[0] == f"Ada%20Lovelace sha256:{hash_of(token)} admin 2031-01-31T00:00:00Z"
    assert token not in text
    assert len(parse_tokens(text).by_hash) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "Missing argument 'PRINCIPAL'"),
        (("ada",), "There is no token file to add to"),
        (("", "--token-file", "F"), "The principal cannot have this name"),
        (("a\nb", "--token-file", "F"), "The principal cannot have this name"),
        (("ada", "--token-file", "F", "--expires", "soon"), "'soon' is not a time such as"),
        (("ada", "--token-file", "F", "--expires", "2020-01-01"), "2020-01-01 is over already"),
        (("ada", "--token-file", "/nowhere/tokens"), "cannot be written"),
    ],
)
def test_what_makes_no_token(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    done = run("token", "new", *(str(tmp_path / "F") if part == "F" else part for part in arguments))
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "F").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--host", "0.0.0.0"), "without authentication, anybody who reaches this port can run code; add --auth token"),
        (("--host", "::", "--auth", "none"), "is not a loopback address"),
        (("--host", "0.0.0.0", "--auth", "token"), "--auth token needs --token-file"),
        (("--host", "0.0.0.0", "--auth", "proxy"), "--auth proxy needs --trusted-proxy"),
        (("--host", "0.0.0.0", "--auth", "jwt"), "--auth jwt needs"),
        (("--token-file", "/t"), "--token-file means nothing with --auth none"),
        (("--tls-cert", "/absent.pem"), "--tls-cert: '/absent.pem' cannot be used"),
    ],
)
def test_a_server_that_anybody_could_use_does_not_start(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    here = ("--runtime", "local", "--no-isolation", "--port", "0", "--data-dir", str(tmp_path / "data"))
    done = run("serve", *here, *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert not (tmp_path / "data").exists()
