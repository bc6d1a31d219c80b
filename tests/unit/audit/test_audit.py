import json
from pathlib import Path

from kernelbridge.audit.audit import MOST_REFUSALS, Audit, By
from kernelbridge.audit.log_file import LogFile
from kernelbridge.audit.writer import Writer


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
    assert counts == [(MOST_REFUSALS, 4 * MOST_REFUSALS), (len(found) - 1, 7)]
    assert len(found) == 2 * MOST_REFUSALS + 3
