"""Builds kernelbridge's own images.

    base            Debian's packages only; the base of the others where no registry can be reached
    slim            a small image of workspaces: python, ipykernel, numpy, pandas, matplotlib, requests, git, curl
    workspace       the default image: with scipy, scikit-learn, seaborn, plotly, pyarrow and others besides
    datascience-r   that with R and its kernel
    server          kernelbridge itself, for docker-compose.yml

All functions block (the Docker SDK is synchronous), and may be called from any thread.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from docker import APIClient
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env
from requests.exceptions import RequestException

from kernelbridge.errors import ImageError, RuntimeUnavailable
from kernelbridge.images.base import AUTO, DEBIAN_BASE, DEBIAN_MIRROR, inspect, make_debian_base, pull, resolve_base
from kernelbridge.images.context import Context, server_context, workspace_context
from kernelbridge.images.progress import BuildSummary, Progress, one_line
from kernelbridge.settings.environment import docker_host

_DEFAULT_ENDPOINT: Final = "unix:///var/run/docker.sock"

_ANSWER_TIMEOUT: Final = 8
"""Seconds in which the engine has to answer: a server that cannot start says so within ten."""

_REGISTRY_TIMEOUT: Final = 60
"""Seconds in which the engine has to say whether a registry has an image: more than its own timeout for that."""

_SILENCE_TIMEOUT: Final = 3600
"""Seconds without output that a build or a pull may take: a step may compile, or a layer may be large."""


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image that kernelbridge can build."""

    name: str
    reference: str
    """Name and tag of the built image."""
    summary: str
    """What it is, in one line for people."""
    context: Callable[[Path | None], Context] | None
    """Makes its build context, with a CA bundle if given; None for the base, which has no Dockerfile."""
    target: str | None = None
    """The stage of its Dockerfile to build; None for the last one."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image that the engine has."""

    name: str
    reference: str
    id: str
    size: int
    """Bytes, all layers together."""


KNOWN: Final[Mapping[str, KnownImage]] = MappingProxyType(
    {
        image.name: image
        for image in (
            KnownImage("base", DEBIAN_BASE, "Debian's own packages, made with debootstrap", None),
            *(
                KnownImage(name, f"kernelbridge-{name}:latest", summary, workspace_context, target=name)
                for name, summary in (
                    ("slim", "a small image of workspaces"),
                    ("workspace", "the default image of workspaces"),
                    ("datascience-r", "the default image with R"),
                )
            ),
            KnownImage("server", "kernelbridge-server:latest", "kernelbridge itself, for compose", server_context),
        )
    }
)
"""All images by name, each after the one that it is built on."""


def _silent(_line: str) -> None:
    pass


def build(
    names: Sequence[str] = ("workspace",),
    *,
    base: str = AUTO,
    ca_bundle: Path | None = None,
    network: str | None = None,
    mirror: str = DEBIAN_MIRROR,
    progress: Progress = _silent,
) -> list[BuiltImage]:
    """Build the named images, also if they exist.

    `base` is `auto`, `debootstrap` or an image. `ca_bundle` is a PEM file that is trusted during the build only.
    `network` is the engine's network for build steps, such as `host` (None: the engine's default). `mirror` is the
    Debian archive for the base. `progress` gets one line at a time. Raises `ImageError`, or `RuntimeUnavailable` if no
    engine answers.
    """
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ImageError(f"There is no image called {unknown[0]!r}", f"the images are: {', '.join(KNOWN)}")
    wanted = [image for name, image in KNOWN.items() if name in names]
    # First, so that a missing bundle or checkout is reported before anything slow.
    contexts = {image.name: image.context(ca_bundle) for image in wanted if image.context is not None}
    built = []
    with _engine() as engine:
        resolved: str | None = None
        for image in wanted:
            if image.context is None:
                make_debian_base(engine, progress=progress, mirror=mirror)
            else:
                if resolved is None:
                    resolved = resolve_base(engine, base, progress=progress, mirror=mirror)
                build_context(engine, image, contexts[image.name], base=resolved, network=network, progress=progress)
            found = _found(engine, image.name, image.reference)
            if found is None:
                raise ImageError(f"{image.reference} was built but is not on the engine", "it was removed since")
            built.append(found)
    return built


def _found(engine: APIClient, name: str, reference: str) -> BuiltImage | None:
    facts = inspect(engine, reference)
    return None if facts is None else BuiltImage(name, reference, str(facts["Id"]), int(facts["Size"]))


def find_images(references: Iterable[str]) -> dict[str, BuiltImage]:
    """Return those of the images that the engine has. Raises `RuntimeUnavailable` if it does not answer."""
    with _engine() as engine, _soon(engine):
        found = {}
        for reference in references:
            known = known_image(reference)
            image = _found(engine, reference if known is None else known.name, reference)
            if image is not None:
                found[reference] = image
        return found


