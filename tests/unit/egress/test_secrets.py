"""The setting of a secret, and its file."""

from pathlib import Path

import pytest

from kernelbridge.egress.secrets import LONGEST, SecretRule, read_secret, read_secret_rule


def test_a_setting_names_a_host_a_header_and_a_file() -> None:
    rule = read_secret_rule("API.Example.org.=Authorization:/etc/k/key:1=2")
    assert rule == SecretRule("api.example.org", 443, "Authorization", Path("/etc/k/key:1=2"))
    assert (rule.allows.host, rule.allows.port, rule.allows.plain) == ("api.example.org", 443, False)
    other = read_secret_rule("api.example.org:8443=X-Api-Key:/k")
    assert (other.port, str(other)) == (8443, "api.example.org:8443=X-Api-Key:/k")
    assert read_secret_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "api.example.org",
        "api.example.org=Authorization",
        "api.example.org=Authorization:key",
        "api.example.org=:/k",
        "=Authorization:/k",
        "*.example.org=Authorization:/k",
        "http://api.example.org=Authorization:/k",
        "10.0.0.1=Authorization:/k",
        "[fd00::1]=Authorization:/k",
        "api.example.org:0=Authorization:/k",
        "api.example.org=A b:/k",
        "api.example.org=Host:/k",
        "api.example.org=connection:/k",
        "api.example.org=Content-Length:/k",
        "api.example.org=Transfer-Encoding:/k",
        "api.example.org=Proxy-Authorization:/k",
    ],
)
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_secret_rule(text)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_line_of_a_file_is_the_value(end: bytes) -> None:
    secret = read_secret(b"Bearer k-1" + end)
    assert secret.value == b"Bearer k-1"
    assert "k-1" not in repr(secret)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"k-1\n\n", b"k-1\nX: y", b"k-1\rX", b"k-\0001", "k-1é".encode(), b" k-1", b"k-1 ", b"k" * 8193],
)
def test_a_file_with_anything_else_is_refused_without_saying_what_is_in_it(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected one line|longer") as refused:
        read_secret(content)
    assert "k-" not in str(refused.value)
    assert LONGEST == 8192
