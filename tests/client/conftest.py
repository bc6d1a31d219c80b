"""One server for each module, a user for each test, and a wire that can break."""

import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from kernelbridge import AsyncClient, AsyncSession, Client
from tests.client.servers import ServerProcess, Wire

Connect = Callable[..., AsyncClient]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server of a module, with its `FLAGS`."""
    flags = getattr(request.module, "FLAGS", {})
    made = ServerProcess(tmp_path_factory.mktemp("server") / "data", **flags)
    yield made
    made.end()


@pytest.fixture
def user() -> str:
    return f"u-{os.urandom(4).hex()}"


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    made = Wire(server)
    yield made
    made.close()


@pytest.fixture
async def direct(server: ServerProcess, user: str) -> AsyncIterator[AsyncSession]:
    """The session `s` of the user, over a connection without faults."""
    async with AsyncClient(server.url, user_id=user) as client:
        session = client.session("s")
        yield session
        await session.close(delete_files=True)


@pytest.fixture
def client(server: ServerProcess, user: str) -> Iterator[Client]:
    with Client(server.url, user_id=user) as made:
        yield made
