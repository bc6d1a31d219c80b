"""How programs learn how many processors a sandbox may use; pure.

A limit of processor time shows in a control group only, and few programs look there: numpy, PyTorch and joblib start
a thread for each processor of the machine, which then wait for each other. They do listen to variables. Affinity
would be seen by more of them, but ties a sandbox to certain processors, however busy those are with others.
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
"""Variables that say how many threads or processes a program may start to compute. `nproc` reads OMP_NUM_THREADS."""


def thread_counts(cpus: float, env: Mapping[str, str]) -> dict[str, str]:
    """Give the variables for a sandbox with `cpus` processors, but for those that `env` sets already."""
    count = str(max(1, ceil(cpus)))
    return {name: count for name in THREAD_VARIABLES if name not in env}
