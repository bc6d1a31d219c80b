"""Which server a command uses, what that is sent, and what the environment says of one of its own."""

from pathlib import Path

import pytest

from kernelbridge.cli import own_server, screen
from kernelbridge.cli.detaching import LEFT
from kernelbridge.cli.own_server import USUAL, Found, Own, found_server


async def runs(_url: str) -> bool:
    return True


async def test_a_token_goes_only_to_the_server_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user of the machine can listen at the usual port."""
    monkeypatch.setattr(own_server, "_runs", runs)
    said: list[str] = []
    async with found_server(None, "secret", Own(), said.append) as found:
        assert found == Found(USUAL)
    assert said == [f"Using the server at {USUAL}."]
    async with found_server("ws://named:1", "secret", Own(), said.append) as found:
        assert found == Found("ws://named:1", "secret")
    assert len(said) == 1


def test_of_the_environment_only_limits_and_the_network_hold_for_an_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MEMORY": "2g",
        "EGRESS": "none",
        "KEEP_SANDBOXES": "true",
        "ISOLATION": "false",
        "LISTEN": "unix:/s",
        "METRICS_LISTEN": "localhost:1",
        "AUDIT_LOG": "/log",
        "OCI_RUNTIME": "runsc",
    }.items():
        monkeypatch.setenv(f"KERNELBRIDGE_{name}", value)
    tokens = tmp_path / "tokens"
    settings = own_server._settings(Own(), tmp_path, tokens)
    assert (settings.memory, settings.egress, settings.data_dir) == (2 << 30, "none", tmp_path / "data")
    assert (settings.keep_sandboxes, settings.isolation, settings.listen) == (False, True, None)
    assert (settings.metrics_listen, settings.audit_log, settings.oci_runtime) == (None, None, None)
    assert (settings.host, settings.port, settings.auth, settings.token_file) == ("127.0.0.1", 0, "token", tokens)
    open_settings = own_server._settings(Own(isolation=False), tmp_path, tokens)
    assert (open_settings.isolation, open_settings.runtime) == (False, "local")


def test_messages_say_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen.say("left out: \x1b]52;c;eA==\x07 \x9b6n")
    screen.write_error(screen.errors(), "\x1b[31mname", "why\x1b[2J")
    shown = capsys.readouterr().err
    assert not [text for text in ("\x1b]", "\x07", "\x9b", "\x1b[31mname", "\x1b[2J") if text in shown]
    assert "]52;c;eA==" in shown


@pytest.mark.parametrize("mode", [1000, 1002, 1003, 1004, 1005, 1006, 1015, 1049, 2004])
def test_who_leaves_a_terminal_gets_a_usual_one(mode: int) -> None:
    assert f"\x1b[?{mode}l" in LEFT
    assert all(reset in LEFT for reset in ("\x1b[<u", "\x1b[>4m", "\x1b[?25h", "\x1b[?7h", "\x1b[m"))
