"""How the tests are divided among workers: a wrong division costs minutes, and no test fails by it."""

import pytest

from tests.conftest import TOGETHER, group_of


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/unit/test_a.py::test_b", "tests/unit/test_a.py"),
        ("tests/unit/test_a.py::TestB::test_c", "tests/unit/test_a.py"),
        ("tests/unit/test_local.py::test_docker[x-y]", "tests/unit/test_local.py"),
        ("tests/integration/test_a.py::test_b[docker]", "tests/integration/test_a.py:docker"),
        ("tests/integration/test_a.py::test_b[local-bash -c 'a::b']", "tests/integration/test_a.py:local"),
        ("tests/contract/test_a.py::test_b[local, by signals]", "tests/contract/test_a.py:local"),
        ("tests/unit/jupyter/test_a.py::test_b[ipykernel-6-x]", "tests/unit/jupyter/test_a.py:ipykernel-6"),
    ],
)
def test_the_tests_of_a_module_on_one_runtime_are_together(test: str, group: str) -> None:
    assert group_of(test) == group


def test_modules_of_one_group_are_together_and_exist(pytestconfig: pytest.Config) -> None:
    for module, group in TOGETHER.items():
        assert (pytestconfig.rootpath / module).exists()
        assert group_of(f"{module}::test_a[docker]") == group
