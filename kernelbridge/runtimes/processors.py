"""Variables that tell programs how many processors a sandbox may use; pure.

A limit of processor time is visible only in a control group, where few programs look: numpy, PyTorch and joblib start a
thread for each processor of the machine, and these wait for each other. But they respect variables. More programs
respect an affinity, but it would tie a sandbox to certain processors, even if these are busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

THREAD_VARIABLES = (
    "BLIS_NUM_THREADS",
    "GOMAXPROCS",
    "JULIA_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "PYTHON_CPU_COUNT",
    "RAYON_NUM_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Variables that limit the threads or processes with which a program computes. `nproc` reads OMP_NUM_THREADS."""


def thread_counts(cpus: float, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a sandbox with `cpus` processors, except those that `env` sets already."""
    count = str(max(1, ceil(cpus)))
    return {name: count for name in THREAD_VARIABLES if name not in env}
