"""Every answer tells of fields in its request that the protocol does not have; a strict connection refuses them."""

from typing import Any, get_args

import pytest

from kernelbridge.protocol import ClientMessage
from tests.integration.conftest import Client, Frame, StartServer
from tests.integration.driving import HANDSHAKE

REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"type": "ping"}, "pong"),
    ({"type": "authenticate", "token": "none"}, "error"),
    ({"type": "open_session"}, "session_ready"),
    ({"type": "execute_code", "code": "1"}, "execution_result"),
    ({"type": "execute_code", "code": "print(1)", "stream": True}, "execution_result"),
    ({"type": "execute_code", "code": "1", "timeout": 1e6}, "error"),
    ({"type": "terminal_command", "command": "true"}, "terminal_output"),
    ({"type": "terminal_command", "command": "echo 1", "stream": True}, "terminal_output"),
    ({"type": "interrupt"}, "interrupted"),
    ({"type": "interrupt", "target": "terminal"}, "interrupted"),
    ({"type": "complete", "code": ""}, "complete_reply"),
    ({"type": "inspect", "code": "print"}, "inspect_reply"),
    ({"type": "is_complete", "code": "1"}, "is_complete_reply"),
    ({"type": "input_reply", "value": "x"}, "error"),
    ({"type": "open_terminal", "terminalId": "t"}, "terminal_opened"),
    ({"type": "terminal_input", "terminalId": "none", "data": "x"}, "error"),
    ({"type": "terminal_resize", "terminalId": "none", "rows": 1, "cols": 1}, "error"),
    ({"type": "close_terminal", "terminalId": "t"}, "terminal_closed"),
    ({"type": "save_file", "filename": "a", "content": ""}, "save_result"),
    ({"type": "save_file", "filename": "..", "content": ""}, "save_result"),
    ({"type": "read_file", "filename": "a"}, "file_content"),
    ({"type": "read_file", "filename": "none"}, "file_result"),
    ({"type": "list_files"}, "file_list"),
    ({"type": "rename_file", "filename": "a", "newFilename": "b"}, "file_result"),
    ({"type": "delete_file", "filename": "b"}, "file_result"),
    ({"type": "make_directory", "filename": "c"}, "file_result"),
    ({"type": "restart_kernel"}, "kernel_restarted"),
    ({"type": "session_info"}, "session_info_reply"),
    ({"type": "list_sessions"}, "list_sessions_reply"),
    ({"type": "resume"}, "resumed"),
    ({"type": "close_session"}, "close_session_reply"),
    ({"type": "resume", "sessionId": "never"}, "error"),
    ({"type": "session_info", "sessionId": "never"}, "session_info_reply"),
]


async def final(client: Client, kind: str, request_id: str) -> tuple[Frame, list[Frame]]:
    """Give the answer of a kind to a request, and what came before it; any other end of it is an error."""
    events: list[Frame] = []
    while (frame := await client.answer_to(request_id))["type"] != kind or frame.get("done") is False:
        if frame["type"] == "error" and kind == "complete_reply":
            return frame, events  # what IPython completes with takes longer to load than a busy machine gives it
        assert frame["type"] != "error", frame
        events.append(frame)
    return frame, events


def test_every_request_is_tried() -> None:
    assert {request["type"] for request, _ in REQUESTS} == {
        kind.__struct_config__.tag for kind in get_args(ClientMessage)
    }


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_every_final_answer_tells_of_them_and_no_other_frame(start_server: StartServer) -> None:
    server = await start_server()
    async with server.connect("u") as client:
        for number, (request, kind) in enumerate(REQUESTS):
            named = request["type"] in {"authenticate", "ping", "list_sessions"} or "sessionId" in request
            session = {} if named else {"sessionId": "s"}
            await client.send(**session, **{**request, "reqestId": 1}, requestId=str(number))
            answer, events = await final(client, kind, str(number))
            assert all("warnings" not in event for event in events)
            (warning,) = answer["warnings"]
            assert "'reqestId' is unknown" in warning
            assert "'requestId'" in warning
        await client.send(type="execute_code", sessionId="s", code="print(1)", stream=True, requestId="known")
        answer, events = await final(client, "execution_result", "known")
        assert all("warnings" not in frame for frame in (answer, *events))


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_a_strict_connection_refuses_them_and_carries_nothing_out(start_server: StartServer) -> None:
    server = await start_server()
    async with server.http.ws_connect(f"{server.url}?user_id=u&strict=true", max_msg_size=0) as ws:
        client = Client(ws, {})
        await client.receive()
        refused = await client.ask(
            type="save_file", sessionId="s", filename="a", content="", requestId="r", fielname="b"
        )
        assert refused == {
            "type": "error",
            "message": "The field 'fielname' is unknown",
            "error": "did you mean 'filename'?",
            "sessionId": "s",
            "code": "unknown_field",
            "retryable": False,
            "requestId": "r",
        }
        assert (await client.ask(type="list_files", sessionId="s"))["files"] == []
        opened = await client.ask(type="open_session", sessionId="s", limits={"memroy": 1})
        assert (opened["code"], opened["error"]) == ("unknown_field", "did you mean 'limits.memory'?")
    address = f"{server.url.replace('ws', 'http', 1)}?strict=yes"
    async with server.http.get(address, headers=HANDSHAKE) as response:
        assert response.status == 400
        assert await response.text() == "strict must be true or false.\n"
