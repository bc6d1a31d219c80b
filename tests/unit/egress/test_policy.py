"""What the policy allows, without a network: names are resolved by the test."""

from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from kernelbridge.egress.hosts import Address
from kernelbridge.egress.policy import (
    Admitted,
    Denied,
    Level,
    Policies,
    Reason,
    admit,
    check_server_name,
    read_network,
    read_rule,
)

PUBLIC = "93.184.216.34"


class Names:
    """A resolver that knows every name, and counts what it is asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = [ip_address(address) for address in addresses or (PUBLIC,)]
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        return self.addresses


def policies(level: Level = "packages", *allowed: str, networks: Sequence[str] = (), port: int = 8001) -> Policies:
    return Policies(
        level,
        tuple(map(read_rule, allowed)),
        networks=tuple(map(read_network, networks)),
        own_ports=frozenset({port}),
    )


async def ask(
    authority: str,
    *,
    among: Policies | None = None,
    asked: Level | None = None,
    plain: bool = False,
    names: Names | None = None,
    own: str = "",
) -> Admitted | str:
    """Return what is admitted, or the reason why not."""
    resolver = names or Names()
    policy = (among or policies()).of_session(asked)
    try:
        return await admit(policy, authority, plain=plain, resolve=resolver, is_own=lambda each: str(each) == own)
    except Denied as denied:
        return denied.reason


def reached(host: str, port: int, *addresses: str) -> Admitted:
    return Admitted(host, port, tuple(ip_address(each) for each in addresses or (PUBLIC,)))


async def test_packages_are_two_hosts_with_tls() -> None:
    assert await ask("pypi.org:443") == reached("pypi.org", 443)
    assert await ask("FILES.PythonHosted.org.:443") == reached("files.pythonhosted.org", 443)
    for authority, reason in {
        "upload.pypi.org:443": "host",
        "example.org:443": "host",
        "pypi.org.evil.example:443": "host",
        "notpypi.org:443": "host",
        "pypi.org:80": "port",
        "pypi.org:8443": "port",
        "pypi.org:8001": "own_port",
        "pypi.org:0": "bad_request",
        "pypi.org:99999": "bad_request",
        "pypi.org": "bad_request",
        "93.184.216.34:443": "ip_literal",
        "[2606:2800:220:1::1]:443": "ip_literal",
    }.items():
        assert await ask(authority) == reason, authority
    assert await ask("pypi.org", plain=True) == "plain_http"


async def test_only_an_allowed_name_is_resolved_and_once() -> None:
    names = Names()
    for authority in ("example.org:443", "pypi.org:80", "pypi.org:8001", "127.0.0.1:443", "127.1:443", "a b:443"):
        await ask(authority, names=names)
    assert names.asked == []
    assert await ask("PyPI.org.:443", names=names) == reached("pypi.org", 443)
    assert names.asked == ["pypi.org"]


async def test_what_is_dialled_is_what_was_checked() -> None:
    both = Names(PUBLIC, "2606:2800:220:1::1")
    assert await ask("pypi.org:443", names=both) == reached("pypi.org", 443, PUBLIC, "2606:2800:220:1::1")


@pytest.mark.parametrize(
    "bad", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "::1", "::ffff:10.0.0.1", "fd00::1"]
)
async def test_an_allowed_name_that_leads_inside_is_refused(bad: str) -> None:
    assert await ask("pypi.org:443", names=Names(bad)) == "private_address"
    assert await ask("pypi.org:443", names=Names(PUBLIC, bad)) == "private_address"


async def test_the_machine_itself_is_refused_at_its_public_address() -> None:
    assert await ask("pypi.org:443", own=PUBLIC) == "own_address"


async def test_a_private_network_needs_to_be_named() -> None:
    among = policies("none", "index.corp:8443", networks=["10.0.0.0/8", "fd00::/8"])
    for inside in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::7"):
        names = Names(inside)
        assert await ask("index.corp:8443", among=among, names=names) == reached("index.corp", 8443, inside)
    assert await ask("index.corp:8443", among=among, names=Names("192.168.0.1")) == "private_address"
    assert await ask("other.corp:8443", among=among, names=Names("10.1.2.3")) == "host"
    assert await ask("index.corp:8001", among=among, names=Names("10.1.2.3")) == "own_port"


async def test_a_network_is_not_the_server_s_own_machine_unless_that_is_named_alone() -> None:
    for inside in ("10.1.2.3", "::ffff:10.1.2.3"):
        names = Names(inside)
        for networks, found in (
            (["10.0.0.0/8"], "own_address"),
            (["10.0.0.0/8", "10.1.2.3/32"], reached("index.corp", 443, inside)),
        ):
            among = policies("none", "index.corp", networks=networks)
            assert await ask("index.corp:443", among=among, names=names, own="10.1.2.3") == found


async def test_a_network_counts_for_hosts_that_the_operator_has_named() -> None:
    among = policies("open", "index.corp:8443", "http://*.lab.corp:80", networks=["10.0.0.0/8", "192.168.0.7/32"])
    for inside in ("10.1.2.3", "192.168.0.7"):
        names = Names(inside)
        assert await ask("index.corp:8443", among=among, names=names) == reached("index.corp", 8443, inside)
        assert await ask("pypi.org:443", among=among, names=names) == reached("pypi.org", 443, inside)
        assert await ask("a.lab.corp", among=among, names=names, plain=True) == reached("a.lab.corp", 80, inside)
        for authority in ("evil.example:443", "index.corp:443", "a.lab.corp:443"):
            assert await ask(authority, among=among, names=names) == "private_address", authority


async def test_allowed_hosts_add_to_every_level() -> None:
    for level in ("none", "packages", "open"):
        among = policies(level, "api.example.org", "db.example.org:5433", "*.cdn.example.org", "http://apt.example.org")
        assert await ask("api.example.org:443", among=among) == reached("api.example.org", 443)
        assert await ask("db.example.org:5433", among=among) == reached("db.example.org", 5433)
        assert await ask("a.b.cdn.example.org:443", among=among) == reached("a.b.cdn.example.org", 443)
        assert await ask("apt.example.org", among=among, plain=True) == reached("apt.example.org", 80)
        assert await ask("api.example.org:444", among=among) == "port"
    assert await ask("cdn.example.org:443", among=policies("none", "*.cdn.example.org")) == "host"
    assert await ask("pypi.org:443", among=policies("none", "api.example.org")) == "host"
    assert await ask("apt.example.org", among=policies("none", "apt.example.org"), plain=True) == "plain_http"
    assert await ask("apt.example.org:443", among=policies("none", "http://apt.example.org")) == "port"


async def test_an_address_may_be_allowed_as_it_is() -> None:
    among = policies("none", "http://10.0.0.5:8080", "[2606:2800:220:1::1]", networks=["10.0.0.0/8"])
    assert await ask("10.0.0.5:8080", among=among, plain=True) == reached("10.0.0.5", 8080, "10.0.0.5")
    assert await ask("[2606:2800:220:1:0::1]:443", among=among) == reached(
        "2606:2800:220:1::1", 443, "2606:2800:220:1::1"
    )
    without = policies("none", "http://10.0.0.5:8080")
    assert await ask("10.0.0.5:8080", among=without, plain=True) == "private_address"


async def test_open_is_every_public_host_at_the_usual_ports() -> None:
    among = policies("open")
    assert await ask("example.org:443", among=among) == reached("example.org", 443)
    assert await ask("example.org", among=among, plain=True) == reached("example.org", 80)
    assert await ask("pypi.org:443", among=among) == reached("pypi.org", 443)
    for authority in ("example.org:22", "example.org:25", "example.org:8443", "example.org:80"):
        assert await ask(authority, among=among) == "port"
    assert await ask("example.org:443", among=among, plain=True) == "port"
    assert await ask("93.184.216.34:443", among=among) == "ip_literal"
    assert await ask("example.org:443", among=among, names=Names("192.168.1.1")) == "private_address"


async def test_a_session_may_ask_for_less_and_never_for_more() -> None:
    among = policies("packages", "api.example.org")
    assert await ask("api.example.org:443", among=among, asked="none") == "host"
    assert await ask("pypi.org:443", among=among, asked="none") == "host"
    assert await ask("pypi.org:443", among=among, asked="open") == reached("pypi.org", 443)
    assert await ask("example.org:443", among=among, asked="open") == "host"
    assert await ask("example.org:443", among=policies("open"), asked="packages") == "host"
    assert await ask("pypi.org:443", among=policies("open"), asked="packages") == reached("pypi.org", 443)


@pytest.mark.parametrize(
    ("name", "same"),
    [("pypi.org", True), ("PYPI.ORG.", True), ("evil.org", False), (None, False), ("", False), ("pypi.org\0", False)],
)
def test_the_name_in_tls_must_be_the_host(name: str | None, same: bool) -> None:  # noqa: FBT001
    policy = policies().of_session(None)
    if same:
        check_server_name(policy, reached("pypi.org", 443), name)
    else:
        with pytest.raises(Denied, match="TLS connection is"):
            check_server_name(policy, reached("pypi.org", 443), name)


def test_an_address_has_no_name_in_tls() -> None:
    policy = policies().of_session(None)
    check_server_name(policy, reached("93.184.216.34", 443), None)
    with pytest.raises(Denied):
        check_server_name(policy, reached("93.184.216.34", 443), "pypi.org")


@pytest.mark.parametrize(
    "text",
    ["*", "*.", "*.org", "a.*.org", "*.1.2.3", "ftp://a.org", "a.org/path", "a.org:0", "http://u@a.org", "", "é.org"],
)
def test_what_cannot_be_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_rule(text)


def test_a_rule_is_written_as_it_is_read() -> None:
    for text in ("pypi.org:443", "*.example.org:8443", "http://apt.example.org:80", "[::1]:443"):
        assert str(read_rule(text)) == text


def test_a_refusal_names_the_policy_and_says_that_there_is_no_way_round() -> None:
    denied = policies().of_session(None).denied("host", "example.org", 443, "so")
    assert denied.status == 403
    assert "(packages)" in str(denied)
    assert "example.org:443" in str(denied)
    assert "elsewhere, does not help" in str(denied)
    assert "--egress-allow)" in str(denied)
    assert "--egress-allow-net" in str(policies().of_session(None).denied("private_address", "a.example", 443, "so"))


@pytest.mark.parametrize(
    ("reason", "helps"), [("plain_http", "Use https."), ("ip_literal", "Use the name"), ("bad_request", "so.")]
)
def test_what_the_program_can_do_itself_is_said(reason: Reason, helps: str) -> None:
    denied = str(policies().of_session(None).denied(reason, "example.org", 80, "so"))
    assert helps in denied
    assert "does not help" not in denied


def test_an_operator_sees_what_is_allowed() -> None:
    assert str(policies("none")) == "none: no host"
    assert (
        str(policies("packages", "*.a.example"))
        == "packages: *.a.example:443, pypi.org:443, files.pythonhosted.org:443"
    )
    assert str(policies("open")).startswith("open: every public host, pypi.org:443")
