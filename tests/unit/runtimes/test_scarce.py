"""Why a terminal cannot be opened, and the limit of socket buffers that engines do not set."""

from pathlib import Path

import pytest

from kernelbridge.runtimes.agent.terminal import no_terminals
from kernelbridge.runtimes.contract import Limits
from kernelbridge.runtimes.docker.sockets import limit_socket_buffers
from kernelbridge.runtimes.processors import THREAD_VARIABLES, thread_counts

CONTAINER = "c0ffee" * 10 + "beef"


@pytest.mark.parametrize(
    ("used", "most", "kept", "says"),
    [
        ("10", "4096", "1024", "the session has reached its limit"),
        ("3071", "4096", "1024", "the session has reached its limit"),
        ("3072", "4096", "1024", "which this session did not cause"),
        ("4096", "4096", "0", "which this session did not cause"),
        ("?", "4096", "0", "the session has reached its limit"),
    ],
)
def test_who_has_taken_the_terminals(tmp_path: Path, used: str, most: str, kept: str, says: str) -> None:
    for name, text in (("nr", used), ("max", most), ("reserve", kept)):
        (tmp_path / name).write_text(f"{text}\n")
    assert says in no_terminals(tmp_path)
    assert "the session has reached its limit" in no_terminals(tmp_path / "absent")


@pytest.mark.parametrize("group", [f"docker/{CONTAINER}", f"system.slice/docker-{CONTAINER}.scope"])
def test_the_limit_of_socket_buffers_is_written_where_either_driver_has_the_group(tmp_path: Path, group: str) -> None:
    home = tmp_path / "memory" / group
    assert not limit_socket_buffers(CONTAINER, 5 << 20, tmp_path)
    home.mkdir(parents=True)
    assert limit_socket_buffers(CONTAINER, 5 << 20, tmp_path)
    assert (home / "memory.kmem.tcp.limit_in_bytes").read_text() == "5242880"


@pytest.mark.parametrize(("cpus", "count"), [(0.01, "1"), (1.0, "1"), (1.01, "2"), (2.0, "2"), (63.5, "64")])
def test_processors_are_rounded_up_and_never_none(cpus: float, count: str) -> None:
    assert thread_counts(cpus, {}) == dict.fromkeys(THREAD_VARIABLES, count)


def test_what_the_image_sets_is_kept() -> None:
    counts = thread_counts(2.0, {"OMP_NUM_THREADS": "7", "PATH": "/bin"})
    assert set(counts) == set(THREAD_VARIABLES) - {"OMP_NUM_THREADS"}


def test_limits_that_follow_from_memory() -> None:
    assert Limits(memory=1 << 30).shm == 1 << 30
    assert Limits(memory=1 << 30).socket_buffers == 128 << 20
    assert Limits(memory=1 << 20).socket_buffers == 8 << 20
    assert Limits(nofile=77).rlimits == {
        "core": 0,
        "memlock": 8 << 20,
        "msgqueue": 819_200,
        "nice": 0,
        "nofile": 77,
        "rtprio": 0,
        "sigpending": 4096,
    }


def test_what_computes_in_many_threads_is_told_how_many() -> None:
    """Each of these was seen to start a thread for each processor of the machine."""
    known = "OMP OPENBLAS MKL NUMEXPR NUMBA BLIS JULIA RAYON"
    assert {f"{name}_NUM_THREADS" for name in known.split()} <= set(THREAD_VARIABLES)
    others = "GOMAXPROCS LOKY_MAX_CPU_COUNT NUMEXPR_MAX_THREADS POLARS_MAX_THREADS PYTHON_CPU_COUNT"
    assert set(others.split()) <= set(THREAD_VARIABLES)
    tensorflow = {f"TF_NUM_{kind}_THREADS" for kind in ("INTEROP", "INTRAOP")}
    assert tensorflow | {"VECLIB_MAXIMUM_THREADS"} <= set(THREAD_VARIABLES)
