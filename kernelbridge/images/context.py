"""Build contexts: the files of a build, as one tar archive.

The archive is made here instead of sending a directory, so that a wheel and a source checkout build the same image,
private files of a checkout are never sent, and a CA bundle has a fixed name beside the Dockerfile (the classic builder
of Engine 20.10 has no build secrets).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernelbridge.errors import ImageError

CA_BUNDLE: Final = "ca-bundle.crt"
"""Name of the CA bundle at the root of a context; it is optional."""

_SERVER_SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "images", "kernelbridge")
_LEFT_OUT: Final = frozenset({"__pycache__", CA_BUNDLE})


@dataclass(frozen=True, slots=True)
class Context:
    """What is sent to the engine for one build."""

    archive: bytes
    """Uncompressed tar, with uniform owners and modes, so that the engine's build cache depends only on content."""
    dockerfile: str
    """Path of the Dockerfile inside `archive`."""


def images_directory() -> Path:
    """Return the directory of the Dockerfiles, in the installed package or the source checkout. Raises `ImageError`."""
    package = Path(__file__).resolve().parents[1]
    for found in (package / "_images", package.parent / "images"):
        if (found / "workspace" / "Dockerfile").is_file():
            return found
    raise ImageError("The image descriptions are not installed", f"{package} has no _images; reinstall kernelbridge")


def workspace_context(ca_bundle: Path | None = None, *, directory: Path | None = None) -> Context:
    """Return the context of the images of workspaces, or of any `directory` with a Dockerfile. Raises `ImageError`."""
    directory = directory or images_directory() / "workspace"
    return Context(_archive(directory, [directory], _read_bundle(ca_bundle)), "Dockerfile")


def server_context(ca_bundle: Path | None = None, *, checkout: Path | None = None) -> Context:
    """Return the context of the server image: the source code. Raises `ImageError` outside a checkout."""
    checkout = checkout or Path(__file__).resolve().parents[2]
    missing = [name for name in _SERVER_SOURCES if not (checkout / name).exists()]
    if missing:
        raise ImageError(
            "The server image is built from a source checkout",
            f"{checkout} has no {', '.join(missing)}; clone the repository and run the command there "
            "(`kernelbridge images build workspace` works from an installed package)",
        )
    archive = _archive(checkout, [checkout / name for name in _SERVER_SOURCES], _read_bundle(ca_bundle))
    return Context(archive, "images/server/Dockerfile")


def _read_bundle(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        bundle = path.read_bytes()
    except OSError as exc:
        raise ImageError(f"The CA bundle {path} cannot be read", exc.strerror or str(exc)) from exc
    if b"-----BEGIN CERTIFICATE-----" not in bundle:
        raise ImageError(
            f"The CA bundle {path} has no certificate", "it must be a PEM file: -----BEGIN CERTIFICATE-----"
        )
    return bundle if bundle.endswith(b"\n") else bundle + b"\n"


def _archive(root: Path, sources: list[Path], bundle: bytes | None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(file for source in sources for file in _files(source)):
            info = tar.gettarinfo(path, str(path.relative_to(root)))
            with path.open("rb") as content:
                tar.addfile(_uniform(info), content)
        if bundle is not None:
            info = tarfile.TarInfo(CA_BUNDLE)
            info.size = len(bundle)
            tar.addfile(_uniform(info), io.BytesIO(bundle))
    return buffer.getvalue()


def _files(source: Path) -> Iterator[Path]:
    if source.is_dir():
        for path in source.iterdir():
            if path.name not in _LEFT_OUT:
                yield from _files(path)
    elif source.is_file():
        yield source


def _uniform(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode = 0o755 if info.mode & 0o100 else 0o644
    info.type = tarfile.REGTYPE
    return info
