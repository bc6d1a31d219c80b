"""All errors that users meet.

Each is a `KernelBridgeError`: `code` is for programs and never changes; `message` says what failed; `reason` says why
and, if the user can do something, what. `retryable` promises that the same request may succeed later without a change.
"""

from __future__ import annotations

from typing import ClassVar


class KernelBridgeError(Exception):
    """A failure with a stable code and a text for people."""

    code: str = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(f"{message}: {reason}" if reason else message)
        self.message = message
        self.reason = reason


class BadRequest(KernelBridgeError):
    """The client's message breaks the protocol; `field` names the wrong field."""

    code = "bad_request"

    def __init__(self, message: str, reason: str = "", *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message, reason)
        self.field = field
        self.session_id: str | None = None
        """The `sessionId` of a frame that could not be read as a message, if it has a valid one."""
        self.request_id: str | None = None
        self.warnings: tuple[str, ...] = ()
        """A sentence for each field of that frame that the protocol does not have."""
        if code is not None:
            self.code = code


class Unauthorized(KernelBridgeError):
    """The client is not logged in: its credential is absent, wrong, expired or revoked."""

    code = "unauthorized"


class LimitExceeded(KernelBridgeError):
    """A limit of the server was reached; nothing was started."""

    code = "limit_exceeded"
    retryable = True


class TooMuchBuffered(LimitExceeded):
    """The server holds too much data for its clients, and most of it for this one."""

    code = "too_much_buffered"


HOLDS_TOO_MUCH = (
    "the server holds too much data for its clients (--max-buffered), and most of it for this user; read answers as"
    " they come, and finish one message before the next"
)


class SessionConflict(KernelBridgeError):
    """The session is open already, with other options than requested."""

    code = "session_conflict"


class UnknownSession(KernelBridgeError):
    """The principal has no such session open."""

    code = "unknown_session"


class SandboxError(KernelBridgeError):
    """The sandbox could not be made, or it was lost."""

    code = "sandbox_failed"
    retryable = True


class RuntimeUnavailable(SandboxError):
    """The Docker engine or bubblewrap does not answer."""

    code = "runtime_unavailable"


class ImageError(KernelBridgeError):
    """The workspace image is absent, broken or unusable."""

    code = "image_unusable"


class KernelError(KernelBridgeError):
    """The kernel did not start, or it died."""

    code = "kernel_failed"
    retryable = True


class SessionClosed(KernelBridgeError):
    """The session is closed or closing, so the request was not started.

    Its code depends on the request: that of `KernelError`, `TerminalError` or `SandboxError`.
    """

    code = KernelError.code
    retryable = True

    def __init__(self, code: str = code) -> None:
        super().__init__("The session is closed", "send the request again to open it anew")
        self.code = code


class KernelBusy(KernelBridgeError):
    """The kernel cannot answer now, because it runs a cell."""

    code = "busy"
    retryable = True


class NoInputWaiting(KernelBridgeError):
    """Nothing in the session waits for this input."""

    code = "no_input_waiting"


class TerminalError(KernelBridgeError):
    """The workspace's shell did not start, or it died."""

    code = "terminal_failed"
    retryable = True


class UnknownTerminal(KernelBridgeError):
    """The session has no open terminal of this name."""

    code = "unknown_terminal"


class FileError(KernelBridgeError):
    """A workspace file could not be read or written."""

    code = "file_failed"


class NoSuchFile(FileError):
    """There is no file or directory of this name."""

    code = "not_found"


class FileExists(FileError):
    """There is a file or directory of this name already, and it must not be replaced."""

    code = "exists"


class FileConflict(FileError):
    """The file is not the version that the client expected."""

    code = "conflict"


class IsDirectory(FileError):
    """It is a directory, but a file is needed."""

    code = "is_a_directory"


class NotADirectory(FileError):
    """It is not a directory, but one is needed."""

    code = "not_a_directory"


class NotAFile(FileError):
    """It is a symbolic link, FIFO, socket or device, which is never opened."""

    code = "not_a_file"


class DirectoryNotEmpty(FileError):
    """The directory is not empty."""

    code = "not_empty"


class FileTooLarge(FileError):
    """The file is larger than the limit for this way of access."""

    code = "too_large"


class NotText(FileError):
    """The file's bytes are not UTF-8."""

    code = "not_text"


class DiskFull(FileError):
    """The disk of the server, or what its operator gave it of a disk, is full."""

    code = "disk_full"
    retryable = True


class DiskLimitReached(DiskFull):
    """The session has no room left within its disk limit."""

    code = "disk_limit"


class FilesDeleted(FileError):
    """The session was closed and its files were deleted during the request."""

    code = "files_deleted"
    retryable = True


class ConfigError(KernelBridgeError):
    """Settings are wrong. Ends the command with exit code 2; never sent to a client."""

    code = "bad_config"
