"""Settings of workspaces that hold little, for tests that fill them."""

from kernelbridge.runtimes.contract import Limits
from kernelbridge.workspace.options import Bounds
from kernelbridge.workspace.settings import WorkspaceSettings

SMALL = WorkspaceSettings(
    bounds=Bounds(limits=Limits(), image=None, linger=0),
    queue_limit=3,
    execution_timeout=None,
    start_timeout=5,
    max_output=1 << 20,
    max_file=1 << 20,
    max_spill=0,
    journal_size=1 << 20,
)
