"""What RFC 9112 and RFC 6455 forbid is refused, with one line in the log and no traceback."""

import logging
import struct
from collections.abc import Iterator

import pytest
import structlog

from tests.unit.server.conftest import RunningServer, masked, text

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET /healthz HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
CLOSING = b"Connection: close\r\n\r\n"


class Log:
    """What a server logs, with structlog or without."""

    def __init__(self, ours: list[structlog.typing.EventDict], others: pytest.LogCaptureFixture) -> None:
        self._ours = ours
        self._others = others

    def only(self) -> structlog.typing.EventDict:
        """Return the one line at `warning` or above."""
        assert [record for record in self._others.records if record.levelno >= logging.WARNING] == []
        (line,) = (line for line in self._ours if line["log_level"] not in {"debug", "info"})
        assert "exc_info" not in line
        assert line["log_level"] == "warning"
        assert "\n" not in str(line.get("reason"))
        return line


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with structlog.testing.capture_logs() as ours, caplog.at_level(logging.DEBUG):
        yield Log(ours, caplog)


async def test_a_request_as_it_should_be_is_served(server: RunningServer) -> None:
    for request in (
        GET + HOST,
        b"GET http://localhost/healthz HTTP/1.1\r\n" + HOST,
        b"GET HTTP://LOCALHOST:1/healthz HTTP/1.1\r\nHost: localhost:1\r\n",
        b"GET /healthz HTTP/1.0\r\n" + HOST,
        GET + b"Host: [::1]:8001\r\n",
        GET + b"Host: 127.0.0.1:\r\n",
        GET + HOST + b"Origin: http://localhost:3000\r\n",
    ):
        async with server.wire() as wire:
            wire.write(request, CLOSING)
            answer = await wire.everything()
            assert answer.split(b" ", 2)[1] == b"200", (request, answer)


