"""A server that starts with few open files allows itself more."""

import subprocess
import sys

_START = """
import asyncio, contextlib, resource
from kernelbridge.errors import KernelBridgeError
from kernelbridge.server import app, open_files
from kernelbridge.settings.settings import resolve

hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 5000)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
with contextlib.suppress(KernelBridgeError):
    asyncio.run(app.serve(resolve({"data_dir": "/dev/null/none"}, {}), on_progress=id, on_started=id, on_stopping=id))
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard), open_files.limit() == hard)
"""


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    done = subprocess.run([sys.executable, "-c", _START], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr
