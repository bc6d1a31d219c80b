"""Changes of files that are made in one piece, in the thread of the test."""

from kernelbridge.aio.threads import BlockingWork, T
from kernelbridge.workspace.files.store import SaveMode, WorkspaceFiles
from kernelbridge.workspace.files.versions import Saved


def finish(work: BlockingWork[T]) -> T:
    """Do all of some work, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as exc:
            result: T = exc.value
            return result


class Files(WorkspaceFiles):
    """The files of a workspace."""

    def save(self, filename: str, data: bytes, mode: SaveMode = "overwrite", if_match: str | None = None) -> Saved:
        return finish(self.saving(filename, data, mode, if_match))

    def delete(self, filename: str, *, recursive: bool) -> None:
        finish(self.deleting(filename, recursive=recursive))
