"""The persistent shell through the whole server."""

from tests.integration.conftest import Client, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""


@on_both_runtimes
async def test_directory_variables_and_functions_last(client: Client) -> None:
    await client.shell("mkdir -p a/b && cd a/b && export V=1 && f() { echo f$V; }")
    frame = await client.shell("pwd; f")
    assert (frame["output"], frame["cwd"], frame["exitCode"]) == ("/workspace/a/b\nf1\n", "/workspace/a/b", 0)


async def test_output_is_plain_text_and_exit_codes_are_told(client: Client) -> None:
    frame = await client.shell("printf '\\033[31mred\\033[0m\\n'; echo err >&2; printf 'no newline'; (exit 7)")
    assert (frame["output"], frame["exitCode"]) == ("red\nerr\nno newline", 7)


async def test_many_lines_heredocs_and_unclosed_quotes(client: Client) -> None:
    frame = await client.shell("cat <<'END' |\nb $x 'q'\na\nEND\nsort\nfor i in 1 2; do\n  echo $i\ndone")
    assert frame["output"] == "a\nb $x 'q'\n1\n2\n"
    broken = await client.shell("echo 'unclosed")
    assert broken["exitCode"] != 0
    assert (await client.shell("echo sane"))["output"] == "sane\n"


async def test_a_command_that_reads_gets_end_of_file(client: Client) -> None:
    assert (await client.shell("cat; read x; echo $?"))["output"] == "1\n"


async def test_exit_gives_a_new_shell_and_says_so(client: Client) -> None:
    await client.shell("cd /tmp; V=1")
    gone = await client.shell("exit 3")
    assert (gone["exitCode"], gone["cause"], gone["statePreserved"]) == (3, "shell_exited", False)
    fresh = await client.shell("echo [$V]; pwd")
    assert fresh["output"] == "[]\n/workspace\n"


async def test_a_shell_made_unusable_is_replaced_before_the_next_command(client: Client) -> None:
    await client.shell("unset -f __kb_begin")
    frame = await client.shell("echo here")
    assert (frame["output"], frame["statePreserved"]) == ("here\n", False)


@on_both_runtimes
async def test_the_shell_and_the_kernel_share_python_and_files(client: Client) -> None:
    frame = await client.shell("python3 -c 'import sys; print(sys.prefix)'; echo from shell > f")
    cell = await client.run("import sys; print(sys.prefix); print(open('f').read(), end='')")
    assert cell["output"] == frame["output"] + "from shell\n"
