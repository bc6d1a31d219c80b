"""When Enter runs a cell of the console, and what the next line begins with otherwise."""

import pytest

from kernelbridge.cli.typed_code import next_indent


@pytest.mark.parametrize(
    "code",
    [
        "1 + 1",
        "x = (1,\n  2)",
        "def f():\n    return 1\n",
        "for x in y:\n    pass\n    ",
        "await f()",
        "async with f() as x:\n    pass\n",
        "1 +* 2",  # wrong: the kernel says why
        "x = 'a",
        "len?",
        "?len",
        "%timeit 1",
        "!ls",
        "%%time\n1\n",
        "@f\ndef g():\n    pass\n",
        "\0",
        "x is 1",
    ],
)
def test_a_whole_cell(code: str) -> None:
    assert next_indent(code) is None


@pytest.mark.parametrize(
    ("code", "indent"),
    [
        ("def f():", "    "),
        ("def f():\n    x = 1", "    "),
        ("def f():\n    return 1", ""),
        ("for x in y:\n    for z in x:", "        "),
        ("x = (1,", ""),
        ("x = [", "    "),
        ("'''a", ""),
        ("x = 1 + \\", ""),
        ("@f", ""),
        ("%%time\n1", ""),
        ("%%time", ""),
        ("if x:\n    !ls", "    "),
        ("try:\n    f()\nfinally:", "    "),
    ],
)
def test_a_cell_that_goes_on(code: str, indent: str) -> None:
    assert next_indent(code) == indent