@pytest.mark.parametrize(
    "request_head",
    [
        pytest.param(GET, id="no host"),
        pytest.param(GET + HOST + HOST, id="two hosts"),
        pytest.param(GET + HOST + b"Host: evil.example\r\n", id="two different hosts"),
        pytest.param(b"GET http:///healthz HTTP/1.1\r\n" + HOST, id="no authority"),
        pytest.param(b"GET healthz HTTP/1.1\r\n" + HOST, id="neither path nor URL"),
        pytest.param(b"GET * HTTP/1.1\r\n" + HOST, id="asterisk for GET"),
        pytest.param("GET /healthz?ä HTTP/1.1\r\n".encode() + HOST, id="not ASCII"),
        pytest.param(b"GET /healthz HTTP/1.1 \r\n" + HOST, id="blank behind the version"),
        pytest.param(b"GET /healthz HTTP/3.0\r\n" + HOST, id="version"),
        pytest.param(b"GE(T /healthz HTTP/1.1\r\n" + HOST, id="method"),
        pytest.param(GET + HOST + b"X : y\r\n", id="blank before the colon"),
        pytest.param(GET + HOST + b"X: a\r\n b\r\n", id="folded"),
        pytest.param(GET + HOST + b"X: a\0b\r\n", id="NUL"),
        pytest.param(GET + HOST + b"X\r\n", id="no colon"),
        pytest.param(GET + HOST + b"X: " + b"y" * 9000 + b"\r\n", id="long header"),
        pytest.param(b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\n" + HOST, id="long target"),
        pytest.param(GET + HOST + b"X: y\r\n" * 200, id="many headers"),
        pytest.param(GET + HOST + b"Content-Length: x\r\n", id="length"),
        pytest.param(GET + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n", id="two lengths"),
        pytest.param(GET + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", id="length and chunks"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20), id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n", id="HTTP/2"),
    ],
)
async def test_what_is_no_http_is_refused_in_one_line(server: RunningServer, log: Log, request_head: bytes) -> None:
    async with server.wire() as wire:
        wire.write(request_head, CLOSING)
        answer = await wire.everything()
        assert answer.split(b" ", 2)[1] == b"400", answer
    assert log.only()["event"] in {"malformed_request", "request_refused"}


@pytest.mark.parametrize(
    "request_head",
    [
        pytest.param(GET + b"Host: \r\n", id="empty host"),
        pytest.param(GET + b"Host: user@localhost\r\n", id="userinfo"),
        pytest.param(GET + b"Host: localhost/x\r\n", id="path"),
        pytest.param(GET + b"Host: localhost, localhost\r\n", id="list"),
        pytest.param(GET + b"Host: localhost:port\r\n", id="port of letters"),
        pytest.param(GET + b"Host: localhost:65536\r\n", id="port too large"),
        pytest.param(GET + b"Host: localhost:80:80\r\n", id="two ports"),
        pytest.param(GET + b"Host: [127.0.0.1]\r\n", id="IPv4 in brackets"),
        pytest.param(GET + b"Host: [::1\r\n", id="half a bracket"),
        pytest.param(GET + b"Host: ::1\r\n", id="IPv6 without brackets"),
        pytest.param(GET + b"Host: local host\r\n", id="blank"),
        pytest.param(GET + b"Host: localhost\\\r\n", id="backslash"),
        pytest.param(GET + b"Host: evil.example\r\n", id="another site"),
        pytest.param(GET + b"Host: localhost.evil.example\r\n", id="a name below another site"),
        pytest.param(GET + b"Host: 192.168.0.1\r\n", id="another machine"),
        pytest.param(GET + b"Host: localhost.\r\n", id="absolute"),
    ],
)
async def test_a_foreign_host_is_forbidden(server: RunningServer, log: Log, request_head: bytes) -> None:
    async with server.wire() as wire:
        wire.write(request_head, CLOSING)
        assert (await wire.everything()).startswith(b"HTTP/1.1 403 ")
    assert log.only()["event"] == "request_refused"


@pytest.mark.parametrize("origin", [b"null", b"http://evil.example", b"http://localhost@evil.example", b"localhost"])
async def test_a_foreign_origin_is_forbidden(server: RunningServer, log: Log, origin: bytes) -> None:
    async with server.wire() as wire:
        wire.write(GET, HOST, b"Origin: ", origin, b"\r\n", CLOSING)
        assert (await wire.everything()).startswith(b"HTTP/1.1 403 ")
    assert log.only()["event"] == "request_refused"


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site", "CROSS-SITE"])
async def test_what_a_page_of_another_site_embeds_is_refused_in_any_case(server: RunningServer, site: str) -> None:
    async with server.http.get(server.file("x"), headers={"Sec-Fetch-Site": site}) as answer:
        assert answer.status == 403


HANDSHAKE = {
    b"Host": b"localhost",
    b"Upgrade": b"websocket",
    b"Connection": b"keep-alive, Upgrade",
    b"Sec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAAAA==",
    b"Sec-WebSocket-Version": b"13",
}


def handshake(changes: dict[bytes, bytes | None], line: bytes = b"GET /ws HTTP/1.1") -> bytes:
    headers = {name: value for name, value in {**HANDSHAKE, **changes}.items() if value is not None}
    return b"\r\n".join([line, *(b"%s: %s" % header for header in headers.items()), b"\r\n"])


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({b"Upgrade": None}, 426),
        ({b"Upgrade": b"h2c"}, 426),
        ({b"Connection": b"keep-alive"}, 400),
        ({b"Sec-WebSocket-Version": None}, 426),
        ({b"Sec-WebSocket-Version": b"8"}, 426),
        ({b"Sec-WebSocket-Version": b"13, 8"}, 426),
        ({b"Sec-WebSocket-Key": None}, 400),
        ({b"Sec-WebSocket-Key": b"AAAA"}, 400),
        ({b"Sec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAAAA"}, 400),
        ({b"Sec-WebSocket-Key": b"!AAAAAAAAAAAAAAAAAAAAAA=="}, 400),
        ({b"Sec-WebSocket-Key": "ÄAAAAAAAAAAAAAAAAAAAAA==".encode()}, 400),
        ({b"Sec-WebSocket-Key\r\nSec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAAAA=="}, 400),
        ({b"Content-Length": b"5"}, 400),
        ({b"Transfer-Encoding": b"chunked"}, 400),
    ],
)
async def test_a_handshake_that_is_none(server: RunningServer, changes: dict[bytes, bytes | None], status: int) -> None:
    async with server.wire() as wire:
        wire.write(handshake(changes))
        head = await wire.head()
        assert head.split()[1] == str(status).encode(), head
        assert status != 426 or b"Sec-WebSocket-Version: 13\r\n" in head


@pytest.mark.parametrize("line", [b"GET /ws HTTP/1.0", b"HEAD /ws HTTP/1.1", b"POST /ws HTTP/1.1"])
async def test_only_get_of_http_1_1_opens_a_websocket(server: RunningServer, line: bytes) -> None:
    async with server.wire() as wire:
        wire.write(handshake({}, line))
        assert (await wire.head()).split()[1] in {b"400", b"405"}


