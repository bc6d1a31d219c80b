"""The limit of a container's socket buffers, on machines with cgroup version 1.

That version counts the buffers of a group's sockets only if they have a limit, `memory.kmem.tcp.limit_in_bytes`. The
Engine API has a field for it, `KernelMemoryTCP`, but runc ignores it since 1.0. So the server writes the limit, where
it can: as root, on the engine's machine, outside of any container. Version 2 counts them as memory.
"""

from __future__ import annotations

from pathlib import Path

_FILE = "memory.kmem.tcp.limit_in_bytes"


def limit_socket_buffers(container_id: str, most: int, controllers: Path = Path("/sys/fs/cgroup")) -> bool:
    """Limit a container that was just started to `most` bytes; return whether that was possible. Blocking.

    Only sockets that are opened later are counted.
    """
    memory = controllers / "memory"
    # The names that the two cgroup drivers of an engine use.
    for group in (memory / "docker" / container_id, memory / "system.slice" / f"docker-{container_id}.scope"):
        try:
            (group / _FILE).write_text(str(most), encoding="ascii")
        except OSError:
            continue
        return True
    return False
