"""Changes of files that are made in one piece, in the thread of the test."""

from kernelbridge.aio.threads import finish
from kernelbridge.workspace.files.store import SaveMode, WorkspaceFiles
from kernelbridge.workspace.files.versions import Saved

__all__ = ["Files", "finish"]


class Files(WorkspaceFiles):
    """The files of a workspace."""

    def save(self, filename: str, data: bytes, mode: SaveMode = "overwrite", if_match: str | None = None) -> Saved:
        return finish(self.saving(filename, data, mode, if_match))

    def delete(self, filename: str, *, recursive: bool) -> None:
        finish(self.deleting(filename, recursive=recursive))
