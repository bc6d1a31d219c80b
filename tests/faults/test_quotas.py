"""Disk quotas that ext4 and XFS enforce, in a kernel that has them."""

import sys
from pathlib import Path

from tests.faults import on_quotas, quota_kernel


def test_sessions_on_file_systems_with_project_quotas(tmp_path: Path) -> None:
    options = ("--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-q")
    code, output = quota_kernel.run(tmp_path, sys.executable, "-B", "-m", "pytest", *options, on_quotas.__file__)
    print(output)
    assert code == 0
