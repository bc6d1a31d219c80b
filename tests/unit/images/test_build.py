"""Building and pulling images, with an engine that only notes what it is asked for."""

import asyncio
import contextlib
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest
from docker import APIClient
from docker.errors import APIError, ImageNotFound

from kernelbridge.errors import ImageError, KernelBridgeError, RuntimeUnavailable
from kernelbridge.images import base, build
from kernelbridge.images.base import AUTO, DEBIAN_BASE, DEBOOTSTRAP, PUBLIC_BASE, make_debian_base, pull, resolve_base
from kernelbridge.images.build import KNOWN, build_context, check_registry, ensure_image, find_images, known_image
from kernelbridge.images.context import Context
from tests.unit.runtimes.host_engine import host_engine


class NotingEngine:
    """Has some images. Builds and pulls succeed, unless `events` say otherwise."""

    def __init__(self, *local: str) -> None:
        self.local = {*local}
        self.timeout = 0
        self.asked: list[tuple[Any, ...]] = []
        self.events: list[dict[str, Any]] = [{"aux": {"ID": "sha256:1"}}]
        self.refusal: str | None = None

    def _ask(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.refusal is not None:
            raise APIError("500", explanation=self.refusal)

    def inspect_image(self, name: str) -> dict[str, Any]:
        if name not in self.local:
            raise ImageNotFound(name)
        return {"Id": f"id of {name}", "Size": 7}

    def pull(self, repository: str, **more: Any) -> Iterator[dict[str, Any]]:
        self._ask("pull", repository, more["tag"])
        self.local.add(f"{repository}:{more['tag']}")
        return iter(self.events)

    def build(self, **given: Any) -> Iterator[dict[str, Any]]:
        self._ask("build", given["tag"], given["buildargs"]["BASE"], given["target"], given["network_mode"])
        self.local.add(given["tag"])
        return iter(self.events)

    def import_image_from_stream(self, stream: Iterator[bytes], changes: list[str]) -> str:
        content = b"".join(stream)
        self._ask("import", content, [change.split()[0] for change in changes])
        return '{"status": "x"}\n{"status": "sha256:made"}\n'

    def tag(self, image: str, repository: str, tag: str) -> None:
        self._ask("tag", image, repository, tag)
        self.local.add(f"{repository}:{tag}")

    def inspect_distribution(self, name: str) -> None:
        self._ask("inspect_distribution", name, self.timeout)

    @property
    def api(self) -> APIClient:
        return cast("APIClient", self)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[NotingEngine], None]:
    """Let the functions that connect to the engine use another one."""
    return lambda engine: monkeypatch.setattr(build, "_engine", lambda: contextlib.nullcontext(engine))


