"""No program in the images gets rights from its file. Without it, `no-new-privileges` would be the only defence."""

import pytest
from docker import from_env

from kernelbridge.images.build import KNOWN, ensure_image

LOOK = """
import os, stat
for top, directories, files in os.walk("/"):
    if top == "/":
        directories[:] = set(directories) - {"dev", "proc", "sys"}
    for path in (os.path.join(top, name) for name in files):
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and (mode & 0o6000 or "security.capability" in os.listxattr(path)):
            print(path)
print("looked")
"""


@pytest.fixture
def server_image() -> str:
    reference = KNOWN["server"].reference
    ensure_image(reference)
    return reference


@pytest.mark.parametrize("name", ["workspace_image", "server_image"])
def test_no_program_has_rights_of_its_own(request: pytest.FixtureRequest, name: str) -> None:
    image = request.getfixturevalue(name)
    client = from_env()
    try:
        output = client.containers.run(
            image, ["-c", LOOK], entrypoint="python3", user="0:0", network_mode="none", read_only=True, remove=True
        )
    finally:
        client.close()
    assert output.decode().splitlines() == ["looked"]
