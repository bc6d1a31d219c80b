"""Builds the project's own images and says which there are.

    base        Debian's packages and nothing else; what the others stand on where no registry is in reach
    workspace   the default image of a workspace: python, ipykernel, numpy, pandas, matplotlib, requests, git, curl
    server      kernelbridge itself, for docker-compose.yml

All of it is blocking (the Docker SDK is synchronous) and safe to call from any thread.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""Seconds in which the engine has to answer at all: a server that cannot start says so within ten."""

_REGISTRY_TIMEOUT: Final = 60
"""Seconds in which the engine has to say whether a registry has an image: longer than its own patience with one."""

_SILENCE_TIMEOUT: Final = 3600
"""Seconds for which a build or a pull may say nothing: a step compiles, or a layer is large."""


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image that kernelbridge knows how to build."""

    name: str
    reference: str
    """The tag that it is built under."""
    summary: str
    """What it is, in one line for a person."""
    context: Callable[[Path | None], Context] | None
    """Makes its build context around a CA bundle; None for the base, which has no Dockerfile."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """What a build gave."""

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
            KnownImage(
                "workspace", "kernelbridge-workspace:latest", "the default image of workspaces", workspace_context
            ),
            KnownImage("server", "kernelbridge-server:latest", "kernelbridge itself, for compose", server_context),
        )
    }
)
"""By name, in the order in which they stand on each other."""


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
    """Build the named images, whether or not they exist.

    `base` is `auto`, `debootstrap` or an image; `ca_bundle` a PEM file trusted during the build only; `network` the
    engine's network for build steps, such as `host` (None: the engine's default); `mirror` the Debian archive that
    the base is made from. `progress` hears one line at a time. Raises `ImageError`, or `RuntimeUnavailable` when
    no engine answers.
    """
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ImageError(f"There is no image called {unknown[0]!r}", f"the images are: {', '.join(KNOWN)}")
    wanted = [image for name, image in KNOWN.items() if name in names]
    # Before anything slow: a bundle or a checkout that is missing is known at once.
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
            facts = inspect(engine, image.reference)
            if facts is None:
                raise ImageError(f"{image.reference} was built but is not on the engine", "it was removed since")
            built.append(BuiltImage(image.name, image.reference, str(facts["Id"]), int(facts["Size"])))
    return built


def ensure_image(
    reference: str,
    *,
    base: str = AUTO,
    ca_bundle: Path | None = None,
    network: str | None = None,
    mirror: str = DEBIAN_MIRROR,
    progress: Progress = _silent,
) -> str:
    """Give the id of an image; one that is absent is built if kernelbridge knows how, else pulled.

    Parameters and errors as in `build`.
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
                raise _not_to_be_had(reference, exc.reason) from exc
            found = inspect(engine, reference)
            if found is None:
                raise ImageError(f"{reference} was pulled but is not on the engine", "it was removed since")
            return str(found["Id"])
    progress(f"The image {reference} does not exist yet: building it, once")
    built = build([known.name], base=base, ca_bundle=ca_bundle, network=network, mirror=mirror, progress=progress)
    return built[0].id


def known_image(reference: str) -> KnownImage | None:
    """Give the image that kernelbridge builds under this reference, if there is one."""
    return next((image for image in KNOWN.values() if image.reference in {reference, f"{reference}:latest"}), None)


def check_registry(reference: str) -> None:
    """Ask the registry of an image whether it could be pulled, and pull nothing. Raises as `ensure_image` does."""
    with _engine() as engine:
        engine.timeout = _REGISTRY_TIMEOUT
        try:
            engine.inspect_distribution(reference)  # type: ignore[no-untyped-call]  # the stubs leave it out
        except APIError as exc:
            raise _not_to_be_had(reference, one_line(str(exc.explanation or exc))) from exc


def _not_to_be_had(reference: str, reason: str) -> ImageError:
    return ImageError(
        f"The image {reference} is neither on the engine nor can it be pulled",
        f"{reason}; check its name, or load it with `docker load`",
    )


def image_exists(reference: str) -> bool:
    """Whether the engine has an image; raises `RuntimeUnavailable` when it does not answer."""
    with _engine() as engine, _soon(engine):
        return inspect(engine, reference) is not None


def build_context(
    engine: APIClient,
    image: KnownImage,
    context: Context,
    *,
    base: str,
    network: str | None = None,
    progress: Progress = _silent,
) -> None:
    """Build one context on the image `base`, which the engine has. Raises `ImageError` with the failing step."""
    progress(f"Building {image.reference} on {base}")
    summary = BuildSummary(image.name)
    try:
        for event in engine.build(
            fileobj=io.BytesIO(context.archive),
            custom_context=True,
            dockerfile=context.dockerfile,
            tag=image.reference,
            buildargs={"BASE": base},
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
        raise ImageError(f"The engine broke off while it built {image.reference}", "see its log, and try again")


@contextmanager
def _engine() -> Iterator[APIClient]:
    """Connect to the engine; whatever goes wrong with it becomes one of our errors."""
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
    except RequestException as exc:
        raise RuntimeUnavailable(
            "The Docker engine went silent",
            f"{where}: {one_line(str(exc))}; see whether `docker info` answers, and restart the engine if not",
        ) from exc
    except DockerException as exc:
        raise ImageError("The Docker engine failed", one_line(str(exc))) from exc
    finally:
        engine.close()


@contextmanager
def _soon(engine: APIClient) -> Iterator[None]:
    """Wait for answers only as long as a question needs that builds nothing and fetches nothing."""
    engine.timeout = _ANSWER_TIMEOUT
    yield
    engine.timeout = _SILENCE_TIMEOUT


def _why_unreachable(exc: Exception) -> str:
    text = one_line(str(exc))
    return "nothing listens there" if "connection refused" in text.lower() else text


def _knock(where: str) -> None:
    """Raise the plain `OSError` of a socket that nobody listens on: the SDK wraps it in five others, and leaks it."""
    if where.startswith("unix://"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_ANSWER_TIMEOUT)
            probe.connect(where.removeprefix("unix://"))
