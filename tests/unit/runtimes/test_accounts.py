"""The user database of a sandbox whose user the image does not know."""

from types import MappingProxyType

from kernelbridge.runtimes.accounts import group, passwd
from kernelbridge.runtimes.facts import Facts, PythonFacts

PYTHON = PythonFacts(executable="python", version=(3, 11), user_site=True, site_packages=(), base_executable="python")
IMAGE = "root:x:0:0:root:/root:/bin/bash\n"
IMAGE += "jovyan:x:1000:100:Jo Vyan,,,:/home/jovyan:/bin/bash\nnobody:x:65534:65534::/:/no\n"


def facts(text: str = IMAGE, groups: str = "root:x:0:\nusers:x:100:\n", uid: int = 1000, gid: int = 100) -> Facts:
    return Facts(uid, gid, MappingProxyType({}), PYTHON, MappingProxyType({}), "/bin/sh", passwd=text, group=groups)


def test_the_images_user_keeps_its_name_and_has_the_workspace_as_home() -> None:
    rows = passwd(facts(), 2_000_000).splitlines()
    assert rows == [
        "root:x:0:0:root:/root:/bin/bash",
        "nobody:x:65534:65534::/:/no",
        "jovyan:x:2000000:100:Jo Vyan,,,:/workspace:/bin/sh",
    ]


def test_a_user_that_the_image_does_not_know_gets_a_name_that_is_free() -> None:
    assert passwd(facts(uid=1001), 2_000_000).splitlines()[-1] == "sandbox:x:2000000:100::/workspace:/bin/sh"
    taken = "sandbox:x:5:5::/:/bin/sh\nsandbox0:x:6:6::/:/bin/sh\n"
    assert passwd(facts(taken, uid=7), 8).splitlines()[-1].startswith("sandbox1:x:8:")


def test_no_id_and_no_name_is_there_twice() -> None:
    text = IMAGE + "other:x:2000000:5::/:/bin/sh\nbroken\n# comment:x\n"
    rows = [row.split(":") for row in passwd(facts(text), 2_000_000).splitlines()]
    assert [row[2] for row in rows].count("2000000") == 1
    assert len({row[0] for row in rows}) == len(rows) == 3


def test_its_group_has_a_name() -> None:
    assert group(facts()) == "root:x:0:\nusers:x:100:\n"
    assert group(facts(gid=4321)) == "root:x:0:\nusers:x:100:\nsandbox:x:4321:\n"
    assert group(facts(groups="")) == "sandbox:x:100:\n"
