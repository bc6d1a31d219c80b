"""What sessions of an image can do: `kernelbridge images doctor` tries it in sessions of a server of its own.

Each check is what a user would do, through the client. So what works here works in a session, and nothing that the
server does to start a kernel is done a second time in another way.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from kernelbridge.cli.own_server import Own, own_server
from kernelbridge.client.asynchronous import AsyncClient, AsyncSession
from kernelbridge.doctor import Row, Status, image_facts
from kernelbridge.errors import KernelBridgeError
from kernelbridge.images import build
from kernelbridge.runtimes.facts import Facts, KernelSpec
from kernelbridge.settings.quantities import human_size

_SECONDS = 60.0
"""How long one cell or command may take."""
_DOWNLOAD_SECONDS = 20.0
_MOST_SHOWN = 10_000
"""Characters of a terminal's output that are read."""
_MOST_SAID = 500
"""Characters of one row: programs of the image may say anything."""
_CAN_SHOW_42 = frozenset({"python", "r"})
"""Languages in which `6*7` is a program; others only have to answer."""
_PLOTS = {
    "python": "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2, 4])\nplt.show()",
    "r": "plot(1:3)",
}
_PNG = b"\x89PNG"
_USER = 'id -u; id -g; echo "$HOME"; pwd; touch written && rm written && echo writable'
_MODULE = "kernelbridge_image_doctor"
_WHEEL = f"{_MODULE}-1.0-py3-none-any.whl"
_SMALL_PACKAGE = "six"


async def examine(reference: str, say: Callable[[str], None]) -> list[Row]:
    """Try an image; it is pulled if the engine does not have it. Takes some seconds, and more with many kernels.

    `reference` may be the name of one of our own images, as `images list` shows it. `say` gets lines about what takes
    long. The last row is a problem if the others could not be tried.
    """
    return [_bounded(row) for row in await _examined(reference, say)]


async def _examined(reference: str, say: Callable[[str], None]) -> list[Row]:
    try:
        if reference in build.KNOWN and not await asyncio.to_thread(build.image_exists, reference):
            reference = build.KNOWN[reference].reference
        known = build.known_image(reference)
        if known is not None and not await asyncio.to_thread(build.image_exists, reference):
            return [_problem("image", f"{reference} is absent", f"`kernelbridge images build {known.name}`")]
        await asyncio.to_thread(build.ensure_image, reference, progress=say)
        with tempfile.TemporaryDirectory(prefix="kernelbridge-") as directory:
            facts = await image_facts(reference, Path(directory))
        size = (await asyncio.to_thread(build.find_images, [reference]))[reference].size
    except KernelBridgeError as exc:
        return [_problem("image", exc.message, exc.reason)]
    rows = [Row("image", Status.OK, f"{reference}: {human_size(size)}"), _python(facts), _kernelspecs(facts)]
    say("Starting a server with this image")
    try:
        async with (
            own_server(Own(image=reference), lambda _: None) as found,
            AsyncClient(found.url, token=found.token) as client,
        ):
            rows += await _in_sessions(client, facts)
    except KernelBridgeError as exc:
        rows.append(_problem("server", exc.message, exc.reason))
    return rows


async def _in_sessions(client: AsyncClient, facts: Facts) -> list[Row]:
    rows = []
    started: list[KernelSpec] = []
    for spec in facts.kernelspecs.values():
        async with client.session(kernel=spec.name) as session:
            kernel = await _kernel(session, spec)
            rows.append(kernel)
            if kernel.status is Status.PROBLEM:
                continue
            started.append(spec)
            if spec.language in _PLOTS:
                rows.append(await _plot(session, spec))
    if not started:
        return rows
    best = next((spec for spec in started if spec.language == "python"), started[0])
    async with client.session(kernel=best.name) as session:
        rows += [await _user(session), await _shell(session, facts.shell), await _terminal(session)]
        if best.language == "python":
            rows += [await _pip(session), await _download(session)]
    # A kernel that does not start is no problem of an image with another one.
    return [_lessened(row) if row.check.startswith("kernel ") else row for row in rows]


def _python(facts: Facts) -> Row:
    version = ".".join(map(str, facts.python.version))
    return Row("python", Status.OK, f"{version} at {facts.python.executable}")


def _kernelspecs(facts: Facts) -> Row:
    names = (f"{spec.name} ({spec.display_name})" for spec in facts.kernelspecs.values())
    found = ", ".join(sorted(names))
    if "python3" in facts.kernelspecs:
        return Row("kernelspecs", Status.OK, found)
    fix = "clients must name one in open_session; or install ipykernel for the default kernel, python3"
    return Row("kernelspecs", Status.WARNING, found, fix)


async def _kernel(session: AsyncSession, spec: KernelSpec) -> Row:
    check, began = f"kernel {spec.name}", time.monotonic()
    try:
        result = await session.run("6*7", timeout=_SECONDS)
    except KernelBridgeError as exc:
        return _problem(check, exc.message, exc.reason)
    took = f"first cell after {time.monotonic() - began:.1f} s"
    if spec.language in _CAN_SHOW_42 and "42" not in result.text:
        return _problem(check, f"6*7 gives {result.text or result.error!r}", "reinstall the kernel in the image")
    return Row(check, Status.OK, took)


