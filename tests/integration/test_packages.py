"""`pip install X` in the terminal is importable in the running kernel at once: a wheel and an index made here."""

import base64
import hashlib
import io
import secrets
import zipfile
from collections.abc import Iterator

import docker
import pytest

from tests.integration.conftest import Client, RunningServer, StartServer


def wheel(name: str, version: str) -> bytes:
    """Build the smallest installable wheel."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-tool = {name}:tool\n",
    }
    files[f"{name}.py"] += "def tool():\n    print('tool', VERSION)\n"
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in files.items()
    )
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return buffer.getvalue()


async def publish(client: Client, name: str, version: str) -> None:
    """Put the wheel into an index on the workspace's disk (PEP 503)."""
    frame = await client.ask(
        type="save_file",
        sessionId="s",
        filename=f"index/{name}/{name}-{version}-py3-none-any.whl",
        content=base64.b64encode(wheel(name, version)).decode(),
        encoding="base64",
    )
    assert frame["success"], frame
    links = await client.shell(
        f"cd ~/index/{name} && for w in *.whl; do echo \"<a href='$w'>$w</a>\"; done > index.html; cd ~"
    )
    assert links["exitCode"] == 0


async def test_an_installed_package_is_importable_in_the_running_kernel(client: Client) -> None:
    missing = await client.run("import kbdemo")
    assert missing["error"] == "ModuleNotFoundError: No module named 'kbdemo'"
    await publish(client, "kbdemo", "1.0")
    install = await client.shell('pip install --index-url "file://$HOME/index" kbdemo')
    assert install["exitCode"] == 0, install["output"]
    assert "Successfully installed kbdemo-1.0" in install["output"]
    assert (await client.run("import kbdemo; print(kbdemo.VERSION)"))["output"] == "1.0\n"
    assert (await client.shell("kbdemo-tool"))["output"] == "tool 1.0\n"


async def test_upgrade_uninstall_and_a_package_of_the_image_in_another_version(client: Client) -> None:
    await publish(client, "kbdemo", "1.0")
    await client.shell('pip install --index-url "file://$HOME/index" kbdemo')
    await publish(client, "kbdemo", "2.0")
    upgrade = await client.shell('pip install --upgrade --index-url "file://$HOME/index" kbdemo')
    assert upgrade["exitCode"] == 0, upgrade["output"]
    assert (await client.run("import kbdemo; print(kbdemo.VERSION)"))["output"] == "2.0\n"
    # `six` comes with python-dateutil, so each runtime's python has it, out of the workspace's reach.
    await publish(client, "six", "99.0")
    override = await client.shell('pip install --upgrade --index-url "file://$HOME/index" six')
    assert override["exitCode"] == 0, override["output"]
    assert (await client.shell("python3 -c 'import six; print(six.VERSION)'"))["output"] == "99.0\n"
    gone = await client.shell("pip uninstall -y kbdemo")
    assert gone["exitCode"] == 0, gone["output"]
    assert (await client.shell("python3 -c 'import kbdemo'"))["exitCode"] == 1


async def test_packages_outlive_the_container(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await publish(client, "kbdemo", "1.0")
        await client.run("%pip install --quiet --index-url file:///workspace/index kbdemo")
        assert (await client.run("import kbdemo; print(kbdemo.VERSION)"))["output"] == "1.0\n"
    async with server.connect("u") as client:
        assert (await client.run("print('kbdemo' in globals())"))["output"] == "False\n"
        assert (await client.run("import kbdemo; print(kbdemo.VERSION)"))["output"] == "1.0\n"


async def test_pip_fails_with_a_hint_that_the_index_is_not_allowed(client: Client) -> None:
    frame = await client.shell("pip install --index-url https://pypi.org/simple kb-no-such-package-anywhere")
    assert frame["exitCode"] != 0
    assert "kb-no-such-package-anywhere" in frame["output"]
    assert frame["hint"].startswith("The egress policy of this session (none) refuses pypi.org:443")


VENV = """
FROM {base}
USER root
RUN python3 -m venv {options} /opt/venv && python3 -c "import sys; print(*sys.path[1:], sep='\\n')" \
    > "$(echo /opt/venv/lib/python3*/site-packages)/image.pth"
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin VIRTUAL_ENV=/opt/venv
USER 1000:100
"""


@pytest.fixture(params=["", "--system-site-packages"])
def venv_image(request: pytest.FixtureRequest, workspace_image: str) -> Iterator[str]:
    """Make an image whose python is a virtual environment's."""
    name = f"kernelbridge-test-{secrets.token_hex(4)}:latest"
    client = docker.from_env()
    file = io.BytesIO(VENV.format(base=workspace_image, options=request.param).encode())
    try:
        client.images.build(fileobj=file, tag=name, network_mode="none", rm=True)
        yield name
        client.images.remove(name)
    finally:
        client.close()


@pytest.mark.parametrize("runtime_name", ["docker"])
async def test_packages_in_an_image_with_a_virtual_environment(venv_image: str, start_server: StartServer) -> None:
    server = await start_server(image=venv_image)
    async with server.connect("u") as client:
        assert (await client.run("import sys; print(sys.prefix != sys.base_prefix)"))["output"] == "True\n"
        for version in ("1.0", "2.0"):
            await publish(client, "kbdemo", version)
            install = await client.shell('pip install --upgrade --index-url "file://$HOME/index" kbdemo')
            assert f"Successfully installed kbdemo-{version}" in install["output"]
        assert (await client.run("import kbdemo; print(kbdemo.VERSION)"))["output"] == "2.0\n"
        gone = await client.shell("pip uninstall -y kbdemo")
        assert "Successfully uninstalled kbdemo-2.0" in gone["output"]
        assert (await client.shell("python3 -c 'import kbdemo'"))["exitCode"] == 1


async def test_cells_get_that_hint_too(client: Client) -> None:
    install = "pip install --index-url https://pypi.org/simple kb-no-such-package-anywhere"
    for code in (
        f"%{install}",
        f"!{install}",
        f"import subprocess, sys\n_ = subprocess.run([sys.executable, *'-m {install}'.split()])",
        "import urllib.request; urllib.request.urlopen('https://pypi.org')",
    ):
        frame = await client.run(code)
        assert frame.get("hint", "").startswith("The egress policy of this session (none)"), (code, frame)
    frame = await client.run("import socket; socket.create_connection(('192.0.2.1', 80))")
    assert frame["hint"].startswith("a workspace has no network of its own")
    assert "hint" not in await client.run("print('resolved')")
    assert "hint" not in await client.run("1/0")
