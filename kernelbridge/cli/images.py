"""`kernelbridge images build`, `kernelbridge images list` and `kernelbridge images doctor`."""

from __future__ import annotations

import asyncio

import click
import msgspec

from kernelbridge import log
from kernelbridge.cli import screen
from kernelbridge.cli.build_progress import BuildProgress
from kernelbridge.cli.doctor import write_checks
from kernelbridge.cli.options import GroupedCommand, with_settings
from kernelbridge.settings.quantities import human_size
from kernelbridge.settings.settings import Settings

COMMON = ("config", "log_level")
BUILDING = ("images_base", "images_network", "images_mirror", "ca_bundle")
SPELLING = {"images_base": "--base", "images_network": "--network", "images_mirror": "--mirror"}
NAME_WIDTH = 15
_DOCTOR = """\b
Examples:
    kernelbridge images doctor quay.io/jupyter/scipy-notebook
"""
_BUILD = """\b
Examples:
    kernelbridge images build
    kernelbridge images build workspace server --network host
"""


@click.group()
def images() -> None:
    """Build and list kernelbridge's own images, and try any other."""


@images.command("build", cls=GroupedCommand, epilog=_BUILD)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@with_settings((*BUILDING, *COMMON), spelling=SPELLING)
def build(settings: Settings, *, names: tuple[str, ...]) -> int:
    """Build the default image of workspaces, or those named.

    Existing images are built again. `kernelbridge images list` shows all names.
    """
    from kernelbridge.images import build as building  # noqa: PLC0415 - loads the Docker SDK: not for --help

    log.configure(settings.log_format, settings.log_level)
    console = screen.output()
    for name in names:
        if name not in building.KNOWN:
            raise click.UsageError(f"There is no image called {name!r}: the images are {', '.join(building.KNOWN)}")
    progress = BuildProgress(console)
    try:
        built = building.build(
            names or ("workspace",),
            base=settings.images_base,
            ca_bundle=settings.ca_bundle,
            network=settings.images_network,
            mirror=settings.images_mirror,
            progress=progress,
        )
    finally:
        progress.end()
    for image in built:
        console.print(f"Built {image.reference}, {human_size(image.size)}, {image.id}")
    return 0


@images.command("list", cls=GroupedCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@with_settings(COMMON)
def list_images(settings: Settings, *, as_json: bool) -> int:
    """List all images, and which of them exist."""
    from kernelbridge.images import build as building  # noqa: PLC0415 - loads the Docker SDK: not for --help

    log.configure(settings.log_format, settings.log_level)
    known = building.KNOWN.values()
    found = building.find_images(image.reference for image in known)
    if as_json:
        listed = []
        for image in known:
            built = found.get(image.reference)
            facts = {"name": image.name, "reference": image.reference, "summary": image.summary}
            listed.append({**facts, "id": built and built.id, "size": built and built.size})
        _print_json({"images": listed})
        return 0
    console = screen.output()
    for image in known:
        built = found.get(image.reference)
        state = human_size(built.size) if built else "absent"
        screen.write_row(console, image.name, f"{state:10}{image.reference:36}{image.summary}", width=NAME_WIDTH)
    return 0


@images.command("doctor", epilog=_DOCTOR)
@click.argument("image")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(*, image: str, as_json: bool) -> int:
    """Try what sessions of IMAGE can do: any Jupyter image.

    Starts a server with it, and in sessions each of its kernels, plots, commands, a terminal and pip. Prints what does
    not work and what to do. Exits with 0 if sessions can be made from it, else with 1.
    """
    from kernelbridge.cli.image_doctor import examine  # noqa: PLC0415 - loads the server: not for --help
    from kernelbridge.doctor import serves  # noqa: PLC0415

    log.configure("console", "error")
    rows = asyncio.run(examine(image, screen.say))
    if as_json:
        _print_json({"image": image, "ok": serves(rows), "checks": rows})
    else:
        console = screen.output()
        write_checks(console, rows)
        if len(rows) > 1:
            console.print(
                "Tried in sessions of a server with the limits and the network of your KERNELBRIDGE_ variables."
            )
        console.print(f"{screen.plain(image)} {'works' if serves(rows) else 'does not work'}.")
    return 0 if serves(rows) else 1


def _print_json(found: object) -> None:
    click.echo(screen.plain_json(msgspec.json.format(msgspec.json.encode(found), indent=2)))
