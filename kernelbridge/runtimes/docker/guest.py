"""The agent's program, as a file that an engine can mount into containers.

    <data>/guest/<hash of its content>/agent.py

Each version has a directory of its own: containers that outlive an upgrade keep the agent that they have.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from kernelbridge.runtimes.agent.client import agent_source

FILE = "agent.py"


def deliver(home: Path) -> Path:
    """Write the file below `home`, unless it exists, and return its directory. Blocking; raises OSError."""
    source = agent_source()
    directory = home / hashlib.sha256(source).hexdigest()[:16]
    file = directory / FILE
    if file.is_file() and file.read_bytes() == source:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # for any user of a container, whatever the server's umask
    written = directory / f"{FILE}.{secrets.token_hex(4)}"
    written.write_bytes(source)
    written.chmod(0o444)
    written.replace(file)
    return directory
