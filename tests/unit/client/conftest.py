"""One server for all tests of a module, with one session for tests that need none of their own."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from kernelbridge import AsyncClient, AsyncSession, Client, Session
from tests.unit.serving import server_in_thread


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_in_thread(tmp_path_factory.mktemp("server") / "data") as address:
        yield address


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncClient]:
    """Return a client of a user of its own."""
    async with AsyncClient(url, user_id=f"u{secrets.token_hex(4)}") as opened:
        yield opened


@pytest.fixture
async def session(url: str) -> AsyncIterator[AsyncSession]:
    """Return the module's session: a kernel takes longer to start than most tests."""
    async with AsyncClient(url, user_id="shared") as opened, opened.session("shared", linger=600) as made:
        yield made


@pytest.fixture
def blocking(url: str) -> Iterator[Session]:
    """Return the same session, for a synchronous client."""
    with Client(url, user_id="shared") as opened, opened.session("shared", linger=600) as made:
        yield made
