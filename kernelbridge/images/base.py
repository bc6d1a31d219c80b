"""The base of images: the public Python image, a named image, or one made from Debian's packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final

from docker import APIClient
from docker.errors import APIError, ImageNotFound
from docker.utils import parse_repository_tag

from kernelbridge.errors import ImageError
from kernelbridge.images.context import images_directory
from kernelbridge.images.progress import Progress, PullSummary, one_line

AUTO: Final = "auto"
"""The public Python image; if it cannot be pulled, one made from Debian's packages, if that works here."""

DEBOOTSTRAP: Final = "debootstrap"
"""An image made here from Debian's packages, without a registry."""

PUBLIC_BASE: Final = "python:3.13-slim-bookworm"
DEBIAN_SUITE: Final = "bookworm"
DEBIAN_BASE: Final = f"kernelbridge-base:{DEBIAN_SUITE}"
DEBIAN_MIRROR: Final = "http://deb.debian.org/debian"

DEBOOTSTRAP_COMMAND: Final = "kernelbridge images build --base debootstrap"

_DEBIAN_PACKAGES: Final = ("ca-certificates", "python3", "python3-pip", "python3-venv")
_IMPORT_CHANGES: Final = (
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV LANG=C.UTF-8",
    'CMD ["bash"]',
)
_CHUNK: Final = 1 << 20
_KEPT_LINES: Final = 20


def resolve_base(engine: APIClient, base: str, *, progress: Progress, mirror: str = DEBIAN_MIRROR) -> str:
    """Return the reference of an image to build on. It is pulled or made if the engine does not have it.

    An explicit `base` is never replaced by another. Raises `ImageError` with the command that helps.
    """
    if base == DEBOOTSTRAP:
        return _debian_base(engine, progress, mirror)
    wanted = PUBLIC_BASE if base == AUTO else base
    if inspect(engine, wanted) is not None:
        return wanted
    try:
        pull(engine, wanted, progress)
    except ImageError as exc:
        if base == AUTO and (inspect(engine, DEBIAN_BASE) is not None or debootstrap_obstacle() is None):
            progress(f"{exc.reason}; building on Debian's packages instead ({DEBIAN_BASE})")
            return _debian_base(engine, progress, mirror)
        raise ImageError(f"The base image {wanted} cannot be pulled", f"{exc.reason}; {_advice()}") from exc
    return wanted


def inspect(engine: APIClient, reference: str) -> Mapping[str, Any] | None:
    """Return what the engine knows about an image (`docker image inspect`), or None. Asks no registry."""
    try:
        facts: dict[str, Any] = engine.inspect_image(reference)  # type: ignore[no-untyped-call]  # the stubs leave it out
    except ImageNotFound:
        return None
    return facts


def pull(engine: APIClient, reference: str, progress: Progress) -> None:
    """Pull an image. `progress` gets lines about its layers. Raises `ImageError` with the engine's message."""
    repository, tag = parse_repository_tag(reference)
    progress(f"Pulling {reference}")
    summary = PullSummary(reference)
    try:
        for event in engine.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in event:
                raise ImageError(f"The image {reference} cannot be pulled", one_line(str(event["error"])))
            if line := summary.feed(event):
                progress(line)
    except APIError as exc:
        raise ImageError(f"The image {reference} cannot be pulled", one_line(str(exc.explanation or exc))) from exc


def debootstrap_obstacle() -> str | None:
    """Return why no base can be made from Debian's packages here, and what to do; None if one can."""
    if shutil.which("debootstrap") is None:
        return "debootstrap is not installed: `apt-get install debootstrap`"
    if os.geteuid() != 0:
        return "debootstrap needs root: run the command with sudo"
    return None


def make_debian_base(
    engine: APIClient, *, progress: Progress, mirror: str = DEBIAN_MIRROR, reference: str = DEBIAN_BASE
) -> str:
    """Make the base from Debian's packages, also if it exists; return its id. Takes about a minute.

    Raises `ImageError`.
    """
    if obstacle := debootstrap_obstacle():
        raise ImageError("No base image can be made from Debian's packages", obstacle)
    progress(f"Making {reference} from Debian's packages")
    script = str(images_directory() / "base" / "bootstrap.sh")
    with _running(["bash", script, DEBIAN_SUITE, mirror, *_DEBIAN_PACKAGES], progress) as (process, last_lines):
        answer = engine.import_image_from_stream(_archive_of(process, last_lines), changes=list(_IMPORT_CHANGES))
    event = json.loads(answer.strip().splitlines()[-1])
    if "status" not in event:
        raise ImageError("The engine did not import the base image", one_line(str(event.get("error", event))))
    made = str(event["status"])
    # Tagged only now, so an incomplete archive never gets the name.
    repository, tag = parse_repository_tag(reference)
    engine.tag(made, repository, tag)
    return made


def _debian_base(engine: APIClient, progress: Progress, mirror: str) -> str:
    if inspect(engine, DEBIAN_BASE) is None:
        make_debian_base(engine, progress=progress, mirror=mirror)
    return DEBIAN_BASE


def _advice() -> str:
    obstacle = debootstrap_obstacle()
    needs = f" ({obstacle})" if obstacle else ""
    return (
        f"make a base from Debian's packages with `{DEBOOTSTRAP_COMMAND}`{needs}, "
        "or name another image with `kernelbridge images build --base IMAGE`"
    )


@contextmanager
def _running(argv: list[str], progress: Progress) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], list[str]]]]:
    """Run a program and report its standard error to `progress`. On exit, it and its children are ended.

    Yields the process, and a function that waits for the end of its standard error and returns the last lines of it.
    """
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    # In its own session, so Ctrl-C does not reach it directly: it gets one SIGTERM from here, and cleans up.
    process = subprocess.Popen(  # noqa: S603 - fixed program, no shell, arguments of our own
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    with process:
        assert process.stderr is not None  # noqa: S101 - a pipe was asked for
        reader = threading.Thread(target=_read_lines, args=(process.stderr, last_lines, progress))
        reader.start()

        def said() -> list[str]:
            reader.join()  # it may be behind the program, whose last line says why it failed
            return list(last_lines)

        try:
            yield process, said
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
            reader.join()


def _read_lines(stream: IO[bytes], last_lines: deque[str], progress: Progress) -> None:
    retrieved = 0
    for raw in stream:
        line = raw.decode("utf-8", "replace").rstrip()
        last_lines.append(line)
        text = line.removeprefix("I: ")
        if text.startswith("Retrieving "):
            retrieved += 1
        elif text.startswith("Extracting ") and retrieved:
            progress(f"  retrieved {retrieved} packages")
            retrieved = 0
        elif text.endswith("system...") or text.startswith(("Resolving ", "Checking ", "W: ", "E: ")):
            progress(f"  {text}")


def _archive_of(process: subprocess.Popen[bytes], last_lines: Callable[[], list[str]]) -> Iterator[bytes]:
    """Yield what the program writes. Raises at the end if it failed, so the engine refuses the incomplete archive."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    while chunk := process.stdout.read(_CHUNK):
        yield chunk
    if process.wait() != 0:
        raise ImageError(
            f"debootstrap failed with exit code {process.returncode}",
            "its last lines:\n" + "\n".join(last_lines()),
        )
