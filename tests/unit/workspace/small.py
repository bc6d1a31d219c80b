"""Settings of a server that holds little, for tests that fill it."""

from pathlib import Path

from kernelbridge.settings.settings import Settings

SMALL = Settings(
    data_dir=Path("/nowhere"),
    queue_limit=3,
    start_timeout=5,
    max_output=1 << 20,
    max_message=1 << 20,
    max_spill=0,
    journal_size=1 << 20,
    idle_timeout=None,
    linger=0,
    max_starts=1,
    max_sessions_per_user=2,
    max_sessions=2,
)