@pytest.fixture
def _no_debootstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def _debootstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Install one, and let the script that calls it be a short one."""
    (tmp_path / "debootstrap").touch(mode=0o755)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/bootstrap.sh").write_text('echo "I: Retrieving x" >&2; echo "$*"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(base.os, "geteuid", lambda: 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(base, "images_directory", lambda: tmp_path)


# -- bases -----------------------------------------------------------------------------


def test_an_image_that_is_there_is_the_base() -> None:
    engine = NotingEngine(PUBLIC_BASE, "mine:1")
    assert resolve_base(engine.api, AUTO, progress=print) == PUBLIC_BASE
    assert resolve_base(engine.api, "mine:1", progress=print) == "mine:1"
    assert engine.asked == []


def test_an_absent_base_is_pulled(told: list[str]) -> None:
    engine = NotingEngine()
    engine.events = [{"status": "Status: new"}]
    assert resolve_base(engine.api, "host:5000/mine", progress=told.append) == "host:5000/mine"
    assert (engine.asked, told[1:]) == ([("pull", "host:5000/mine", "latest")], ["  Status: new"])


@pytest.mark.parametrize("late", [True, False])
def test_a_pull_that_fails_is_told_in_the_engine_s_words(*, late: bool) -> None:
    engine = NotingEngine()
    if late:
        engine.events = [{"error": "no\n such host"}]
    else:
        engine.refusal = "no\n such host"
    with pytest.raises(ImageError, match=r"x:1 cannot be pulled: no such host"):
        pull(engine.api, "x:1", print)


@pytest.mark.usefixtures("_no_debootstrap")
def test_without_a_registry_and_debootstrap_there_is_no_base() -> None:
    engine = NotingEngine()
    engine.refusal = "no registry"
    with pytest.raises(
        ImageError, match=f"{PUBLIC_BASE} cannot be pulled: no registry; .*debootstrap is not installed"
    ):
        resolve_base(engine.api, AUTO, progress=print)
    engine.local.add(DEBIAN_BASE)
    assert resolve_base(engine.api, AUTO, progress=print) == DEBIAN_BASE
    with pytest.raises(ImageError, match="mine cannot be pulled"):  # what is named is not replaced
        resolve_base(engine.api, "mine", progress=print)
    assert resolve_base(engine.api, DEBOOTSTRAP, progress=print) == DEBIAN_BASE
    with pytest.raises(ImageError, match="No base image can be made"):
        make_debian_base(engine.api, progress=print)


@pytest.mark.usefixtures("_debootstrap")
def test_a_base_is_made_of_debian_s_packages_and_then_named(told: list[str]) -> None:
    engine = NotingEngine()
    assert resolve_base(engine.api, DEBOOTSTRAP, progress=told.append, mirror="http://m") == DEBIAN_BASE
    (_, content, changes), tagged = engine.asked
    assert content.decode().split()[:2] == ["bookworm", "http://m"]
    assert {"ca-certificates", "python3", "python3-pip", "python3-venv"} == set(content.decode().split()[2:])
    assert (changes, tagged) == (["ENV", "ENV", "CMD"], ("tag", "sha256:made", "kernelbridge-base", "bookworm"))


@pytest.mark.usefixtures("_debootstrap")
def test_only_root_makes_a_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.os, "geteuid", lambda: 1)  # type: ignore[attr-defined]
    with pytest.raises(ImageError, match="debootstrap needs root"):
        make_debian_base(NotingEngine().api, progress=print)


@pytest.mark.usefixtures("_debootstrap")
def test_an_incomplete_base_gets_no_name(tmp_path: Path) -> None:
    engine = NotingEngine()
    (tmp_path / "base/bootstrap.sh").write_text('echo part; echo "E: broken" >&2; exit 3')
    with pytest.raises(ImageError, match="debootstrap failed with exit code 3: its last lines:\nE: broken"):
        make_debian_base(engine.api, progress=print)
    assert engine.asked == []
    (tmp_path / "base/bootstrap.sh").write_text("echo whole")
    engine.import_image_from_stream = lambda *_, **__: '{"error": "no\\n room"}'  # type: ignore[method-assign]
    with pytest.raises(ImageError, match="did not import the base image: no room"):
        make_debian_base(engine.api, progress=print)
    assert engine.asked == []


def test_what_debootstrap_says_is_summed_up(told: list[str]) -> None:
    said = [b"I: Resolving x\n", *[b"I: Retrieving y\n"] * 3, b"I: Extracting a\n", b"I: Extracting b\n", b"noise\n"]
    said += [b"I: Configuring the base system...\n", b"W: odd\n", b"\xff\n"]
    last: Any = []
    base._read_lines(BytesIO(b"".join(said)), last, told.append)
    assert told == ["  Resolving x", "  retrieved 3 packages", "  Configuring the base system...", "  W: odd"]
    assert (len(last), last[-1]) == (10, "\ufffd")


# -- builds ----------------------------------------------------------------------------


def test_images_are_built_in_their_order_on_one_base(use: Callable[[NotingEngine], None], told: list[str]) -> None:
    engine = NotingEngine("b:1")
    use(engine)
    built = build.build(["workspace", "slim"], base="b:1", network="host", progress=told.append)
    assert [(each.name, each.reference, each.id, each.size) for each in built] == [
        (name, f"kernelbridge-{name}:latest", f"id of kernelbridge-{name}:latest", 7) for name in ("slim", "workspace")
    ]
    assert engine.asked == [
        ("build", f"kernelbridge-{name}:latest", "b:1", name, "host") for name in ("slim", "workspace")
    ]
    assert told == [f"Building kernelbridge-{name}:latest on b:1" for name in ("slim", "workspace")]


def test_unknown_names_and_missing_bundles_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match="no image called 'x': the images are: base, slim, workspace, datascience-r, ser"
    ):
        build.build(["workspace", "x"])
    with pytest.raises(ImageError, match="cannot be read"):
        build.build(["base", "slim"], ca_bundle=tmp_path / "none")


def test_a_build_that_ends_without_an_image_failed() -> None:
    engine, context = NotingEngine(), Context(b"", "Dockerfile")
    engine.events = [{"stream": "Step 1/1 : FROM x\n"}]
    with pytest.raises(ImageError, match="The engine stopped building kernelbridge-slim:latest"):
        build_context(engine.api, KNOWN["slim"], context, base="b")
    engine.refusal = "no\n Dockerfile"
    with pytest.raises(ImageError, match="refused to build kernelbridge-slim:latest: no Dockerfile"):
        build_context(engine.api, KNOWN["slim"], context, base="b")


def test_an_absent_image_is_built_or_pulled(use: Callable[[NotingEngine], None], told: list[str]) -> None:
    engine = NotingEngine("b:1", "there:1")
    use(engine)
    assert ensure_image("there:1") == "id of there:1"
    assert engine.asked == []
    assert ensure_image("kernelbridge-slim", base="b:1", progress=told.append) == "id of kernelbridge-slim:latest"
    assert "which happens only once" in told[0]
    assert ensure_image("other:2") == "id of other:2"
    assert [asked[:2] for asked in engine.asked] == [("build", "kernelbridge-slim:latest"), ("pull", "other")]
    engine.refusal = "denied"
    with pytest.raises(ImageError, match=r"third:1 is not on the engine and cannot be pulled: denied; check its name"):
        ensure_image("third:1")


def test_a_registry_is_asked_without_a_pull(use: Callable[[NotingEngine], None]) -> None:
    engine = NotingEngine()
    use(engine)
    check_registry("x:1")
    assert engine.asked == [("inspect_distribution", "x:1", build._REGISTRY_TIMEOUT)]
    engine.refusal = "unauthorized"
    with pytest.raises(ImageError, match="x:1 is not on the engine and cannot be pulled: unauthorized"):
        check_registry("x:1")


def test_a_known_image_has_its_name_with_and_without_a_tag() -> None:
    assert known_image("kernelbridge-slim") is known_image("kernelbridge-slim:latest") is KNOWN["slim"]
    assert known_image("kernelbridge-slim:2") is known_image("slim") is None
    assert known_image(DEBIAN_BASE) is KNOWN["base"]


def test_the_contexts_of_all_images_can_be_made() -> None:
    for image in KNOWN.values():
        if image.context is not None:
            context = image.context(None)
            with tarfile.open(fileobj=BytesIO(context.archive)) as tar:
                assert context.dockerfile in tar.getnames()


# -- the engine ------------------------------------------------------------------------


async def test_what_the_engine_has_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with host_engine(tmp_path) as engine:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.path}")
        engine.images = {"kernelbridge-slim:latest": {"Id": "1", "Size": 2}, "own": {"Id": "3", "Size": 4}}
        found = await asyncio.to_thread(find_images, ["kernelbridge-slim:latest", "own", "none"])
        assert {name: (each.name, each.id, each.size) for name, each in found.items()} == {
            "kernelbridge-slim:latest": ("slim", "1", 2),
            "own": ("own", "3", 4),
        }
        assert await asyncio.to_thread(build.image_exists, "own")
        assert not await asyncio.to_thread(build.image_exists, "none")


async def test_an_engine_s_failures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with host_engine(tmp_path) as engine:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.path}")
        engine.fail = lambda asked: (500, "bro\nken") if asked.startswith("GET /images") else None
        with pytest.raises(ImageError, match="refused a request: bro ken"):
            await asyncio.to_thread(build.image_exists, "x")
        engine.fail = lambda _: (500, "no version")
        with pytest.raises(RuntimeUnavailable, match=r"does not answer: unix:.*no version"):
            await asyncio.to_thread(build.image_exists, "x")
    with pytest.raises(KernelBridgeError, match=r"\(from DOCKER_HOST\): .*; start it"):
        build.image_exists("x")
