"""What the system says about names."""

import socket
from ipaddress import ip_address

import pytest

from kernelbridge.egress.dialling import addresses_of


def test_of_a_name_with_many_addresses_a_few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them could be a connection that nobody answers."""

    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (f"198.51.100.{number // 2}", 0)) for number in range(200)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert addresses_of("a.example") == [ip_address(f"198.51.100.{number}") for number in range(16)]
