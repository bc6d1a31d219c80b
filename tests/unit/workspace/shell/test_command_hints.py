"""Programs that need a whole terminal, or a network, are recognised by their output."""

import pytest

from kernelbridge.workspace.hints import BUS_HINT, NETWORK_HINT, PROCESS_HINT, TERMINAL_HINT, command_hint
from kernelbridge.workspace.shell.screen_watch import ScreenWatch


def say(output: str, exit_code: int | None, *, full_screen: bool) -> str | None:
    return command_hint(output, "", exit_code, full_screen=full_screen, stalled=False)


@pytest.mark.parametrize(
    ("text", "paints", "alternate"),
    [
        ("plain", False, False),
        ("\x1b[31mred\x1b[0m\x1b[2K\x1b[1A\x1b[10D\x1b[H\x1b[2J", False, False),
        ("\x1b7\x1b[0;23r\x1b8\x1b[24;0f[ 50%]\x1b8", False, False),
        ("\x1b[2J\x1b[1;1H\x1b[0;0H\x1b[01;1Hcleared", False, False),
        ("\x1b[24;1H~", True, False),
        ("\x1b[1;10H~", True, False),
        ("\x1b[11;1H~", True, False),
        ("\x1b[?1049h", True, True),
        ("\x1b[?1;1049h", True, True),
        ("\x1b[?47h\x1b[?47l", True, False),
        ("\x1b[?1047h", True, True),
        ("\x1b[?2004h", False, False),
    ],
)
def test_a_painted_screen_is_noticed_however_it_comes_in_pieces(text: str, paints: bool, alternate: bool) -> None:  # noqa: FBT001 - as in the list
    whole = ScreenWatch()
    whole.receive(text)
    assert (whole.paints, whole.alternate) == (paints, alternate)
    pieces = ScreenWatch()
    for char in text + "plain" * 10:
        pieces.receive(char)
    assert (pieces.paints, pieces.alternate) == (paints, alternate)


@pytest.mark.parametrize(
    "said",
    [
        "WARNING: terminal is not fully functional\nPress RETURN to continue ",
        "top: failed tty get\n",
        "Error opening terminal: dumb.\n",
        "open terminal failed: not a terminal\n",
        "Vim: Warning: Input is not from a terminal\n",
        "bash: /dev/tty: No such device or address\n",
        "sudo: a terminal is required to read the password\n",
        "the input device is not a TTY\n",
    ],
)
def test_a_refusal_is_one_only_if_the_program_failed(said: str) -> None:
    assert say(said, 1, full_screen=False) == TERMINAL_HINT
    assert say(said, 0, full_screen=False) is None
    assert say(said, None, full_screen=False) is None
    assert say(said + "x" * 10_000, 1, full_screen=False) is None


@pytest.mark.parametrize(
    "said",
    [
        "curl: (6) Could not resolve host: example.org\n",
        "fatal: unable to access 'https://example.org/x/': Could not resolve host: example.org\n",
        "ping: example.org: Temporary failure in name resolution\n",
        "wget: unable to resolve host address 'example.org'\n",
        "connect: Network is unreachable\n",
    ],
)
def test_a_program_that_misses_the_network_is_told_that_there_is_none(said: str) -> None:
    assert say(said, 1, full_screen=False) == NETWORK_HINT
    assert say(said, 0, full_screen=False) is None


def test_who_paints_is_hinted_at_however_it_ended() -> None:
    assert say("", 0, full_screen=True) == TERMINAL_HINT
    assert say("", None, full_screen=True) == TERMINAL_HINT


def test_other_failures_are_none() -> None:
    assert say("grep: x: No such file or directory\nnot a tty\n", 1, full_screen=False) is None
    assert say("ERROR: No matching distribution (from versions: 1.0, 2.0)\n", 1, full_screen=False) is None


@pytest.mark.parametrize(
    "said",
    [
        "bash: fork: retry: Resource temporarily unavailable\nbash: fork: Resource temporarily unavailable\n",
        "sh: 1: Cannot fork\n",
        "sh: can't fork: Resource temporarily unavailable\n",
        "RuntimeError: can't start new thread\n",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable\n",
        "OpenBLAS blas_thread_init: pthread_create failed for thread 3 of 4: Resource temporarily unavailable\n",
        "error: cannot fork() for fetch: Resource temporarily unavailable\n",
    ],
)
def test_what_fails_for_want_of_processes_is_told_what_to_do(said: str) -> None:
    assert say(said, 1, full_screen=False) == PROCESS_HINT
    assert say(said, 0, full_screen=False) is None
    assert command_hint("", said, 0, full_screen=False, stalled=False) == PROCESS_HINT
    assert command_hint("", "", None, full_screen=False, stalled=True) == PROCESS_HINT
    assert say("cat: x: Resource temporarily unavailable\n", 1, full_screen=False) is None


def test_a_bus_error_is_told_with_its_cause() -> None:
    assert say("Bus error\n", 128 + 7, full_screen=False) == BUS_HINT
    assert "/dev/shm" in BUS_HINT
    assert say("", 128 + 11, full_screen=False) is None
