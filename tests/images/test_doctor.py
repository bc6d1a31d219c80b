"""The doctor with a real engine: it says of an image what `serve` would say."""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from docker import APIClient

from kernelbridge.doctor import Status, check_image, examine, serves
from kernelbridge.errors import ImageError
from kernelbridge.images.build import ensure_image
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL
from kernelbridge.settings.settings import Settings

NOWHERE = "registry.invalid/none:1"


async def test_with_an_engine_docker_is_used(tmp_path: Path, workspace_image: str) -> None:
    rows = await examine(Settings(data_dir=tmp_path, port=0, egress="none", image=workspace_image, cpus=64.0))
    assert [row.check for row in rows] == [
        "engine",
        "image",
        "limits",
        "user",
        "terminals",
        "bubblewrap",
        "python",
        "data",
        "disk",
        "quota",
        "egress",
        "files",
        "port",
        "login",
    ]
    found = {row.check: row for row in rows}
    assert found["engine"].status is Status.OK
    assert "Docker Engine" in found["engine"].found
    assert found["image"].status is Status.OK
    assert found["limits"].status is Status.WARNING
    assert found["bubblewrap"].found == found["python"].found == "not needed: docker is used"
    assert serves(rows)


async def test_the_look_at_an_image_leaves_nothing_behind(
    engine: APIClient, workspace_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    async def noted(**options: Any) -> DockerRuntime:
        looked.append(options["instance"])
        return await DockerRuntime.open(**options)

    monkeypatch.setattr("kernelbridge.doctor.DockerRuntime", SimpleNamespace(open=noted))
    await check_image(workspace_image, tmp_path)
    (instance,) = looked
    assert engine.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"}) == []


async def test_an_image_that_nobody_can_have_is_a_problem(tmp_path: Path) -> None:
    rows = await examine(Settings(data_dir=tmp_path, port=0, egress="none", image=NOWHERE))
    with pytest.raises(ImageError) as served:
        ensure_image(NOWHERE)
    row = next(row for row in rows if row.check == "image")
    assert (row.status, row.found) == (Status.PROBLEM, served.value.message)
    assert "check its name" in row.fix
    assert not serves(rows)


class OneImageRegistry(BaseHTTPRequestHandler):
    """As much of a registry as it takes to say that it has an image."""

    CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    DIGEST = f"sha256:{hashlib.sha256(CONFIG).hexdigest()}"
    KIND = "application/vnd.docker.distribution.manifest.v2+json"
    MANIFEST = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": KIND,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(CONFIG),
                "digest": DIGEST,
            },
            "layers": [],
        }
    ).encode()

    def do_GET(self) -> None:
        """Answer what there is; to everything else, that there is nothing."""
        found = {
            "/v2/": (b"{}", "application/json"),
            "/v2/there/manifests/1": (self.MANIFEST, self.KIND),
            f"/v2/there/manifests/sha256:{hashlib.sha256(self.MANIFEST).hexdigest()}": (self.MANIFEST, self.KIND),
            f"/v2/there/blobs/{self.DIGEST}": (self.CONFIG, "application/octet-stream"),
        }.get(self.path)
        body, kind = found or (
            b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}',
            "application/json",
        )
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name is the server's

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OneImageRegistry) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_an_image_that_could_be_pulled_is_not_pulled(registry: str, engine: APIClient) -> None:
    row = await check_image(f"{registry}/there:1", Path("/nowhere"))
    assert (row.status, row.found) == (
        Status.WARNING,
        f"{registry}/there:1 is absent: it will be pulled at the first start",
    )
    assert not engine.images(f"{registry}/there")
    with pytest.raises(ImageError, match="is not on the engine and cannot be pulled"):
        await check_image(f"{registry}/elsewhere:1", Path("/nowhere"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ENV PATH=/nowhere", "no python3"),
        ("USER root\nRUN python3 -m pip uninstall --yes ipykernel\nUSER 1000:100", "no Jupyter kernel"),
    ],
)
async def test_an_unusable_image_is_a_problem_in_the_words_of_serve(
    change: str, said: str, *, tmp_path: Path, engine: APIClient, new_tag: Callable[[], str], workspace_image: str
) -> None:
    reference = new_tag()
    dockerfile = BytesIO(f"FROM {workspace_image}\n{change}\n".encode())
    assert list(engine.build(fileobj=dockerfile, tag=reference, rm=True, forcerm=True))
    runtime = await DockerRuntime.open(
        image=reference, instance=f"test-{secrets.token_hex(4)}", directories=HostDirectories(tmp_path)
    )
    try:
        with pytest.raises(ImageError, match=said) as served:
            await runtime.prepare()
    finally:
        await runtime.aclose()
    rows = await examine(Settings(data_dir=tmp_path, port=0, egress="none", image=reference))
    row = next(row for row in rows if row.check == "image")
    assert (row.status, row.found, row.fix) == (Status.PROBLEM, served.value.message, served.value.reason)
    assert not serves(rows)
