"""What can go wrong for a user of the client.

    KernelBridgeError
    └── ClientError
        ├── ConnectionLost      no connection, and the request had no effect
        │   └── OutcomeUnknown  no connection, and it may have happened
        ├── LoginRefused        no token, or not this one
        ├── SessionLost         the session was closed meanwhile: its variables are gone
        ├── RequestRefused      the server refused a request; `code` says why
        ├── WaitTimeout         the caller waited no longer; the run goes on
        ├── Closed              the client, session or terminal was closed
        └── RunError            asked for with `check`: the run did not succeed (`results.py`); `result` has all of it
            ├── CodeError       the code raised an exception
            ├── CommandFailed   the command's exit code is not 0
            ├── RunTimeout      it ran longer than its `timeout`
            └── RunEnded        something else ended it: `cause`

All of them can be pickled, with all fields.
"""

from __future__ import annotations

from typing import Any

from kernelbridge.errors import KernelBridgeError


def _restored(kind: type[ClientError], args: tuple[Any, ...], fields: dict[str, Any]) -> ClientError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class ClientError(KernelBridgeError):
    """A failure that the client reports: `message` says what failed, `reason` why and what to do."""

    code: str = "client_error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all fields, whatever the constructor takes."""
        return _restored, (type(self), self.args, self.__dict__)


class ConnectionLost(ClientError):
    """There is no connection to the server, and the request had no effect."""

    code = "connection_lost"
    retryable = True


class OutcomeUnknown(ConnectionLost):
    """The connection broke after a request was sent, and its answer cannot come any more: it may have run."""

    code = "outcome_unknown"
    retryable = False

    def __init__(self, message: str, reason: str, *, request: dict[str, Any]) -> None:
        super().__init__(message, reason)
        self.request = request
        """The message that was sent."""


class LoginRefused(ClientError):
    """The server does not let this user in."""

    code = "unauthorized"

    def __init__(self, message: str, reason: str, *, status: int | None = None) -> None:
        super().__init__(message, reason)
        self.status = status
        """The HTTP status, if there was one."""


class SessionLost(ClientError):
    """The session was closed while this client had it: its variables, shell and terminals are gone, its files are not.

    The request was not sent. The next one opens the session again.
    """

    code = "session_lost"

    def __init__(self, message: str, reason: str, *, session_id: str) -> None:
        super().__init__(message, reason)
        self.session_id = session_id


class RequestRefused(ClientError):
    """The server refused a request. `code` is one of those in the reference of errors."""

    retryable: bool  # type: ignore[misc]  # each refusal says it of itself

    def __init__(self, message: str, reason: str, *, code: str, retryable: bool, request: str) -> None:
        super().__init__(message, reason)
        self.code = code
        self.retryable = retryable
        self.request = request
        """The type of the request."""


class WaitTimeout(ClientError):
    """The caller waited as long as it wanted to. The run goes on."""

    code = "wait_timeout"


class Closed(ClientError):
    """The client, the session or the terminal was closed here."""

    code = "closed"
