"""The Host and Origin check: pages of other sites never reach a loopback server."""

import pytest

from kernelbridge.server.access import refusal

HOST = ["localhost:8001"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8001", "LOCALHOST:8001", "127.0.0.1:8001", "127.8.9.1", "[::1]:8001"]
)
def test_loopback_hosts_are_served(host: str) -> None:
    assert refusal([host], [], ()) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",  # DNS rebinding
        "localhost.evil.example:8001",
        "evil-localhost:8001",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "localhost:8001/x",
        "localhost:99999",
        "localhost.",
        "0.0.0.0:8001",
        "192.168.1.5:8001",
        "[::ffff:10.0.0.1]",
        "",
        " localhost",
    ],
)
def test_other_hosts_are_refused(host: str) -> None:
    assert refusal([host], [], ()) is not None


def test_a_request_needs_exactly_one_host_and_at_most_one_origin() -> None:
    assert refusal([], [], ()) is not None
    assert refusal(["localhost", "localhost"], [], ()) is not None
    assert refusal(HOST, ["http://localhost", "http://localhost"], ()) is not None


@pytest.mark.parametrize(
    "origin", ["http://localhost:8001", "http://localhost:3000", "https://127.0.0.1", "http://[::1]:80"]
)
def test_loopback_origins_are_served(origin: str) -> None:
    assert refusal(HOST, [origin], ()) is None


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "file://",
        "http://localhost.evil.example",
        "http://evil.example#localhost",
        "http://evil.example/localhost",
        "http://localhost@evil.example",
        "http://evil.example:8001",
        "http://127.0.0.1.evil.example",
        "http://evillocalhost",
        "ftp://localhost",
        "http://localhost:8001/",
        "chrome-extension://localhost",
        "http://localhost https://evil.example",
    ],
)
def test_other_origins_are_refused(origin: str) -> None:
    assert refusal(HOST, [origin], ("https://app.example",)) is not None


def test_an_allowed_origin_is_served_also_behind_a_proxy_that_passes_its_host_on() -> None:
    allowed = ("https://app.example", "http://dev.example:3000")
    assert refusal(HOST, ["https://app.example"], allowed) is None
    assert refusal(["app.example"], ["https://app.example"], allowed) is None
    assert refusal(["dev.example:3000"], [], allowed) is None
    assert refusal(["dev.example"], [], allowed) is not None
    assert refusal(HOST, ["http://app.example"], allowed) is not None
    assert refusal(HOST, ["https://app.example.evil.example"], allowed) is not None
