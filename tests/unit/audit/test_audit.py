import json
from pathlib import Path

from kernelbridge.audit.audit import MOST_REFUSALS, Audit, By
from kernelbridge.audit.log_file import LogFile
from kernelbridge.audit.writer import Writer
from kernelbridge.identity.principal import Principal


async def test_after_the_end_nothing_is_audited(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(Writer(LogFile(path), with_code=False, on_lost=lambda _: None))
    audit.connected(By(None))
    await audit.aclose()
    audit.connected(By(None))
    await audit.aclose()
    assert audit._writer is None
    assert path.read_bytes().count(b"\n") == 1


async def test_a_flood_of_refusals_is_counted_and_fills_no_disk(tmp_path: Path) -> None:
    path, now = tmp_path / "audit.log", [0.0]
    writer = Writer(LogFile(path), with_code=False, on_lost=lambda _: None)
    audit = Audit(writer, clock=lambda: now[0])

    def refuse(times: int) -> None:
        for _ in range(times):
            audit.refused(By(None), what="GET /", code="forbidden", reason="no")

    refuse(5 * MOST_REFUSALS)
    now[0] = 1.0
    refuse(1)
    now[0] = 2.0
    refuse(MOST_REFUSALS + 7)
    await audit.aclose()
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    counts = [(number, entry["count"]) for number, entry in enumerate(found) if entry["event"] == "refusals"]
    # In the two seconds after the first one, there are ten more each.
    assert counts == [(MOST_REFUSALS, 4 * MOST_REFUSALS), (len(found) - 1, MOST_REFUSALS + 7 - 19)]
    assert len(found) == MOST_REFUSALS + 1 + 20 + 1


async def test_the_number_of_a_flood_is_written_when_its_second_is_over(tmp_path: Path) -> None:
    path, now = tmp_path / "audit.log", [0.0]
    audit = Audit(Writer(LogFile(path), with_code=False, on_lost=lambda _: None), clock=lambda: now[0])
    for _ in range(MOST_REFUSALS + 2):
        audit.refused(By(None), what="GET /", code="forbidden", reason="no")
    audit.sweep()  # the second is not over
    audit.authenticated(Principal("ada"), address="127.0.0.1", carried_by="header")
    now[0] = 1.0
    audit.sweep()
    audit.sweep()
    audit.connected(By(None))
    await audit.aclose()
    found = [json.loads(line) for line in path.read_bytes().splitlines()][MOST_REFUSALS:]
    assert [(entry["event"], entry.get("count")) for entry in found] == [
        ("authenticated", None),
        ("refusals", 2),
        ("connected", None),
    ]


async def test_nobody_hides_the_refusals_of_others(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(Writer(LogFile(path), with_code=False, on_lost=lambda _: None), clock=lambda: 0.0)
    eve, ada = By(Principal("eve"), "s"), By(Principal("ada"), "s")
    for by in (By(None), eve, ada):
        for _ in range(MOST_REFUSALS + 2 if by is not ada else 1):
            audit.refused(by, what="GET /", code="forbidden", reason="no")
    await audit.aclose()
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [entry["user"] for entry in found if entry["event"] == "refused" and "user" in entry][-1] == "ada"
    counts = [(entry.get("user"), entry["count"]) for entry in found if entry["event"] == "refusals"]
    assert counts == [(None, 2), ("eve", 2)]


async def test_a_program_that_loops_on_a_host_does_not_hide_another_host(tmp_path: Path) -> None:
    path, now = tmp_path / "audit.log", [0.0]
    audit = Audit(Writer(LogFile(path), with_code=False, on_lost=lambda _: None), clock=lambda: now[0])
    eve = By(Principal("eve"), "s")

    def deny(host: str, times: int) -> None:
        for _ in range(times):
            audit.egress_denied(eve, host=host, port=443, reason="rules")

    deny("a.example", 3 * MOST_REFUSALS)
    deny("b.example", 1)
    now[0] = 1.0
    deny("a.example", 1)
    await audit.aclose()
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [(entry["event"], entry.get("what"), entry.get("count")) for entry in found] == [
        ("refused", "egress a.example:443", None),
        ("refused", "egress b.example:443", None),
        ("refusals", None, 3 * MOST_REFUSALS - 1),
        ("refused", "egress a.example:443", None),
    ]