def ensure_image(
    reference: str,
    *,
    base: str = AUTO,
    ca_bundle: Path | None = None,
    network: str | None = None,
    mirror: str = DEBIAN_MIRROR,
    progress: Progress = _silent,
) -> str:
    """Return the id of an image. If it is absent, it is built if it is one of `KNOWN`, else pulled.

    Parameters and errors are those of `build`.
    """
    with _engine() as engine:
        with _soon(engine):
            found = inspect(engine, reference)
        if found is not None:
            return str(found["Id"])
        known = known_image(reference)
        if known is None:
            try:
                pull(engine, reference, progress)
            except ImageError as exc:
                raise _unavailable(reference, exc.reason) from exc
            found = inspect(engine, reference)
            if found is None:
                raise ImageError(f"{reference} was pulled but is not on the engine", "it was removed meanwhile")
            return str(found["Id"])
    progress(f"The image {reference} does not exist yet: building it, which happens only once")
    built = build([known.name], base=base, ca_bundle=ca_bundle, network=network, mirror=mirror, progress=progress)
    return built[0].id


def known_image(reference: str) -> KnownImage | None:
    """Return the image that kernelbridge builds with this reference, or None."""
    return next((image for image in KNOWN.values() if image.reference in {reference, f"{reference}:latest"}), None)


def check_registry(reference: str) -> None:
    """Ask the registry whether an image could be pulled, without pulling it. Raises what `ensure_image` raises."""
    with _engine() as engine:
        engine.timeout = _REGISTRY_TIMEOUT
        try:
            engine.inspect_distribution(reference)  # type: ignore[no-untyped-call]  # the stubs leave it out
        except APIError as exc:
            raise _unavailable(reference, one_line(str(exc.explanation or exc))) from exc


def _unavailable(reference: str, reason: str) -> ImageError:
    return ImageError(
        f"The image {reference} is not on the engine and cannot be pulled",
        f"{reason}; check its name, or load it with `docker load`",
    )


def image_exists(reference: str) -> bool:
    """Return whether the engine has an image. Raises `RuntimeUnavailable` if it does not answer."""
    return reference in find_images([reference])


def build_context(
    engine: APIClient,
    image: KnownImage,
    context: Context,
    *,
    base: str,
    network: str | None = None,
    progress: Progress = _silent,
) -> None:
    """Build one context on the image `base`, which the engine must have. Raises `ImageError` with the failed step."""
    progress(f"Building {image.reference} on {base}")
    summary = BuildSummary(image.name)
    try:
        for event in engine.build(
            fileobj=io.BytesIO(context.archive),
            custom_context=True,
            dockerfile=context.dockerfile,
            tag=image.reference,
            buildargs={"BASE": base},
            target=image.target or "",
            network_mode=network,
            rm=True,
            forcerm=True,
            decode=True,
            timeout=_SILENCE_TIMEOUT,
        ):
            for line in summary.feed(event):
                progress(line)
    except APIError as exc:
        raise ImageError(
            f"The engine refused to build {image.reference}", one_line(str(exc.explanation or exc))
        ) from exc
    if summary.image_id is None:
        raise ImageError(f"The engine stopped building {image.reference}", "see its log, and try again")


@contextmanager
def _engine() -> Iterator[APIClient]:
    """Connect to the engine. All its errors become errors of ours."""
    given = docker_host(os.environ)
    address = given or _DEFAULT_ENDPOINT
    where = f"{address} (from DOCKER_HOST)" if given else address
    try:
        _knock(address)
        engine = APIClient(version="auto", timeout=_ANSWER_TIMEOUT, **kwargs_from_env())
    except PermissionError as exc:
        raise RuntimeUnavailable(
            "The Docker engine does not answer", f"{where}: run as root, or add this user to the group docker"
        ) from exc
    except (OSError, DockerException) as exc:
        raise RuntimeUnavailable(
            "The Docker engine does not answer",
            f"{where}: {_why_unreachable(exc)}; start it (`systemctl start docker`), install it (`apt-get install "
            "docker.io`), or set DOCKER_HOST",
        ) from exc
    try:
        engine.timeout = _SILENCE_TIMEOUT
        yield engine
    except APIError as exc:  # also a RequestException, but an answer
        raise ImageError("The Docker engine refused a request", one_line(str(exc.explanation or exc))) from exc
    except RequestException as exc:
        raise RuntimeUnavailable(
            "The Docker engine stopped answering",
            f"{where}: {one_line(str(exc))}; check whether `docker info` answers, and restart the engine if not",
        ) from exc
    except DockerException as exc:
        raise ImageError("The Docker engine failed", one_line(str(exc))) from exc
    finally:
        engine.close()


@contextmanager
def _soon(engine: APIClient) -> Iterator[None]:
    """Use the short timeout, for requests that neither build nor pull."""
    engine.timeout = _ANSWER_TIMEOUT
    yield
    engine.timeout = _SILENCE_TIMEOUT


def _why_unreachable(exc: Exception) -> str:
    text = one_line(str(exc))
    return "nothing listens there" if "connection refused" in text.lower() else text


def _knock(where: str) -> None:
    """Raise the `OSError` of a socket that nothing listens on; the SDK would wrap it in five others, and leak it."""
    if where.startswith("unix://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_ANSWER_TIMEOUT)
            probe.connect(where.removeprefix("unix://"))