async def test_a_handshake_as_it_should_be(server: RunningServer) -> None:
    async with server.wire() as wire:
        wire.write(handshake({b"Sec-WebSocket-Extensions": b"permessage-deflate"}))
        head = await wire.head()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"deflate" not in head  # nothing is unpacked, so nothing grows by that


PING = text(type="ping")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param(b"\x81\x0f" + b'{"type":"ping"}', 1002, id="unmasked"),
        pytest.param(b"\x89\x00", 1002, id="unmasked ping"),
        pytest.param(b"\xc1\x80\0\0\0\0", 1002, id="reserved bit"),
        pytest.param(masked(3), 1002, id="unknown opcode"),
        pytest.param(masked(9, fin=False), 1002, id="fragmented ping"),
        pytest.param(masked(9, bytes(126)), 1002, id="long ping"),
        pytest.param(masked(0, b"x"), 1002, id="nothing to continue"),
        pytest.param(masked(1, fin=False) + PING, 1002, id="a message within a message"),
        pytest.param(masked(8, b"\x03"), 1002, id="half a close code"),
        pytest.param(masked(8, struct.pack("!H", 1006)), 1002, id="close code of nobody"),
        pytest.param(masked(8, struct.pack("!H", 5000)), 1002, id="close code out of range"),
        pytest.param(masked(1, b'{"type": "\xff"}'), 1007, id="not UTF-8"),
        pytest.param(masked(1, b"\xc3", fin=False) + masked(0, b"("), 1007, id="not UTF-8, in two frames"),
        pytest.param(masked(1, b"x" * 70_000 + b"\xe2\x82"), 1007, id="UTF-8 that ends too early"),
        pytest.param(masked(1, "\U0001f600".encode() * 40_000 + b"\xed\xa0\x80"), 1007, id="a surrogate"),
        pytest.param(masked(1, length=(16 << 20) + 1), 1009, id="too large"),
    ],
)
async def test_a_frame_that_the_rfc_forbids_ends_the_connection_behind_what_came_before(
    server: RunningServer, log: Log, frame: bytes, code: int
) -> None:
    async with server.upgraded() as wire:
        wire.write(PING, PING, frame)
        said, closed, reason = await wire.ending()
        wire.writer.close()
    assert closed == code
    assert bool(reason) == (code != 1009)  # of that one an error tells
    told = [message.get("code") for message in said if message["type"] == "error"]
    assert told == (["frame_too_large"] if code == 1009 else [])
    assert log.only()["event"] == "connection_ended"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
async def test_frames_of_all_sizes_and_in_any_script_are_read(server: RunningServer, size: int) -> None:
    async with server.upgraded() as wire:
        wire.write(text(type="ping", requestId="ä" * 8, more="€\U0001f600" * (size // 7)))
        opcode, payload = await wire.frame()
        assert (opcode, b'"pong"' in payload) == (1, True)
        wire.write(masked(8, struct.pack("!H", 1000)))
        assert (await wire.frame())[0] == 8


async def test_a_client_that_closes_upon_1009_does_not_have_to_wait(server: RunningServer) -> None:
    """What it still sends of the message is passed over, and its own close is seen."""
    async with server.upgraded() as wire:
        wire.write(masked(1, length=17 << 20))
        assert (await wire.ending())[1] == 1009
        wire.write(bytes(17 << 20), masked(8, struct.pack("!H", 1009)))
        assert await wire.everything() == b""


async def test_pings_are_answered_also_within_a_message(server: RunningServer) -> None:
    async with server.upgraded() as wire:
        wire.write(PING[:10])
        wire.write(PING[10:], masked(1, b'{"type":', fin=False), masked(9, b"there?"))
        answers = sorted([await wire.frame(), await wire.frame()])
        assert (answers[0][0], answers[1]) == (1, (10, b"there?"))
        wire.write(masked(0, b'"ping"}'))
        assert b'"pong"' in (await wire.frame())[1]


async def test_a_flood_of_small_frames_is_answered_in_full(server: RunningServer) -> None:
    number = 5_000
    async with server.upgraded() as wire:
        wire.write(masked(9, b"p") * number, PING * number)
        pongs = answers = 0
        while pongs + answers < 2 * number:
            opcode, _ = await wire.frame()
            pongs, answers = pongs + (opcode == 10), answers + (opcode == 1)
        assert (pongs, answers) == (number, number)
