"""The client loads nothing of the server, and the server nothing of the client."""

import subprocess
import sys

import pytest

import kernelbridge

FOREIGN = "docker ipykernel IPython jupyter_client zmq uvloop structlog click rich msgspec prometheus_client jwt h11"


def loaded(statement: str) -> set[str]:
    """Return the modules that are loaded after a statement, in an interpreter of its own."""
    program = f"{statement}\nimport sys; print(*sys.modules)"
    ran = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_the_client_loads_nothing_of_the_server() -> None:
    modules = loaded("from kernelbridge import Client, AsyncClient")
    own = {name for name in modules if name.startswith("kernelbridge.")}
    assert {name for name in own if not name.startswith("kernelbridge.client")} == {"kernelbridge.errors"}
    assert not modules & set(FOREIGN.split())


def test_the_package_alone_loads_no_client() -> None:
    modules = loaded("import kernelbridge; kernelbridge.__version__")
    assert not {name for name in modules if name.startswith("kernelbridge.")}
    assert "aiohttp" not in modules


def test_every_exported_name_is_there_and_no_other() -> None:
    for name in kernelbridge.__all__:
        assert getattr(kernelbridge, name).__name__ == name
        assert name in dir(kernelbridge)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        kernelbridge.Nothing  # noqa: B018
