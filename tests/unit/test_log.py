"""What of other libraries is in the log, in a process of its own: a process sets up its log once."""

import json
import subprocess
import sys

LEVELS = """
import json, logging
from kernelbridge.log import configure
names = ("another", "asyncio", "docker", "urllib3", "aiohttp.websocket")
found = {}
for level in ("debug", "info", "warning", "error"):
    configure("console", level)
    found[level] = [logging.getLevelName(logging.getLogger(name).getEffectiveLevel()) for name in names]
print(json.dumps(found))
"""


def test_libraries_say_no_more_than_the_server_and_some_of_them_less() -> None:
    printed = subprocess.run([sys.executable, "-c", LEVELS], capture_output=True, check=True, text=True).stdout
    assert json.loads(printed) == {
        "debug": ["DEBUG", "INFO", "INFO", "INFO", "ERROR"],
        "info": ["INFO", "INFO", "INFO", "INFO", "ERROR"],
        "warning": ["WARNING", "WARNING", "WARNING", "WARNING", "ERROR"],
        "error": ["ERROR", "ERROR", "ERROR", "ERROR", "ERROR"],
    }
