"""What is believed of a proxy, and of whom."""

from ipaddress import ip_network

import pytest

from kernelbridge.identity.principal import Principal, Refused
from kernelbridge.identity.proxied import (
    UNIX,
    Malformed,
    bucket_of,
    client_address,
    is_trusted,
    parse_peer,
    proxied_name,
)

NAME = "X-Forwarded-User"
TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize("headers", [[(NAME, "ada")], [("x-forwarded-user", " ada ")], [("A", "b"), (NAME, "ada")]])
def test_the_header_names_the_user(headers: list[tuple[str, str]]) -> None:
    assert proxied_name(headers, NAME) == Principal("ada")


def test_a_request_without_the_header_is_refused() -> None:
    assert isinstance(proxied_name([("X-Forwarded-Users", "ada")], NAME), Refused)


@pytest.mark.parametrize(
    "headers",
    [
        [(NAME, "ada"), (NAME, "ada")],
        [(NAME, "ada"), ("x-forwarded-user", "eve")],
        [(NAME, "")],
        [(NAME, "  ")],
        [(NAME, "ada, eve")],
        [(NAME, "ad\x00a")],
        [(NAME, "ad\udce9")],
        [(NAME, "x" * 257)],
        [(NAME, "ada"), ("X_Forwarded_User", "eve")],
        [("X-Forwarded_User", "eve")],
        [("x_forwarded-user", "eve"), (NAME, "ada")],
    ],
)
def test_a_header_that_could_be_a_clients_is_malformed(headers: list[tuple[str, str]]) -> None:
    found = proxied_name(headers, NAME)
    assert isinstance(found, Malformed)
    assert "eve" not in found.reason


def test_peers() -> None:
    assert is_trusted("10.1.2.3", TRUSTED)
    assert is_trusted("::ffff:10.1.2.3", TRUSTED)
    assert is_trusted("fd00::1", TRUSTED)
    for peer in ("11.0.0.1", "::ffff:11.0.0.1", "fe80::1", UNIX, "", "10.1.2.3.evil.example"):
        assert not is_trusted(peer, TRUSTED)
    assert is_trusted(UNIX, (UNIX, *TRUSTED))
    assert not is_trusted("", (UNIX,))
    assert parse_peer("unix") == UNIX
    assert parse_peer("127.0.0.1") == ip_network("127.0.0.1/32")
    for wrong in ("localhost", "10.0.0.1/8", "", "*"):
        with pytest.raises(ValueError, match=r".*"):
            parse_peer(wrong)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.7", ["203.0.113.9"], "192.0.2.7"),  # the peer is no proxy of ours
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.9, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        (UNIX, ["203.0.113.9"], UNIX),
    ],
)
def test_the_address_of_a_client_is_found_from_the_right(peer: str, forwarded: list[str], expected: str) -> None:
    assert client_address(peer, forwarded, TRUSTED) == expected


def test_a_proxy_on_the_unix_socket_says_where_its_clients_are() -> None:
    assert client_address(UNIX, ["203.0.113.9"], (UNIX,)) == "203.0.113.9"


def test_a_network_of_ipv6_is_one_client() -> None:
    assert bucket_of("2001:db8::1") == bucket_of("2001:db8::ffff:1") != bucket_of("2001:db8:0:1::1")
    assert bucket_of("192.0.2.1") == "192.0.2.1" != bucket_of("192.0.2.2")
    assert bucket_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert bucket_of(UNIX) == UNIX


def test_no_more_than_32_addresses_are_looked_at() -> None:
    hops = [f"10.0.0.{number}" for number in range(40)]
    assert client_address("10.1.0.0", ["1.2.3.4", *hops[:31]], TRUSTED) == "1.2.3.4"
    assert client_address("10.1.0.0", ["1.2.3.4", *hops], TRUSTED) == "10.0.0.8"
