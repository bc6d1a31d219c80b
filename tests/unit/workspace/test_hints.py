"""What cells are told to do instead: the same as commands, and nothing where nothing failed."""

import pytest

from kernelbridge.jupyter.cell import Outcome
from kernelbridge.workspace.hints import NETWORK_HINT, PROCESS_HINT, TERMINAL_HINT, cell_hint, failure_hint

PROGRAMS = [
    "curl: (6) Could not resolve host: example.org\n",
    "Cloning into 'x'...\nfatal: unable to access 'https://example.org/x/': Could not resolve host: example.org\n",
    "ping: example.org: Temporary failure in name resolution\n",
    "ssh: Could not resolve hostname example.org: Name or service not known\n",
    "wget: unable to resolve host address 'example.org'\n",
    "wget: bad address 'example.org'\n",
    "Err:1 http://deb.debian.org/debian trixie InRelease\n  Temporary failure resolving 'deb.debian.org'\n",
    "W: Failed to fetch http://deb.debian.org/debian/dists/x  Temporary failure resolving 'deb.debian.org'\n",
    "E: Failed to fetch http://deb.debian.org/x  Could not resolve 'deb.debian.org'\n",
    "npm error code EAI_AGAIN\nnpm error errno EAI_AGAIN\n",
    "npm ERR! request to https://registry.npmjs.org/x failed, reason: getaddrinfo ENOTFOUND registry.npmjs.org\n",
    "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://conda.anaconda.org/main/linux-64/repodata.json>\n",
    "error: Failed to fetch: `https://pypi.org/simple/x/`\n  Caused by: dns error: failed to lookup address\n",
    "  x Failed to fetch\n  ╰─▶ dns error: failed to lookup address information: Temporary failure\n",
    'go: x@v1: Get "https://proxy.golang.org/x": dial tcp: lookup proxy.golang.org: no such host\n',
    "[nltk_data] Error loading punkt: <urlopen error [Errno -3] Temporary failure in name resolution>\n",
    "connect: Network is unreachable\n",
]


@pytest.mark.parametrize("said", PROGRAMS)
def test_a_program_that_misses_the_network_is_known_in_a_cell_that_succeeds(said: str) -> None:
    assert failure_hint(said) == NETWORK_HINT
    assert cell_hint(Outcome(success=True, output=f"before\n{said}after\n")) == NETWORK_HINT
    assert cell_hint(Outcome(success=True, output=said + "x" * 10_000)) is None


@pytest.mark.parametrize(
    "error",
    [
        "ConnectionError: HTTPSConnectionPool(host='x', port=443): ([Errno -3] Temporary failure in name resolution)",
        "URLError: <urlopen error [Errno -3] Temporary failure in name resolution>",
        "gaierror: [Errno -2] Name or service not known",
        "gaierror: [Errno -5] No address associated with hostname",
        "ConnectError: [Errno -3] Temporary failure in name resolution",
        "OSError: [Errno 101] Network is unreachable",
    ],
)
def test_code_that_misses_the_network_is_known_by_its_error(error: str) -> None:
    assert cell_hint(Outcome(success=False, error=error)) == NETWORK_HINT
    hidden = "x\n" * 50_000
    chained = Outcome(
        success=False, error="RuntimeError: no model", traceback=f"{error}\n{hidden}RuntimeError: no model"
    )
    assert cell_hint(chained) == NETWORK_HINT


def test_the_other_reasons_are_told_too() -> None:
    assert cell_hint(Outcome(success=False, error="RuntimeError: can't start new thread")) == PROCESS_HINT
    said = "Error opening terminal: dumb.\n"
    failed = Outcome(success=False, output=said, error="CalledProcessError: Command 'nano' returned 1")
    assert cell_hint(failed) == TERMINAL_HINT
    assert cell_hint(Outcome(success=False, output=PROGRAMS[0], error="CalledProcessError: pip")) == NETWORK_HINT


@pytest.mark.parametrize(
    "said",
    [
        "Vim: Warning: Input is not from a terminal\nVim: Error reading input, exiting...\nVim: Finished.\n",
        "\n" * 20 + "Vim: Error reading input, exiting...\nVim: Finished.\n",
    ],
)
def test_a_program_that_misses_its_terminal_is_known_by_the_last_that_it_says(said: str) -> None:
    assert failure_hint(said) == TERMINAL_HINT


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(success=True),
        Outcome(success=True, output="42\n"),
        Outcome(success=True, output="Temporary failure in name resolution\n"),
        Outcome(success=True, output="Could not resolve host: that is what curl says\n"),
        Outcome(success=True, output="the address, as is not known, cannot be resolved\n"),
        Outcome(success=True, output="ERROR: No matching distribution found for x (from versions: 1.0)\n"),
        Outcome(success=True, output="RuntimeError: can't start new thread\n"),
        Outcome(success=False, error="ZeroDivisionError: division by zero"),
        Outcome(success=False, error="ConnectionRefusedError: [Errno 111] Connection refused"),
        Outcome(success=False, output=PROGRAMS[0], error="KeyboardInterrupt", cause="interrupted"),
    ],
)
def test_where_nothing_of_that_failed_there_is_no_hint(outcome: Outcome) -> None:
    assert cell_hint(outcome) is None
