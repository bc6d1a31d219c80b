"""A small disk that a test fills to the last byte, or to the last name, and empties again. Needs root."""

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE = 24 << 20
NAMES = 600


class SmallDisk:
    """A file system of its own at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ballast = root / "ballast"

    def fill(self, of: str) -> None:
        """Take all `bytes` that are left, or all `names`."""
        self._ballast.mkdir()
        if of == "bytes":
            for size in (1 << 20, 4096, 1):
                with contextlib.ExitStack() as stack, suppressed_full():
                    while True:
                        self._more(stack, size)
            return
        with suppressed_full():
            for number in range(2 * NAMES):
                (self._ballast / str(number)).touch()

    def _more(self, stack: contextlib.ExitStack, size: int) -> None:
        # Each in a file of its own: a file system keeps a little for those that it knows already.
        number = len(list(self._ballast.iterdir()))
        file = stack.enter_context(open(self._ballast / f"{size}-{number}", "wb", buffering=0))  # noqa: SIM115, PTH123
        file.write(b"x" * size)

    def free(self) -> None:
        """Give back what was taken."""
        for file in self._ballast.iterdir():
            file.unlink()
        self._ballast.rmdir()


@contextlib.contextmanager
def suppressed_full() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise


@contextlib.contextmanager
def small_disk(root: Path) -> Iterator[SmallDisk]:
    """Put one at `root`; what is there still must not be in use when it is taken away."""
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},nr_inodes={NAMES}", "tmpfs", root], check=True)
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", root], check=True)
