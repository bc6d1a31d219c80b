"""The canonical form of a host, and which addresses are public."""

from ipaddress import ip_address

import pytest

from kernelbridge.egress.hosts import BadHostError, canonical_host, not_public, split_authority


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("pypi.org", "pypi.org"),
        ("PyPI.org", "pypi.org"),
        ("pypi.org.", "pypi.org"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("a" * 63 + ".org", "a" * 63 + ".org"),
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1.", "192.0.2.1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("[2001:0db8:0:0:0:0:0:1]", "2001:db8::1"),
    ],
)
def test_a_host_has_one_form(written: str, canonical: str) -> None:
    assert canonical_host(written) == canonical


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            ".",
            "..",
            "pypi.org..",
            "pypi..org",
            ".pypi.org",
            "-a.org",
            "a-.org",
            "a" * 64 + ".org",
            "a." * 127 + "aa",
        ),
        *(
            "pypi.org\0",
            "pypi.org\n",
            "pypi.org ",
            "pypi\t.org",
            "user@pypi.org",
            "pypi.org#",
            "pypi%2eorg",
            "a\\b.org",
        ),
        *("pypi\u200b.org", "pypi\u3002org", "pyp\u0131.org", "\u212aernel.org", "bücher.example", "pypi.org,evil.org"),
        *(
            "127.1",
            "0x7f.0.0.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.01",
            "256.0.0.1",
            "1.2.3.4.5",
            "0x",
        ),
        *("[::1%eth0]", "[fe80::1%25lo]", "[::1", "::1", "[127.0.0.1]", "[]", "[pypi.org]", "[::g]"),
    ],
)
def test_what_is_no_host_or_has_another_form_is_refused(written: str) -> None:
    with pytest.raises(BadHostError):
        canonical_host(written)


@pytest.mark.parametrize(
    "authority",
    [
        *(
            "pypi.org:0",
            "pypi.org:65536",
            "pypi.org:99999",
            "pypi.org:",
            "pypi.org:-1",
            "pypi.org:0443",
            "pypi.org:4 4",
        ),
        *("pypi.org:https", "pypi.org:443:443", "pypi.org:٤٤٣", "user@pypi.org:443", "pypi.org", "::1:443", "[::1]443"),
    ],
)
def test_an_authority_has_a_host_and_a_port(authority: str) -> None:
    with pytest.raises(BadHostError):
        split_authority(authority)


def test_a_port_may_be_left_out_where_there_is_a_usual_one() -> None:
    assert split_authority("PyPI.org.:443") == ("pypi.org", 443)
    assert split_authority("[::1]:8080") == ("::1", 8080)
    assert split_authority("pypi.org", 80) == ("pypi.org", 80)


PUBLIC = ("93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1")
NOT_PUBLIC = {
    "loopback": ("127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    "private": (
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd00:ec2::254", "::ffff:10.0.0.1"),
        *("64:ff9b:1::808:808", "2002:a00:1::1", "64:ff9b::a00:1", "::10.0.0.1"),
    ),
    "link-local": ("169.254.169.254", "fe80::1", "fe80::1%lo", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    "carrier-grade NAT": ("100.64.0.1", "100.100.100.200", "100.127.255.255", "::ffff:6440:1"),
    "metadata": ("168.63.129.16", "::ffff:168.63.129.16"),
    "unspecified": ("0.0.0.0", "0.1.2.3", "::", "::ffff:0:0"),
    "multicast": ("224.0.0.1", "239.255.255.255", "ff02::1"),
    "reserved": (
        *("240.0.0.1", "255.255.255.255", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.80"),
        *("192.88.99.1", "2001::1", "2001:db8::1", "3fff::1", "100::1", "4000::1", "64:ff9b::c000:201"),
    ),
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert not_public(ip_address(address)) is None


@pytest.mark.parametrize(("kind", "address"), [(kind, each) for kind, some in NOT_PUBLIC.items() for each in some])
def test_addresses_that_are_not_public(kind: str, address: str) -> None:
    assert not_public(ip_address(address)) == kind


def test_an_address_of_one_interface_is_not_public() -> None:
    assert not_public(ip_address("2600::1%eth0")) == "link-local"
    assert not_public(ip_address("2600::1")) is None


@pytest.mark.parametrize(("text", "port"), [("a.org:1", 1), ("a.org:65535", 65535), ("a.org", 7)])
def test_a_port_is_read(text: str, port: int) -> None:
    assert split_authority(text, 7) == ("a.org", port)


@pytest.mark.parametrize("text", ["a.org:65536", "a.org:", "a.org:x", "a.org:-1", "a.org:123456"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(BadHostError):
        split_authority(text, 7)