def _lessened(row: Row) -> Row:
    return Row(row.check, Status.WARNING, row.found, row.fix) if row.status is Status.PROBLEM else row


async def _plot(session: AsyncSession, spec: KernelSpec) -> Row:
    check = f"plot {spec.name}"
    try:
        result = await session.run(_PLOTS[spec.language], timeout=_SECONDS)
    except KernelBridgeError as exc:
        return _problem(check, exc.message, exc.reason)
    pictures = [image.png for image in result.images if image.png is not None and image.png.startswith(_PNG)]
    if pictures:
        return Row(check, Status.OK, f"a PNG of {human_size(len(pictures[0]))}")
    missing = spec.language == "python" and (result.error or "").startswith("ModuleNotFoundError")
    fix = "`pip install matplotlib` in the image, if cells shall plot" if missing else "see what the error says"
    return Row(check, Status.WARNING, f"no picture: {result.error or result.text or 'nothing was shown'}", fix)


async def _user(session: AsyncSession) -> Row:
    try:
        result = await session.sh(_USER, timeout=_SECONDS)
    except KernelBridgeError as exc:
        return _problem("user", exc.message, exc.reason)
    match result.text.split("\n"):
        case [uid, gid, home, directory, "writable", *_]:
            place = f"HOME {home}" if home == directory else f"HOME {home}, directory {directory}"
            return Row("user", Status.OK, f"uid {uid}, gid {gid}; {place} is writable")
    return _problem("user", result.text.strip(), "the session's directory must be writable: is this an image's volume?")


async def _shell(session: AsyncSession, shell: str) -> Row:
    try:
        result = await session.sh("echo $((6 * 7)); (exit 3)", timeout=_SECONDS)
    except KernelBridgeError as exc:
        return _problem("shell", exc.message, exc.reason)
    if (result.text, result.exit_code) == ("42\n", 3):
        return Row("shell", Status.OK, f"{shell} runs commands")
    return _problem(
        "shell", f"{shell} gives {result.text!r}, exit code {result.exit_code}", "install bash in the image"
    )


async def _terminal(session: AsyncSession) -> Row:
    try:
        async with asyncio.timeout(_SECONDS), await session.terminal(rows=24, cols=80) as terminal:
            await terminal.write("stty size; exit 3\r")
            shown = ""
            async for text in terminal:
                shown += text
                if len(shown) > _MOST_SHOWN:  # it writes without end
                    break
    except (KernelBridgeError, TimeoutError) as exc:
        return _problem("terminal", f"it did not work: {exc}", "install bash in the image")
    if "24 80" in shown and terminal.exit_code == 3:  # noqa: PLR2004 - see above
        return Row("terminal", Status.OK, "opens, and knows its size")
    if "24 80" not in shown and terminal.exit_code == 3:  # noqa: PLR2004
        return Row("terminal", Status.WARNING, "opens; there is no stty to ask its size", "install coreutils")
    return _problem("terminal", f"shows {shown!r}, exit code {terminal.exit_code}", "install bash in the image")


async def _pip(session: AsyncSession) -> Row:
    """Install a wheel of our own, which needs no network."""
    try:
        await session.files.write(_WHEEL, _wheel())
        done = await session.sh(f"pip install --no-index --disable-pip-version-check ./{_WHEEL}", timeout=_SECONDS)
        if not done.success:
            found = f"pip does not install a wheel: {_last_line(done.text)}"
            return Row("pip", Status.WARNING, found, "install pip in the image, if users shall install packages")
        result = await session.run(f"import {_MODULE}; {_MODULE}.ANSWER", timeout=_SECONDS)
    except KernelBridgeError as exc:
        return _problem("pip", exc.message, exc.reason)
    if "42" not in result.text:
        found = f"the kernel cannot import what pip installed: {result.error}"
        return Row("pip", Status.WARNING, found, "put the pip of the kernel's Python first in PATH")
    return Row("pip", Status.OK, "installs a wheel, and the running kernel imports it")


async def _download(session: AsyncSession) -> Row:
    command = f"pip download --no-deps --retries 0 --timeout 10 --dest /tmp/doctor {_SMALL_PACKAGE}"
    try:
        done = await session.sh(command, timeout=_DOWNLOAD_SECONDS)
    except KernelBridgeError as exc:
        return _problem("downloads", exc.message, exc.reason)
    if done.success:
        return Row("downloads", Status.OK, "pip reaches the package index")
    found = f"pip reaches no package index: {done.hint or _last_line(done.text)}"
    return Row(
        "downloads", Status.WARNING, found, "install packages in the image; or see --egress of `kernelbridge serve`"
    )


def _wheel() -> bytes:
    about = f"{_MODULE}-1.0.dist-info"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr(f"{_MODULE}.py", "ANSWER = 42\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {_MODULE}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return content.getvalue()


def _bounded(row: Row) -> Row:
    found = row.found if len(row.found) <= _MOST_SAID else f"{row.found[:_MOST_SAID]}…"
    return Row(row.check, row.status, found, row.fix)


def _problem(check: str, found: str, fix: str) -> Row:
    return Row(check, Status.PROBLEM, found, fix)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
