"""A thousand sessions come and go, and nothing of them is left.

By itself it makes few. `KERNELBRIDGE_FAULT_CYCLES=1000 pytest -s tests/faults/test_cycles.py` makes a thousand, and
prints what it saw.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.house import House, inhabited, next_frame, resources

CYCLES = int(os.environ.get("KERNELBRIDGE_FAULT_CYCLES", "25"))
FIRST = 5
"""Cycles in which pools fill up."""
POOLS = 8
"""Descriptors and threads by which pools may be fuller at one moment than at another."""


def resident() -> int:
    """Give the bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def house(runtime_name: str, workspace_image: str, tmp_path: Path) -> Iterator[House]:
    with inhabited(House(runtime_name, workspace_image, tmp_path / "data", linger="0")) as made:
        yield made


async def cycle(house: House, number: int) -> None:
    guest = await house.connect("u")
    for request in (
        {"type": "execute_code", "code": f"print({number})"},
        {"type": "terminal_command", "command": f"echo {number}"},
    ):
        await guest.ws.send_json({"sessionId": "s", **request})
        assert (await next_frame(guest))["output"] == f"{number}\n"
    await guest.ws.close()
    await house.nothing_left()


@pytest.mark.timeout(36_000)
def test_sessions_come_and_go(house: House) -> None:
    for number in range(FIRST):
        house.do(cycle(house, number))
    before, memory = resources(), resident()
    for number in range(CYCLES):
        house.do(cycle(house, number))
    after = resources()
    growth = (resident() - memory) / 1e6
    print(f"{CYCLES} cycles: descriptors and threads {before} -> {after}, resident memory {growth:+.1f} MB")
    assert all(then <= now + POOLS for now, then in zip(before, after, strict=True)), (before, after)
    assert growth <= 20
