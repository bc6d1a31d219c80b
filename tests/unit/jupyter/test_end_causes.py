"""What an execution is told that was ended from outside."""

import signal

import pytest

from kernelbridge.jupyter import end_causes
from kernelbridge.jupyter.end_causes import Ended
from kernelbridge.runtimes.contract import ExitStatus


@pytest.mark.parametrize(
    ("ended", "cause", "name", "lives"),
    [
        (end_causes.SESSION_CLOSED, "session_closed", "SessionClosed", False),
        (end_causes.KERNEL_RESTARTED, "kernel_restarted", "KernelRestarted", False),
        (end_causes.OUT_OF_MEMORY, "out_of_memory", "OutOfMemory", False),
        (end_causes.SANDBOX_LOST, "sandbox_lost", "SandboxLost", False),
        (end_causes.SANDBOX_LOST_MEANWHILE, "sandbox_lost", "SandboxLost", False),
        (end_causes.NEVER_RAN, None, "NeverRan", True),
        (end_causes.REPLY_LOST, "interrupted", "KeyboardInterrupt", True),
        (end_causes.process_ended(ExitStatus(code=3)), "kernel_died", "KernelDied", False),
    ],
)
def test_the_cause_and_the_name_of_the_error_go_together(
    ended: Ended, cause: str | None, name: str, *, lives: bool
) -> None:
    assert (ended.cause, ended.error.partition(":")[0], ended.kernel_lives) == (cause, name, lives)


def test_the_end_of_a_process_has_its_code_or_signal() -> None:
    exited = end_causes.process_ended(ExitStatus(code=3))
    assert (exited.exit_code, exited.signal) == (3, None)
    killed = end_causes.process_ended(ExitStatus(signal=signal.SIGSEGV))
    assert (killed.exit_code, killed.signal) == (None, "SIGSEGV")
    assert end_causes.BUS_ERROR in end_causes.process_ended(ExitStatus(signal=signal.SIGBUS)).error
    assert end_causes.BUS_ERROR not in killed.error
