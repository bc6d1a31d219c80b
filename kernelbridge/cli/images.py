"""`kernelbridge images build` and `kernelbridge images list`."""

from __future__ import annotations

import click

from kernelbridge import log
from kernelbridge.cli import screen
from kernelbridge.cli.options import GroupedCommand, with_settings
from kernelbridge.settings.quantities import human_size
from kernelbridge.settings.settings import Settings

COMMON = ("config", "log_level")
BUILDING = ("images_base", "images_network", "images_mirror", "ca_bundle")
SPELLING = {"images_base": "--base", "images_network": "--network", "images_mirror": "--mirror"}


@click.group()
def images() -> None:
    """Build and list kernelbridge's own images."""


@images.command("build", cls=GroupedCommand)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@with_settings((*BUILDING, *COMMON), spelling=SPELLING)
def build(settings: Settings, *, names: tuple[str, ...]) -> int:
    """Build the workspace image, or those named.

    Existing images are built again. `kernelbridge images list` shows all names.
    """
    from kernelbridge.images import build as building  # noqa: PLC0415 - loads the Docker SDK: not for --help

    log.configure(settings.log_format, settings.log_level)
    console = screen.output()
    for name in names:
        if name not in building.KNOWN:
            raise click.UsageError(f"There is no image called {name!r}: the images are {', '.join(building.KNOWN)}")
    built = building.build(
        names or ("workspace",),
        base=settings.images_base,
        ca_bundle=settings.ca_bundle,
        network=settings.images_network,
        mirror=settings.images_mirror,
        progress=console.print,
    )
    for image in built:
        console.print(f"Built {image.reference}, {human_size(image.size)}, {image.id}")
    return 0


@images.command("list", cls=GroupedCommand)
@with_settings(COMMON)
def list_images(settings: Settings) -> int:
    """List all images, and which of them exist."""
    from kernelbridge.images import build as building  # noqa: PLC0415 - loads the Docker SDK: not for --help

    log.configure(settings.log_format, settings.log_level)
    console = screen.output()
    for image in building.KNOWN.values():
        state = "built" if building.image_exists(image.reference) else "absent"
        screen.write_row(console, image.name, f"{state:8}{image.reference:32}{image.summary}")
    return 0
