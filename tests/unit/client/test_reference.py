"""The page about the client names all of it."""

import inspect

import pytest

import kernelbridge
from kernelbridge import AsyncClient, AsyncSession, Bundle, Client, CommandResult, Result, Session
from kernelbridge.client.errors import ClientError, RequestRefused
from kernelbridge.client.files import AsyncFile, AsyncFiles
from kernelbridge.client.synchronous import File, Files, Terminal
from kernelbridge.client.terminal import AsyncTerminal
from tests.unit.test_docs import in_code, reference, rows

PAGE = reference("python-client.md")
FOR_SESSIONS = {"start", "ask", "notify", "reply", "abandon", "leave", "leave_session", "http", "target"}
"""What the asynchronous client offers to its sessions."""


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")} | set(getattr(kind, "__annotations__", {}))


@pytest.mark.parametrize("kind", [Client, Session, Files, File, Terminal, Result, CommandResult, Bundle])
def test_every_method_and_property_is_on_the_page(kind: type) -> None:
    words = {word for text in in_code(PAGE) for word in text.replace("(", " ").replace(".", " ").split()}
    assert public(kind) - {"do", "call"} <= words


@pytest.mark.parametrize("method", [Client.__init__, Client.session, Session.run])
def test_every_argument_is_in_a_table(method: object) -> None:
    named = {name for row in rows(PAGE) for name in in_code(row[0])}
    assert set(inspect.signature(method).parameters) - {"self", "code"} <= named  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("synchronous", "asynchronous"),
    [(Client, AsyncClient), (Session, AsyncSession), (Files, AsyncFiles), (File, AsyncFile), (Terminal, AsyncTerminal)],
)
def test_both_clients_take_the_same_arguments(synchronous: type, asynchronous: type) -> None:
    assert public(asynchronous) - public(synchronous) <= FOR_SESSIONS | {"opened", "request"}
    for name in public(synchronous) & public(asynchronous) | ({"__init__"} if synchronous is Client else set()):
        one, other = getattr(synchronous, name), getattr(asynchronous, name)
        if callable(one):
            expected = {key: value.default for key, value in inspect.signature(other).parameters.items()}
            found = {key: value.default for key, value in inspect.signature(one).parameters.items()}
            assert found == expected, name


def test_every_error_is_in_the_table_with_its_code() -> None:
    found = {in_code(row[0])[0]: row[1] for row in rows(PAGE.split("\n## Errors")[1].split("\n## ")[0])[2:]}
    exported = [getattr(kernelbridge, name) for name in kernelbridge.__all__]
    leaves = [
        kind for kind in exported if issubclass(kind, ClientError) and kind.__name__ not in {"ClientError", "RunError"}
    ]
    assert found.keys() == {kind.__name__ for kind in leaves}
    for kind in leaves:
        assert kind is RequestRefused or in_code(found[kind.__name__]) == [kind.code]
